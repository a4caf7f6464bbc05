"""Does a family hold a group whose members all do as much? A bump in the law of their rates.

People who share a thing use it as unevenly as people do. So whatever the mix of honest users, the
law of their rates is a mixture of broad kernels; one narrow kernel more is a dispatcher's share.
Both mixtures are fitted by EM (the nonparametric maximum likelihood of Kiefer and Wolfowitz, 1956,
on a grid) and compared; honest users beside the members, many or few, do not hide them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from limbeck.guard.arrow import special

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BROAD, NARROW = 0.5, 0.06
"""CV² of the kernels. People's activity is near log-normal with sigma 0.8 to 1.2, CV² 0.9 to 3.2; a
campaign's accounts differ by their days alone."""
GRID = np.exp(np.arange(-1.4, 7.2, 0.3))
"""Mean calls of the kernels; `NARROW` ones from 1 on, below that nothing tells them apart."""
WHOLE = 64
"""Counts up to this are told one by one, larger ones in eighths of octaves."""
ROUNDS = 80


@dataclass(frozen=True, slots=True)
class Evenness:
    """Of one family: z of the narrow group, its accounts, their mean calls and CV², and all's.

    `belongs` is the probability that an account is of the group, for each of the counts given.
    """

    z: float
    members: float
    mean: float
    cv2: float
    all_cv2: float
    belongs: Floats


def binned(count: Ints) -> Ints:
    """The bin of each count, from 0."""
    above = WHOLE + np.floor(8 * np.log2(np.maximum(count, WHOLE) / WHOLE)).astype(np.int64)
    return np.minimum(np.where(count <= WHOLE, count, above), WHOLE + 8 * 7)


@lru_cache(maxsize=512)
def kernels(exposure: float) -> tuple[Floats, Floats]:
    """Likelihood of each bin (B, K) under broad and narrow kernels, of counts from 1 on."""
    bins = np.arange(WHOLE + 8 * 7 + 1)
    x = np.where(bins <= WHOLE, bins, np.round(WHOLE * 2 ** ((bins - WHOLE + 0.5) / 8)))[:, None]
    mean = exposure * GRID[None, :]

    def law(cv2: float) -> Floats:
        size = 1 / cv2
        log = special.gammaln(x + size) - special.gammaln(size) - special.gammaln(x + 1)
        log = log + size * np.log(size / (size + mean)) + x * np.log(mean / (size + mean))
        never = (size / (size + mean)) ** size
        return np.maximum(np.exp(log) / (1 - never), 1e-300)

    return law(BROAD), law(NARROW)


def evenness(x: Ints, n: Floats, exposure: Floats | None = None) -> Evenness:
    """The likelihood ratio of a narrow group among accounts with counts x.

    Args:
        x: Counts, from 1 on.
        n: Accounts with that count and exposure.
        exposure: By how much more or less than others they could call.
    """
    exposure = np.ones(len(x)) if exposure is None else exposure
    broad, narrow = np.empty((2, len(x), len(GRID)))
    bins = binned(x)
    for value in np.unique(exposure).tolist():
        rows = exposure == value
        for law, of in zip((broad, narrow), kernels(value), strict=True):
            law[rows] = of[bins[rows]]
    null, start = _fitted(broad, n, np.full(len(GRID), 1 / len(GRID)))
    best = _best(broad @ start, np.where(GRID >= 1, narrow, 1e-300), n)
    both, found = _fitted(
        np.hstack([broad, narrow[:, best : best + 1]]), n, np.append(0.8 * start, 0.2)
    )
    z = float(np.sqrt(max(0.0, 2 * (both - null))))
    mixed = found[-1] * narrow[:, best] + broad @ found[:-1]
    belongs = found[-1] * narrow[:, best] / mixed
    members = float(found[-1] * n.sum())
    return Evenness(z, members, float(GRID[best]), _cv2(x, n * belongs), _cv2(x, n), belongs)


def _cv2(x: Ints, n: Floats) -> float:
    """CV² of rates beyond that of Poisson counts."""
    mean = float(n @ x) / max(float(n.sum()), 1e-9)
    excess = float(n @ (x - mean) ** 2) / max(float(n.sum()), 1e-9) - mean
    return max(excess / max(mean, 1e-9) ** 2, 1e-3)


def either(x: Ints, days: Floats, n: Floats) -> Evenness:
    """The stronger of: all do as much, and all do as much a day that they are there.

    So accounts that are replaced one by one look no less even.
    """
    count, back = np.unique(x, return_inverse=True)
    whole = evenness(count, np.bincount(back, n).astype(np.float64))
    whole = replace(whole, belongs=whole.belongs[back])
    there = 2 ** (np.round(2 * np.log2(np.maximum(days, 1))) / 2)
    by_day = evenness(x, n, there / float(there.max()))
    return max(whole, by_day, key=lambda one: one.z)


def _fitted(law: Floats, n: Floats, weight: Floats) -> tuple[float, Floats]:
    """EM for the weights of fixed kernels (B, K): the log-likelihood and the weights."""
    total = n.sum()
    for _ in range(ROUNDS):
        weight = weight * ((n / (law @ weight)) @ law) / total
    return float(n @ np.log(law @ weight)), weight


def _best(null: Floats, narrow: Floats, n: Floats) -> int:
    """Which narrow kernel (B, K) beside the fixed null (B,) is likeliest, at its best weight."""
    weight = np.full(narrow.shape[1], 0.2)
    for _ in range(ROUNDS // 4):
        mixed = (1 - weight) * null[:, None] + weight * narrow
        weight = weight * (n @ (narrow / mixed)) / n.sum()
    return int((n @ np.log((1 - weight) * null[:, None] + weight * narrow)).argmax())
