"""Does a family hold a group whose members all do as much? A bump in the law of their rates.

People who share a thing use it as unevenly as people do. So whatever the mix of honest users, the
law of their rates is a mixture of broad kernels; one narrow kernel more is a dispatcher's share.
Both mixtures are fitted by EM (the nonparametric maximum likelihood of Kiefer and Wolfowitz, 1956,
on a grid) and compared; honest users beside the members, many or few, do not hide them.
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

BROAD, NARROW = 0.5, 0.06
"""CV² of the kernels. People's activity is near log-normal with sigma 0.8 to 1.2, CV² 0.9 to 3.2; a
campaign's accounts differ by their days alone."""
GRID = np.exp(np.arange(-1.4, 7.2, 0.3))
"""Mean calls of the kernels; `NARROW` ones from 1 on, below that nothing tells them apart."""
ALONE = int(np.searchsorted(GRID, 1.0))
"""The first of the `NARROW` kernels."""
WHOLE = 64
"""Counts up to this are told one by one, larger ones in eighths of octaves."""
BINS = WHOLE + 8 * 7 + 1
ROUNDS = 80
BLOCK = 16_000
"""Rows that are fitted at once: they stay in a processor's own memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Evenness:
    """Of each family (families,): z of the narrow group, its accounts, their mean calls and CV².

    `all_cv2` is that of all users; `belongs` the probability that an account is of its family's
    group, for each of the counts given, (n,).
    """

    z: Floats
    members: Floats
    mean: Floats
    cv2: Floats
    all_cv2: Floats
    belongs: Floats


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
    mean = exposure * GRID[None, :]

    def law(cv2: float) -> Floats:
        size = 1 / cv2
        log = special.gammaln(x + size) - special.gammaln(size) - special.gammaln(x + 1)
        log = log + size * np.log(size / (size + mean)) + x * np.log(mean / (size + mean))
        never = (size / (size + mean)) ** size
        return np.maximum(np.exp(log) / (1 - never), 1e-300)

    return law(BROAD), law(NARROW)


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
        return _told(of[low:high], x[low:high], n[low:high], cell[low:high], laws)

    with ThreadPoolExecutor(threads) as pool:
        bounds = np.unique([0, *cuts.tolist(), len(of)]).tolist()
        parts = list(pool.map(block, bounds[:-1], bounds[1:]))
    each: dict[str, Floats] = {
        name: np.concatenate([np.zeros(0), *(getattr(part, name) for part in parts)])
        for name in (*OF_FAMILY, "belongs")
    }
    return Evenness(**each)


def _told(of: Ints, x: Ints, n: Floats, cell: Ints, laws: list[Floats]) -> Evenness:
    """`evenness` of some families at once; `laws` are likelihoods of each cell, (cells, K)."""
    of = of - of[0]
    cells, back = np.unique(of * len(laws[0]) + cell, return_inverse=True)
    family = cells // len(laws[0])
    broad, narrow = (law[cells % len(laws[0])] for law in laws)
    rows = _Rows(family, np.bincount(back, n).astype(np.float64))
    even = np.full((rows.families, len(GRID)), 1 / len(GRID))
    null, start = rows.fitted(broad, even)
    best = ALONE + rows.best(np.einsum("nk,nk->n", broad, start[family]), narrow[:, ALONE:])
    beside = narrow[np.arange(len(cells)), best[family]]
    begin = np.column_stack([0.8 * start, np.full(rows.families, 0.2)])
    both, found = rows.fitted(np.column_stack([broad, beside]), begin)
    own = found[family, -1] * beside
    belongs = own / (own + np.einsum("nk,nk->n", broad, found[family, :-1]))
    z = np.sqrt(np.maximum(0.0, 2 * (both - null)))
    of_each = belongs[back]
    return Evenness(
        z, found[:, -1] * rows.total, GRID[best],
        _cv2(of, x, n * of_each), _cv2(of, x, n), of_each,
    )  # fmt: skip


def _cv2(of: Ints, x: Ints, n: Floats) -> Floats:
    """CV² of each family's rates beyond that of Poisson counts."""
    total = np.maximum(np.bincount(of, n), 1e-9)
    mean = np.bincount(of, n * x) / total
    excess = np.bincount(of, n * (x - mean[of]) ** 2) / total - mean
    return np.maximum(excess / np.maximum(mean, 1e-9) ** 2, 1e-3)


def either(of: Ints, x: Ints, days: Floats, n: Floats, threads: int = 1) -> Evenness:
    """The stronger, of each family: all do as much, and all do as much a day that they are there.

    So accounts that are replaced one by one look no less even.
    """
    whole = evenness(of, x, n, threads=threads)
    there = 2 ** (np.round(2 * np.log2(np.maximum(days, 1))) / 2)
    most = np.maximum.reduceat(there, np.flatnonzero(np.diff(of, prepend=-1)))[of]
    by_day = evenness(of, x, n, there / most, threads)
    better = by_day.z > whole.z
    each: dict[str, Floats] = {
        name: np.where(better, getattr(by_day, name), getattr(whole, name)) for name in OF_FAMILY
    }
    return Evenness(**each, belongs=np.where(better[of], by_day.belongs, whole.belongs))


class _Rows:
    """Counts of several families, a row each, those of one family together."""

    def __init__(self, of: Ints, n: Floats) -> None:
        self._of, self._n = of, n
        self._first = np.flatnonzero(np.diff(of, prepend=-1))
        self._bounds = np.append(self._first, len(of)).astype(np.int32)
        self._rows = np.arange(len(of), dtype=np.int32)
        self.families = len(self._first)
        self.total = np.add.reduceat(n, self._first)

    def fitted(self, law: Floats, weight: Floats) -> tuple[Floats, Floats]:
        """EM for the weights (families, K) of fixed kernels (n, K): log-likelihoods, weights."""
        for _ in range(ROUNDS):
            mixed = np.einsum("nk,nk->n", law, weight[self._of])
            weight = weight * (self._each(self._n / mixed) @ law) / self.total[:, None]
        mixed = np.einsum("nk,nk->n", law, weight[self._of])
        return np.add.reduceat(self._n * np.log(mixed), self._first), weight

    def _each(self, n: Floats) -> Any:
        """The matrix (families, n) that sums the rows of each family, each taken `n` times."""
        shape = (self.families, len(n))
        return sparse.csr_array((n, self._rows, self._bounds), shape=shape)

    def best(self, null: Floats, narrow: Floats) -> Ints:
        """Which narrow kernel (n, K) beside the fixed null (n,) is likeliest, at best weight."""
        weight = np.full((self.families, narrow.shape[1]), 0.2)
        beyond = narrow / null[:, None] - 1
        for _ in range(ROUNDS // 4):
            mixed = 1 + weight[self._of] * beyond
            up = np.add.reduceat((beyond + 1) / mixed * self._n[:, None], self._first)
            weight = weight * up / self.total[:, None]
        each = np.log(1 + weight[self._of] * beyond) * self._n[:, None]
        return np.add.reduceat(each, self._first).argmax(axis=1)
