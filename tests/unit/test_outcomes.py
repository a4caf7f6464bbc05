"""The tail's sample against plain float64: inverse distribution function, moments, entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from limbeck.errors import InputError
from limbeck.models import outcomes
from limbeck.models.outcomes import SampledTargets, sampled_targets, sparse_targets, tail_offsets
from small import log_softmax

quick = settings(max_examples=60, deadline=None)
Floats = NDArray[np.float64]


def zipf(n: int, v: int, seed: int = 0, power: float = 1.2) -> Tensor:
    """Rows like a language model's: log-probability falls with the log of a shuffled rank."""
    rng = np.random.default_rng(seed)
    ranks = np.stack([rng.permutation(v) + 1 for _ in range(n)])
    return torch.tensor(rng.normal(0, 0.5, (n, v)) - power * np.log(ranks))


def offsets(n: int, seed: int = 1) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).random(n))


def others(logits: Tensor, found: SampledTargets, temperature: float = 1.0) -> Floats:
    """The exact mass (N, V) of each token, those kept left out."""
    p = np.exp(log_softmax(logits.double().numpy() / temperature))
    np.put_along_axis(p, found.top_ids.numpy(), 0.0, -1)
    return p


def counted(found: SampledTargets, vocabulary: int) -> Floats:
    """How often each token was drawn (N, V)."""
    drawn = np.zeros((len(found.tail_ids), vocabulary))
    np.add.at(drawn, (np.arange(len(drawn))[:, None], found.tail_ids.numpy()), 1)
    return drawn


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "vocabulary, k, samples",
    [(5, 1, 3), (256, 3, 5), (1000, 8, 12), (3003, 20, 4), (70_000, 8, 12)],
)
def test_draws_are_those_of_the_inverse_distribution_function(
    vocabulary: int, k: int, samples: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "_BLOCK", 4 * vocabulary)
    logits, offset = zipf(21, vocabulary).to(dtype), offsets(21)
    found = sampled_targets(logits, k, 0.8, samples, offset)
    p = others(logits, found, 0.8)
    np.testing.assert_allclose(found.tail, p.sum(-1), rtol=1e-4)
    ends = p.cumsum(-1) / p.sum(-1, keepdims=True)
    points = (offset.numpy()[:, None] + np.arange(samples)) / samples
    for row, ids in enumerate(found.tail_ids.numpy()):
        # Whose stretch holds the point; at a boundary float32 may take its neighbour.
        close = 1e-12 if dtype == torch.float64 else 2e-6
        low = np.searchsorted(ends[row], points[row] - close, side="right")
        high = np.searchsorted(ends[row], points[row] + close, side="right")
        assert ((low <= ids) & (ids <= high)).all()
        if dtype == torch.float64:
            assert (low == high).all()


def test_the_mean_of_many_samples_is_the_distribution() -> None:
    vocabulary, k, samples, n = 700, 4, 6, 20_000
    logits = zipf(1, vocabulary, seed=3).float()
    found = sampled_targets(logits.expand(n, -1), k, 1.0, samples, offsets(n))
    assert (found.top_ids == found.top_ids[:1]).all()
    p = others(logits, sampled_targets(logits, k, 1.0, 0, offsets(1)))[0]
    tail = p.sum()
    often = samples * p / tail
    share = often - np.floor(often)
    spread = np.sqrt(share * (1 - share) / n)
    z = (counted(found, vocabulary).mean(0) - often) / np.maximum(spread, 1e-12)
    enough = share * n > 20
    assert enough.sum() > 300
    assert np.abs(z[enough]).max() < stats.norm.isf(1e-4 / enough.sum())
    assert 0.8 < z[enough].std() < 1.2, "as far from 0 as chance takes it, and no further"


@quick
@given(
    seed=st.integers(0, 2**20),
    vocabulary=st.integers(3, 900),
    samples=st.integers(1, 40),
    power=st.floats(0, 4),
    data=st.data(),
)
def test_a_token_is_drawn_as_often_as_its_mass_says_rounded_up_or_down(
    seed: int, vocabulary: int, samples: int, power: float, data: Any
) -> None:
    k = data.draw(st.integers(1, vocabulary - 1))
    logits = zipf(4, vocabulary, seed, power)
    found = sampled_targets(logits, k, 1.0, samples, offsets(4, seed))
    p, drawn = others(logits, found), counted(found, vocabulary)
    often = samples * p / p.sum(-1, keepdims=True)
    assert (drawn.sum(-1) == samples).all()
    assert (np.floor(often - 1e-9) <= drawn).all() and (drawn <= np.ceil(often + 1e-9)).all()
    assert not drawn[p == 0].any(), "none of the kept"


def test_the_sample_varies_less_than_independent_draws() -> None:
    n, vocabulary, k, samples = 4000, 3000, 8, 12
    logits = zipf(1, vocabulary, seed=5)
    found = sampled_targets(logits.expand(n, -1), k, 1.0, samples, offsets(n))
    p = others(logits, sampled_targets(logits, k, 1.0, 0, offsets(1)))[0]
    tail, whole = p.sum(), np.exp(log_softmax(logits.numpy()))[0]
    errors = ((counted(found, vocabulary) * tail / samples - p) ** 2).sum(-1)
    from_the_tail = (tail**2 - (p**2).sum()) / samples
    from_all = (1 - (whole**2).sum()) / (k + samples)
    far = 5 * errors.std() / n**0.5
    assert errors.mean() + far < from_the_tail < from_all
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(samples, p / tail, n) * tail / samples
    independent = ((drawn - p) ** 2).sum(-1)
    assert independent.mean() == pytest.approx(from_the_tail, rel=0.05), "the formula holds"


@pytest.mark.parametrize("shares", [[1, 1, 1, 1], [3, 2, 1], [1, 5], [4]])
def test_a_sample_that_reaches_every_token_is_the_dense_distribution(shares: list[int]) -> None:
    masses = np.array([40.0, *shares, 30.0])
    masses /= masses.sum()
    logits = torch.tensor(np.log(masses))[None].expand(9, -1)
    found = sampled_targets(logits, 2, 1.0, sum(shares), 0.05 + 0.9 * offsets(9))
    estimate = counted(found, len(masses)) * (found.tail / sum(shares)).numpy()[:, None]
    np.put_along_axis(estimate, found.top_ids.numpy(), found.logprobs.exp().numpy(), -1)
    np.testing.assert_allclose(estimate, np.tile(masses, (9, 1)), rtol=1e-12)


@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-11), (torch.float32, 2e-5)])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_tail_entropy_is_that_of_the_definition(
    dtype: torch.dtype, close: float, temperature: float
) -> None:
    logits = torch.cat([zipf(8, 5000, power=power) for power in (0.0, 1.0, 3.0)]).to(dtype)
    found = sampled_targets(logits, 8, temperature, 2, offsets(24))
    p = others(logits, found, temperature)
    wanted = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
    np.testing.assert_allclose(found.tail_entropy, wanted, rtol=close, atol=1e-30)


@pytest.mark.parametrize("offset", [0.0, 0.5, 1 - 2**-53])
def test_no_token_without_mass_is_drawn(offset: float) -> None:
    logits = torch.full((3, 1000), -300.0)
    logits[:, [0, 999]] = 50.0  # kept
    logits[0, [255, 256]] = 0.0
    logits[1, 998] = 0.0
    logits[2, 1] = -299.0
    found = sampled_targets(logits, 2, 1.0, 7, torch.full((3,), offset, dtype=torch.float64))
    assert set(found.tail_ids[0].tolist()) == {255, 256}
    assert set(found.tail_ids[1].tolist()) == {998}
    assert not set(found.tail_ids[2].tolist()) & {0, 999}


def test_a_point_at_the_very_end_of_a_chunk_stays_in_it() -> None:
    # The float32 sum of a chunk is often a little more than its tokens' float64 sum.
    rng = np.random.default_rng(0)
    chunks = torch.tensor(rng.random((200, 3, 128)), dtype=torch.float32)
    chunks[:, :, [0, 127]] = 0.0
    up_to = chunks.sum(-1).double().cumsum(-1)
    points = up_to / up_to[:, -1:] * (1 - 1e-12)
    assert (chunks.sum(-1).double() > chunks.double().sum(-1)).float().mean() > 0.3
    assert outcomes._draw(chunks, up_to, points).tolist() == [[126, 128 + 126, 256 + 126]] * 200


@quick
@given(
    seed=st.integers(0, 2**20),
    vocabulary=st.sampled_from([3, 64, 130, 1000, 2561]),
    k=st.integers(1, 40),
    decimals=st.integers(0, 3),
)
def test_the_likeliest_are_those_of_a_sort(
    seed: int, vocabulary: int, k: int, decimals: int
) -> None:
    logits, k = zipf(3, vocabulary, seed).round(decimals=decimals), min(k, vocabulary)
    ids = sparse_targets(logits, k, 1.0)[0]
    assert torch.equal(logits.gather(-1, ids), logits.sort(-1, descending=True).values[:, :k])
    assert all(len(set(row)) == k for row in ids.tolist())


def test_a_slice_of_wider_logits_is_scored_as_its_copy() -> None:
    wide = zipf(6, 3000).float()
    part, offset = wide[:, :2900], offsets(6)
    for one, other in zip(
        sampled_targets(part, 8, 1.0, 5, offset),
        sampled_targets(part.contiguous(), 8, 1.0, 5, offset),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_offsets_are_decided_by_the_answer_and_spread_evenly() -> None:
    one = tail_offsets("answer 1", 4000)
    assert np.array_equal(one[:700], tail_offsets("answer 1", 700))
    assert abs(np.corrcoef(one, tail_offsets("answer 2", 4000))[0, 1]) < 0.06
    assert stats.kstest(one, "uniform").pvalue > 1e-3
    firsts = [tail_offsets(f"answer {i}", 1)[0] for i in range(2000)]
    assert stats.kstest(firsts, "uniform").pvalue > 1e-3


def test_a_whole_vocabulary_leaves_nothing_to_draw() -> None:
    logits = zipf(2, 12)
    with pytest.raises(InputError, match=r"top_k = 12 is .*whole vocabulary.*tail_samples = 0"):
        sampled_targets(logits, 12, 1.0, 1, offsets(2))
    found = sampled_targets(logits, 12, 1.0, 0, offsets(2))
    assert found.tail_ids.shape == (2, 0)
    assert not found.tail.any() and not found.tail_entropy.any()
