"""Targets packed and unpacked: what is exact, and how far the rest is off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from limbeck.collect.packing import ARRAYS, pack, together, unpack
from limbeck.errors import InputError
from limbeck.records import PackedTargets, Targets
from small import log_softmax

VOCABULARIES = [9, 500, 2**16, 2**16 + 1, 151_936, 2**18, 2**18 + 1, 2**20]
quick = settings(max_examples=60, deadline=None)


def made(
    n: int, vocabulary: int, k: int, samples: int, *, seed: int = 0, power: float = 1.2
) -> Targets:
    """Targets of the shape that a Zipf-like teacher gives, of random tokens."""
    rng = np.random.default_rng(seed)
    ranks = np.log(np.arange(1, min(vocabulary, 3000) + 1))
    log_p = -np.sort(-log_softmax(rng.normal(0, 0.5, (n, len(ranks))) - power * ranks))
    rest = log_p[:, k:]
    return Targets(
        answer_id=f"answer {seed}",
        token_ids=rng.integers(0, vocabulary, n),
        top_ids=rng.integers(0, vocabulary, (n, k)),
        logprobs=log_p[:, :k].astype(np.float32),
        tail=np.exp(rest).sum(-1).astype(np.float32),
        tail_ids=rng.integers(0, vocabulary, (n, samples)),
        tail_entropy=-(np.exp(rest) * rest).sum(-1).astype(np.float32),
        temperature=1.0,
        tokenizer_hash="tokenizer",
    )


def stored(targets: Targets, vocabulary: int) -> PackedTargets:
    rows = slice(0, len(targets.token_ids))
    tensors = pack([targets], vocabulary)
    return PackedTargets(targets.answer_id, tensors, rows, vocabulary, 1.0, "tokenizer")


def rounding(exact: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half a step of the codes, in nats, at a log-probability: the packing's table."""
    return np.sqrt(24 * -exact) / 255 + 24 / (4 * 255**2)


@quick
@given(
    seed=st.integers(0, 2**20),
    vocabulary=st.sampled_from(VOCABULARIES),
    n=st.integers(1, 12),
    k=st.integers(1, 40),
    samples=st.integers(0, 20),
    power=st.floats(0, 9),
)
def test_what_is_unpacked_is_what_was_packed_within_half_a_step(
    seed: int, vocabulary: int, n: int, k: int, samples: int, power: float
) -> None:
    k = min(k, vocabulary)
    wanted = made(n, vocabulary, k, samples, seed=seed, power=power)
    got = unpack(pack([wanted], vocabulary), vocabulary)
    for name in ARRAYS:
        there = getattr(wanted, name)
        assert got[name].shape == there.shape and got[name].dtype == there.dtype
        if name.endswith("_ids"):
            assert np.array_equal(got[name], there)
    exact, tail = wanted.logprobs.astype(np.float64), wanted.tail.astype(np.float64)
    half = 2.0**-11  # of a float16's last place, relative
    np.testing.assert_allclose(got["tail_entropy"], wanted.tail_entropy, rtol=half, atol=2**-24)
    off = half * -np.log(np.maximum(tail, 1e-300)) + 2**-24
    np.testing.assert_allclose(got["tail"], tail, rtol=1e-6 + 1.01 * off.max(), atol=0)
    total = np.exp(got["logprobs"].astype(np.float64)).sum(-1) + got["tail"]
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-6)
    deep = np.maximum(exact, -24)
    mass = np.exp(exact)
    # One factor a row makes up for the rounding of the K, and for that of the tail.
    common = 1.2 * (mass * rounding(deep)).sum(-1) / mass.sum(-1)
    common += 1.1 * off * tail / mass.sum(-1)
    assert (np.abs(got["logprobs"] - deep) <= rounding(deep) + common[:, None] + 1e-5).all()


@pytest.mark.parametrize("k", [1, 8, 32])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 4.0])
def test_rounding_costs_next_to_nothing(k: int, power: float) -> None:
    wanted = made(300, 3000, k, 0, power=power)
    got = unpack(pack([wanted], 3000), 3000)
    exact = np.concatenate([wanted.logprobs, np.log(wanted.tail)[:, None]], -1).astype(np.float64)
    read = np.concatenate([got["logprobs"], np.log(got["tail"])[:, None]], -1)
    kl = (np.exp(exact) * (exact - read)).sum(-1)
    assert kl.mean() < 1e-4 and kl.max() < 1e-3


def test_dense_targets_and_those_without_a_tail_are_kept() -> None:
    wanted = made(20, 3000, 3000, 0, power=0.0)
    got = unpack(pack([wanted], 3000), 3000)
    assert not got["tail"].any() and not got["tail_entropy"].any()
    assert got["tail_ids"].shape == (20, 0)
    exact = wanted.logprobs.astype(np.float64)
    assert (np.exp(exact) * (exact - got["logprobs"])).sum(-1).max() < 1e-3


def test_what_is_deeper_than_the_codes_counts_as_the_deepest() -> None:
    wanted = made(1, 500, 3, 0)
    wanted.logprobs[:] = [[0.0, -24.5, -np.inf]]
    wanted.tail[:] = 1e-30
    got = unpack(pack([wanted], 500), 500)
    np.testing.assert_allclose(got["logprobs"], [[0.0, -24.0, -24.0]], atol=1e-6)
    assert got["tail"] == pytest.approx(1e-30, rel=0.02)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_every_id_of_the_vocabulary_is_kept(vocabulary: int) -> None:
    wanted = made(50, vocabulary, 2, 5)
    edges = [i for i in (0, 1, 2**16 - 1, 2**16, 2**17, 2**18 - 1, 2**18) if i < vocabulary]
    wanted.tail_ids[: len(edges), 3] = edges
    wanted.token_ids[:] = vocabulary - 1
    got = unpack(pack([wanted], vocabulary), vocabulary)
    assert np.array_equal(got["tail_ids"], wanted.tail_ids)
    assert np.array_equal(got["top_ids"], wanted.top_ids)
    assert (got["token_ids"] == vocabulary - 1).all()


def test_a_vocabulary_beyond_the_ids_is_refused() -> None:
    with pytest.raises(InputError, match=r"up to 2\^20 tokens; the teacher has 1048577"):
        pack([made(1, 2**20 + 1, 1, 0)], 2**20 + 1)


@pytest.mark.parametrize("vocabulary", [500, 151_936])
def test_several_answers_are_unpacked_as_each_alone(vocabulary: int) -> None:
    answers = [made(n, vocabulary, 4, 3, seed=n) for n in (3, 1, 7)]
    one, two = pack(answers[:2], vocabulary), pack(answers[2:], vocabulary)
    parts: list[tuple[dict[str, Any], slice]] = [
        (two, slice(2, 6)), (one, slice(3, 4)), (one, slice(0, 3))
    ]  # fmt: skip
    packed = [PackedTargets("", where, rows, vocabulary, 1.0, "") for where, rows in parts]
    whole = together(packed)
    alone = [unpack({k: v[rows] for k, v in where.items()}, vocabulary) for where, rows in parts]
    for name in ARRAYS:
        np.testing.assert_allclose(
            whole[name], np.concatenate([a[name] for a in alone]), rtol=1e-6, err_msg=name
        )
    plain = together(answers)
    for name in ARRAYS:
        assert np.array_equal(plain[name], np.concatenate([getattr(a, name) for a in answers]))
