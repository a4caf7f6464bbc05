from __future__ import annotations

import warnings
from itertools import product

import numpy as np
import pytest
from scipy import stats

from limbeck.errors import InputError
from limbeck.validate.stats import fewest_prompts, paired_interval, weighted_mean

USUAL = {"confidence": 0.95, "resamples": 2000, "seed": 0}


def exact_bca(deltas: np.ndarray, weights: np.ndarray, confidence: float) -> tuple[float, float]:
    """Efron's BCa over all n^n resamples, its tails widened by Hesterberg's rule."""
    n = len(deltas)

    def ratio(rows: np.ndarray) -> np.ndarray:
        return (weights[rows] * deltas[rows]).sum(-1) / weights[rows].sum(-1)

    every = np.array(list(product(range(n), repeat=n)))
    spread = ratio(every)
    estimate = ratio(np.arange(n))
    z0 = stats.norm.ppf((spread < estimate).mean() + (spread == estimate).mean() / 2)
    left = ratio(np.array([[j for j in range(n) if j != i] for i in range(n)]))
    pull = left.mean() - left
    acceleration = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5)
    z = np.sqrt(n / (n - 1)) * stats.t.ppf(0.5 + confidence / 2, n - 1)
    ends = [z0 + s * z for s in (-1, 1)]
    low, high = (stats.norm.cdf(z0 + e / (1 - acceleration * e)) for e in ends)
    return float(np.quantile(spread, low)), float(np.quantile(spread, high))


@pytest.mark.parametrize("weights", [[1, 1, 1, 1, 1, 1], [3, 1, 7, 2, 9, 4]])
def test_is_bca_over_all_resamples(weights: list[int]):
    deltas = np.array([0.31, -0.12, 0.57, 0.08, 1.93, 0.44])
    expected = exact_bca(deltas, np.array(weights, float), 0.8)
    found = paired_interval(
        deltas, weights=np.array(weights), confidence=0.8, resamples=60_000, seed=1
    )
    assert found == pytest.approx(expected, abs=0.02 * (expected[1] - expected[0]))


@pytest.mark.parametrize("kind", ["normal", "skewed", "weighted"])
def test_covers_a_known_mean_as_often_as_it_says(kind: str):
    rng = np.random.default_rng(8)
    n, runs = 60, 500
    sizes = np.arange(1, 41)
    missed = 0
    for run in range(runs):
        weights, truth = None, 0.0
        if kind == "normal":
            deltas = rng.normal(size=n)
        elif kind == "skewed":
            deltas, truth = rng.gamma(2.0, size=n), 2.0
        else:  # longer answers differ more: the ratio's truth is E[w²] / E[w], scaled
            weights = rng.choice(sizes, n)
            deltas = weights / 20 + rng.normal(size=n)
            truth = (sizes**2).mean() / sizes.mean() / 20
        low, high = paired_interval(
            deltas, weights=weights, confidence=0.95, resamples=500, seed=run
        )
        missed += not low <= truth <= high
    fewest, most = stats.binom.interval(0.999, runs, 0.05)
    assert fewest <= missed <= most


def test_weights_give_the_ratio_estimators_error():
    rng = np.random.default_rng(2)
    weights = rng.integers(1, 200, 800).astype(float)
    deltas = rng.normal(0.3, 1, 800) + weights / 100
    mean = (weights @ deltas) / weights.sum()
    error = np.sqrt(((weights * (deltas - mean)) ** 2).sum()) / weights.sum()
    low, high = paired_interval(deltas, weights=weights, **USUAL)
    assert (low + high) / 2 == pytest.approx(mean, abs=0.15 * error)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert weighted_mean(deltas, weights) == pytest.approx(mean, rel=1e-12)


def test_equal_weights_are_no_weights_and_their_scale_is_nothing():
    rng = np.random.default_rng(3)
    deltas, weights = rng.exponential(size=30), rng.integers(1, 9, 30)
    plain = paired_interval(deltas, **USUAL)
    assert paired_interval(deltas, weights=np.full(30, 7), **USUAL) == plain
    weighted = paired_interval(deltas, weights=weights, **USUAL)
    assert paired_interval(deltas, weights=weights * 1000, **USUAL) == pytest.approx(weighted)
    assert weighted != pytest.approx(plain)


def test_moves_with_shift_scale_and_sign():
    deltas = np.random.default_rng(4).exponential(size=25)
    low, high = paired_interval(deltas, **USUAL)
    assert paired_interval(3 * deltas + 10, **USUAL) == pytest.approx((3 * low + 10, 3 * high + 10))
    assert paired_interval(-deltas, **USUAL) == pytest.approx((-high, -low))


def test_leaves_out_prompts_of_no_weight():
    rng = np.random.default_rng(5)
    deltas, weights = rng.normal(size=20), rng.integers(1, 9, 20).astype(float)
    padded = np.append(deltas, [1e9, -1e9]), np.append(weights, [0, 0])
    expected = paired_interval(deltas, weights=weights, **USUAL)
    assert paired_interval(padded[0], weights=padded[1], **USUAL) == expected


def test_widens_with_confidence_and_repeats_by_seed():
    deltas = np.random.default_rng(6).normal(size=40)
    narrow = paired_interval(deltas, confidence=0.8, resamples=2000, seed=1)
    wide = paired_interval(deltas, confidence=0.99, resamples=2000, seed=1)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert paired_interval(deltas, confidence=0.8, resamples=2000, seed=1) == narrow
    assert paired_interval(deltas, confidence=0.8, resamples=2000, seed=2) != narrow


@pytest.mark.parametrize(
    "deltas",
    [
        [0.25] * 9,
        [1.0, 2.0],
        [1.0, 2.0, 2.0],
        [0.0] * 50 + [1.0],
        [0.0] * 9 + [1e-300],
        [1.0, 1.0 + 2e-16, 1.0],
        [0.1, 0.1, 0.1, 0.1 + 1e-17],
    ],
)
def test_degenerate_data_give_an_interval_and_no_warning(deltas: list[float]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for weights in (None, np.arange(1, len(deltas) + 1)):
            low, high = paired_interval(np.array(deltas), weights=weights, **USUAL)
            assert min(deltas) <= low <= high <= max(deltas)


@pytest.mark.parametrize(
    ("deltas", "weights", "complaint"),
    [
        ([], None, "at least 2 prompts, and there are 0"),
        ([0.1], None, "at least 2 prompts, and there are 1"),
        ([0.1, 0.2], [1, 0], "at least 2 prompts, and there are 1"),
        ([0.1, float("nan"), 0.2], None, "prompt 1 is nan"),
        ([0.1, 0.2, float("inf")], None, "prompt 2 is inf"),
        ([[0.1, 0.2]], None, "shape"),
        ([0.1, 0.2], [1, 2, 3], "3 weights do not fit 2 prompts"),
        ([0.1, 0.2], [1, -2], "prompt 1 is -2"),
    ],
)
def test_refuses_what_has_no_interval(deltas: list, weights: list | None, complaint: str):
    given = None if weights is None else np.array(weights)
    with pytest.raises(InputError, match=complaint):
        paired_interval(np.array(deltas), weights=given, **USUAL)


@pytest.mark.parametrize(("confidence", "resamples"), [(0.0, 10), (1.0, 10), (0.95, 0)])
def test_refuses_settings_without_meaning(confidence: float, resamples: int):
    with pytest.raises(InputError):
        paired_interval(np.arange(9.0), confidence=confidence, resamples=resamples, seed=0)


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95, 0.99])
def test_fewest_prompts_is_where_luck_alone_grows_rare(confidence: float):
    n = fewest_prompts(confidence)
    one_side = (1 - confidence) / 2
    assert stats.binomtest(n, n, 0.5, "greater").pvalue <= one_side
    assert stats.binomtest(n - 1, n - 1, 0.5, "greater").pvalue > one_side
