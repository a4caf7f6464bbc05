"""Intervals for paired differences, resampled by prompt."""

from __future__ import annotations

import math
import warnings
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import InputError

Floats: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = NDArray[np.floating] | NDArray[np.integer]

_BATCH_VALUES = 1_000_000  # resampled values held at once: about 8 MB an array


def weighted_mean(values: Numbers, weights: Numbers | None = None) -> float:
    """The mean of `values` (n,), or sum(w·v) / sum(w) under `weights` (n,)."""
    if weights is None:
        return float(np.mean(values, dtype=np.float64))
    weights = np.asarray(weights, np.float64)
    return float(np.sum(weights * values) / np.sum(weights))


def fewest_prompts(confidence: float) -> int:
    """The smallest n at which an interval of this confidence can show anything: 6 at 0.95.

    No bootstrap interval reaches beyond its data, and n fair coins fall alike, on a given side,
    with probability 2^-n. Below this n that alone exceeds the error of one side.
    """
    return max(2, math.ceil(math.log2(2 / (1 - confidence))))


def paired_interval(
    deltas: Numbers,
    *,
    weights: Numbers | None = None,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """A two-sided interval for the mean difference, by the BCa bootstrap over prompts.

    The prompt is the cluster: each of the n `deltas` is one prompt's difference, averaged over its
    tokens where there are any. With `weights` (its token count), the mean is the ratio
    sum(w·d) / sum(w), and prompts are resampled with their weights; a prompt of weight 0 says
    nothing and is left out. Efron 1987; tails widened for small n as in Hesterberg 2015.

    Args:
        deltas: student minus other, a prompt each, (n,).
        weights: how much each prompt counts, (n,), none below 0.
        confidence: coverage aimed at, for example 0.95.
        resamples: bootstrap resamples.
        seed: the same seed and data give the same interval.

    Raises:
        InputError: fewer than two prompts, a value that is not finite, weights that do not fit.
    """
    values, counts = _checked(deltas, weights, confidence, resamples)
    if counts is not None and np.ptp(counts) == 0:
        counts = None
    least, most = float(values.min()), float(values.max())
    if least == most:
        return least, most
    low, high = _bca(values, counts, _widened(confidence, len(values)), resamples, seed)
    return max(float(low), least), min(float(high), most)  # rounding may step outside


def _bca(
    deltas: Floats, weights: Floats | None, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    from scipy.stats import bootstrap  # late: importing scipy.stats takes about a second

    data = (deltas,) if weights is None else (weights * deltas, weights)
    options: dict[str, Any] = {
        "statistic": np.mean if weights is None else _ratio,
        "paired": True,
        "vectorized": True,
        "confidence_level": confidence,
    }
    batch = max(1, min(resamples, _BATCH_VALUES // len(deltas)))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = bootstrap(
            data, **options, method="BCa", n_resamples=resamples, batch=batch, rng=seed
        )
        if not np.isfinite(found.confidence_interval).all():
            # BCa is undefined where the estimate lies outside all its resamples
            found = bootstrap(
                data, **options, method="percentile", n_resamples=0, bootstrap_result=found
            )
    return found.confidence_interval


def _ratio(numerator: Floats, denominator: Floats, axis: int = -1) -> Floats:
    return numerator.sum(axis=axis) / denominator.sum(axis=axis)


def _widened(confidence: float, n: int) -> float:
    """The nominal confidence at which bootstrap tails reach as far as Student's t would."""
    from scipy.special import ndtr, stdtrit

    reach = math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - confidence) / 2)
    return float(min(1 - 2 * ndtr(reach), 1 - 1e-12))  # BCa is undefined at 1


def _checked(
    deltas: Numbers, weights: Numbers | None, confidence: float, resamples: int
) -> tuple[Floats, Floats | None]:
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, not {confidence}")
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, not {resamples}")
    values = np.asarray(deltas, np.float64)
    if values.ndim != 1:
        raise InputError(f"paired differences must be one a prompt, not of shape {values.shape}")
    for row in np.flatnonzero(~np.isfinite(values)):
        raise InputError(f"the difference at prompt {row} is {values[row]}, not a number")
    counts = None
    if weights is not None:
        counts = np.asarray(weights, np.float64)
        if counts.shape != values.shape:
            raise InputError(f"{counts.size} weights do not fit {values.size} prompts")
        for row in np.flatnonzero(~(np.isfinite(counts) & (counts >= 0))):
            raise InputError(f"the weight of prompt {row} is {counts[row]}; it must be 0 or more")
        values, counts = values[counts > 0], counts[counts > 0]
    if values.size < 2:
        raise InputError(f"an interval needs at least 2 prompts, and there are {values.size}")
    return values, counts
