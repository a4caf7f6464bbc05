"""Does a family hold a group whose members all do as much? A bump in the law of their rates.

People who share a thing use it as unevenly as people do. So whatever the mix of honest users, the
law of their rates is a mixture of broad kernels; one narrow kernel more is a dispatcher's share.
Both mixtures are fitted by EM (the nonparametric maximum likelihood of Kiefer and Wolfowitz, 1956,
on a grid) and compared; honest users beside the members, many or few, do not hide them. Plain EM
creeps: after 80 rounds a family of thousands has its null so far from fitted that the other mixture
gains by fitting it further. So steps are extrapolated, both mixtures are given as many, and where z
is in doubt they are fitted to the end.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.guard.arrow import sparse, special

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

BROAD, NARROW = 0.5, 0.06
"""CV² of the kernels. People's activity is near log-normal with sigma 0.8 to 1.2, CV² 0.9 to 3.2; a
campaign's accounts differ by their days alone."""
MIXED = np.exp(np.arange(-1.4, 7.2, 0.45))
"""Mean calls of the broad kernels."""
GRID = np.exp(np.arange(0.1, 7.2, 0.3))
"""Mean calls of the narrow ones, from 1 on: below that nothing tells them apart."""
WHOLE = 64
"""Counts up to this are told one by one, larger ones in eighths of octaves."""
BINS = WHOLE + 8 * 7 + 1
CYCLES = 15, 10
"""Cycles of extrapolated EM: the null's first, and those of both mixtures after it."""
DOUBT, GAP, STEPS = (2.5, 8.0), 1e-3, 50
"""Between these z families are fitted to the end, to such a gap in log-likelihood, in at most so
many steps: they are what campaigns are made of, and hundreds among ten thousands."""
TRIED = 3
"""Narrow kernels that are tried then: the likeliest where the null stays as it is, and that of the
first fit."""
ROUNDS = 20
"""EM rounds for the weight of one narrow kernel, where the likeliest is looked for."""
LEAST_CV2 = 1e-3
"""No CV² is told for less: counts are seen to vary no more than Poisson's."""
BLOCK = 16_000
"""Rows that are fitted at once: they stay in a processor's own memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Evenness:
    """Of each family (families,): z of the narrow group, its accounts, their mean calls and CV².

    `all_cv2` is that of all users, and `by_day` says whether they are even by the day, so that
    `mean` is that of the longest there and CV² that of rates; `belongs` is the probability that an
    account is of its family's group, for each of the counts given, (n,).
    """

    z: Floats
    members: Floats
    mean: Floats
    cv2: Floats
    all_cv2: Floats
    belongs: Floats
    by_day: Flags


OF_FAMILY = ("z", "members", "mean", "cv2", "all_cv2")


def binned(count: Ints) -> Ints:
    """The bin of each count, from 0."""
    above = WHOLE + np.floor(8 * np.log2(np.maximum(count, WHOLE) / WHOLE)).astype(np.int64)
    return np.minimum(np.where(count <= WHOLE, count, above), BINS - 1)


@lru_cache(maxsize=512)
def kernels(exposure: float) -> tuple[Floats, Floats]:
    """Likelihood of each bin (B, K) under broad and narrow kernels, of counts from 1 on."""
    bins = np.arange(BINS)
    x = np.where(bins <= WHOLE, bins, np.round(WHOLE * 2 ** ((bins - WHOLE + 0.5) / 8)))[:, None]

    def law(cv2: float, means: Floats) -> Floats:
        size, mean = 1 / cv2, exposure * means[None, :]
        log = special.gammaln(x + size) - special.gammaln(size) - special.gammaln(x + 1)
        log = log + size * np.log(size / (size + mean)) + x * np.log(mean / (size + mean))
        never = (size / (size + mean)) ** size
        return np.maximum(np.exp(log) / (1 - never), 1e-300)

    return law(BROAD, MIXED), law(NARROW, GRID)


def evenness(
    of: Ints, x: Ints, n: Floats, exposure: Floats | None = None, threads: int = 1
) -> Evenness:
    """The likelihood ratio of a narrow group among the accounts of each family.

    Args:
        of: The family of each count, (n,): from 0 on, ascending, none left out.
        x: Counts, from 1 on.
        n: Accounts with that count and exposure.
        exposure: By how much more or less than others they could call.
        threads: How many may work at it.
    """
    exposure = np.ones(len(x)) if exposure is None else exposure
    could, which = np.unique(exposure, return_inverse=True)
    cell = which * BINS + binned(x)
    laws = [np.concatenate(law) for law in zip(*map(kernels, could.tolist()), strict=True)]
    first = np.flatnonzero(np.diff(of, prepend=-1))
    cuts = first[1:][np.diff(np.append(first[1:], len(of)) // BLOCK) > 0]

    def block(low: int, high: int) -> Evenness:
        at = slice(low, high)
        return _told(of[at], x[at], n[at], exposure[at], cell[at], laws)

    with ThreadPoolExecutor(threads) as pool:
        bounds = np.unique([0, *cuts.tolist(), len(of)]).tolist()
        parts = list(pool.map(block, bounds[:-1], bounds[1:]))
    each: dict[str, Floats] = {
        name: np.concatenate([np.zeros(0), *(getattr(part, name) for part in parts)])
        for name in (*OF_FAMILY, "belongs")
    }
    return Evenness(**each, by_day=np.zeros(len(each["z"]), np.bool_))


def _told(
    of: Ints, x: Ints, n: Floats, exposure: Floats, cell: Ints, laws: list[Floats]
) -> Evenness:
    """`evenness` of some families at once; `laws` are likelihoods of each cell, (cells, K)."""
    of = of - of[0]
    cells, back = np.unique(of * len(laws[0]) + cell, return_inverse=True)
    family = cells // len(laws[0])
    broad, narrow = (law[cells % len(laws[0])] for law in laws)
    weight = np.bincount(back, n).astype(np.float64)
    z, best, share = _compared(family, weight, broad, narrow)
    for one in np.flatnonzero((z >= DOUBT[0]) & (z < DOUBT[1])).tolist():
        at = slice(*np.searchsorted(family, [one, one + 1]))
        z[one], best[one], share[one] = _settled(weight[at], broad[at], narrow[at], int(best[one]))
    own = share[family, -1] * narrow[np.arange(len(cells)), best[family]]
    belongs = own / (own + np.einsum("nk,nk->n", broad, share[family, :-1]))
    of_each = belongs[back]
    return Evenness(
        z, share[:, -1] * np.bincount(family, weight), GRID[best],
        _cv2(of, x, n * of_each, exposure), _cv2(of, x, n, exposure), of_each,
        np.zeros(len(z), np.bool_),
    )  # fmt: skip


def _compared(
    family: Ints, n: Floats, broad: Floats, narrow: Floats
) -> tuple[Floats, Ints, Floats]:
    """Each family's z, its likeliest narrow kernel, and the weights (families, K + 1) with it."""
    rows = _Rows(family, n)
    begin = np.full((rows.families, len(MIXED)), 1 / len(MIXED))
    begin = rows.fitted(broad, begin, CYCLES[0])
    best = rows.gains(np.einsum("nk,nk->n", broad, begin[family]), narrow).argmax(axis=1)
    both = np.column_stack([broad, narrow[np.arange(len(n)), best[family]]])
    null = rows.fitted(broad, begin, CYCLES[1])
    beside = np.column_stack([0.8 * begin, np.full(rows.families, 0.2)])
    beside = rows.fitted(both, beside, CYCLES[1])
    gain = rows.likelihood(both, beside) - rows.likelihood(broad, null)
    return np.sqrt(np.maximum(0.0, 2 * gain)), best, beside


def _settled(n: Floats, broad: Floats, narrow: Floats, best: int) -> tuple[float, int, Floats]:
    """The same of one family, both mixtures fitted to the end, with the best of a few kernels."""
    null = broad @ likeliest(broad, n)
    gains = _Rows(np.zeros(len(n), np.int64), n).gains(null, narrow)[0]
    found: list[tuple[float, int, Floats]] = []
    for one in {best, *np.argsort(gains)[-TRIED:].tolist()}:
        both = np.column_stack([broad, narrow[:, one]])
        share = likeliest(both, n)
        found.append((float(n @ np.log(both @ share / null)), one, share))
    gain, one, share = max(found, key=lambda told: told[0])
    return np.sqrt(max(0.0, 2 * gain)), one, share


def likeliest(law: Floats, n: Floats) -> Floats:
    """The likeliest weights (K,) of fixed kernels (n, K), by primal-dual interior point.

    It is convex: least is −Σ n log(law @ w) + N Σ w over w ≥ 0 (Koenker and Mizera, 2014).
    """
    total, count = float(n.sum()), len(law[0])
    weight: Floats = np.ones(count) / count
    slack: Floats = np.ones(count) * (0.1 * total)
    for _ in range(STEPS):
        up = law / (law @ weight)[:, None]
        near = weight @ slack / (10 * count)
        bend = (up * n[:, None]).T @ up + np.diag(slack / weight)
        step = np.linalg.solve(bend, near / weight - total + n @ up)
        rise = (near - slack * step) / weight - slack
        reach = min(1.0, 0.95 / max(float((-step / weight).max()), float((-rise / slack).max())))
        weight += reach * step
        slack += reach * rise
        if weight @ slack < GAP:
            break
    return weight / weight.sum()


def _cv2(of: Ints, x: Ints, n: Floats, exposure: Floats) -> Floats:
    """CV² of each family's rates beyond that of Poisson counts."""
    rate = np.bincount(of, n * x) / np.maximum(np.bincount(of, n * exposure), 1e-9)
    mean = rate[of] * exposure
    excess = np.bincount(of, n * ((x - mean) ** 2 - mean))
    return np.maximum(excess / np.maximum(np.bincount(of, n * mean**2), 1e-9), LEAST_CV2)


def either(of: Ints, x: Ints, days: Floats, n: Floats, threads: int = 1) -> Evenness:
    """The stronger, of each family: all do as much, and all do as much a day that they are there.

    So accounts that are replaced one by one look no less even.
    """
    whole = evenness(of, x, n, threads=threads)
    there = present(days)
    most = np.maximum.reduceat(there, np.flatnonzero(np.diff(of, prepend=-1)))[of]
    by_day = evenness(of, x, n, there / most, threads)
    better = by_day.z > whole.z
    each: dict[str, Floats] = {
        name: np.where(better, getattr(by_day, name), getattr(whole, name)) for name in OF_FAMILY
    }
    belongs = np.where(better[of], by_day.belongs, whole.belongs)
    return Evenness(**each, belongs=belongs, by_day=better)


def present(days: Floats) -> Floats:
    """Days in half octaves: few values, so that few laws are needed."""
    return np.asarray(2 ** (np.round(2 * np.log2(np.maximum(days, 1))) / 2))


class _Rows:
    """Counts of several families, a row each, those of one family together."""

    def __init__(self, of: Ints, n: Floats) -> None:
        self._of, self._n = of, n
        first = np.flatnonzero(np.diff(of, prepend=-1))
        self.families = len(first)
        bounds, rows = np.append(first, len(of)), np.arange(len(of))
        shape = (self.families, len(of))
        self._each: Any = sparse.csr_array((n, rows, bounds), shape=shape)
        self.total = self._summed(n, np.ones((len(of), 1)))

    def fitted(self, law: Floats, weight: Floats, cycles: int) -> Floats:
        """The weights (families, K) of fixed kernels (n, K): EM, extrapolated.

        By SQUAREM's third scheme (Varadhan and Roland, 2008), cut short where a weight would not
        stay positive.
        """
        for _ in range(cycles):
            once = self._step(law, weight)
            twice = self._step(law, once)
            speed, bend = once - weight, twice - 2 * once + weight
            length = np.sqrt((speed**2).sum(1) / np.maximum((bend**2).sum(1), 1e-300))
            length = np.maximum(length, 1)[:, None]
            far = weight + 2 * length * speed + length**2 * bend
            room = np.where(far < 0, 0.99 * twice / np.maximum(twice - far, 1e-300), 1).min(1)
            weight = self._step(law, twice + room[:, None] * (far - twice))
        return weight

    def likelihood(self, law: Floats, weight: Floats) -> Floats:
        """The log-likelihood of each family, (families,)."""
        return self._summed(self._n, np.log(self._mixed(law, weight))[:, None])[:, 0]

    def gains(self, null: Floats, narrow: Floats) -> Floats:
        """What each narrow kernel (n, K) beside the fixed null (n,) gains, at its best weight."""
        weight = np.full((self.families, narrow.shape[1]), 0.2)
        beyond = narrow / null[:, None] - 1
        for _ in range(ROUNDS):
            mixed = 1 + weight.take(self._of, axis=0) * beyond
            weight = weight * self._summed(self._n, (beyond + 1) / mixed) / self.total
        gain = np.log(1 + weight.take(self._of, axis=0) * beyond)
        return self._summed(self._n, gain)

    def _step(self, law: Floats, weight: Floats) -> Floats:
        return weight * self._summed(self._n / self._mixed(law, weight), law) / self.total

    def _mixed(self, law: Floats, weight: Floats) -> Floats:
        return np.einsum("nk,nk->n", law, weight.take(self._of, axis=0))

    def _summed(self, n: Floats, values: Floats) -> Floats:
        """Sums (families, K) of values (n, K), each taken `n` times."""
        self._each.data = n
        return self._each @ values
