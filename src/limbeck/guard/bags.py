"""Accounts as bags of calls: how many calls of each weight, and whose bag that is.

A member's bag holds a little work of high weight among much that is like everybody's; an honest
account that happens to share the campaign's set-up or topics holds mostly such calls, or a stray
one. Each kind of bag is Dirichlet-multinomial: one law for the campaign's members, a mixture for
everybody else, fitted by EM to all accounts that have a suspect call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.guard.arrow import sparse, special

Floats = NDArray[np.float64]

KINDS = 12
"""Dirichlet-multinomial laws of honest bags."""
ROUNDS = 25
SAMPLE = 20_000
"""Bags of firm members, and others, that the laws are fitted to; more add nothing."""
MOST = 50.0
"""Of a law's concentration: no two people are as alike as coins."""
WHOLE = 200.0
"""Calls that a bag counts for at most; a larger one is shrunk."""
FINE, FINEST = 16, 256
"""Parts of a call to which shrunken bags are told, and those of less than one call, so that they
too hold few values."""
ODD, ODDS = 0.3, 0.01
"""The law of bags that are like nobody's, and its least share among the honest."""
SAFE, LEFT = 0.9, 0.02
"""Firm members stay so to this extent at least while honest laws are fitted, or one would take
them; and are no more than such a part of what these are fitted to, however large the campaign."""
LEAST_P = 1e-12


@dataclass(frozen=True, slots=True)
class Belonging:
    """Of each bag: the probability that it is a member's, and its p-value if it is not."""

    member: Floats
    p: Floats


def belonging(
    bags: Floats,
    firm: NDArray[np.bool_],
    accounts: int,
    most: float = 1.0,
    known: NDArray[np.bool_] | None = None,
    beside: Floats | None = None,
) -> Belonging:
    """Whose bags these are.

    p is the share of all accounts that are honest and have a likelihood ratio as high: the sum of
    their probabilities of being honest, so that members not yet known do not count in full.

    Args:
        bags: Calls of each weight, (n, levels), of the accounts that have a suspect call.
        firm: Which of them are members beyond doubt, (n,).
        accounts: All accounts of the log.
        most: The largest share of the bags that may be members'.
        known: Which are another campaign's, (n,): no honest law is learnt from them.
        beside: What else tells a member, as a log-likelihood ratio, (n,).
    """
    beside = np.zeros(len(bags)) if beside is None else beside
    others = np.zeros(len(bags)) if known is None else (known & ~firm).astype(float)
    bags = bags * np.minimum(1, WHOLE / bags.sum(1))[:, None]
    fine = np.where(bags < 1, FINEST, FINE)
    bags = np.rint(fine * bags) / fine
    step = np.maximum(np.where(firm, firm.sum(), len(bags)) // SAMPLE, 1)
    fitted = np.where(firm, np.cumsum(firm) - 1, np.arange(len(bags))) % step == 0
    few, tilt = _Held(bags[fitted]), beside[fitted]
    weight = (step * (1 - others))[fitted]
    first = firm[fitted].astype(float)
    kinds = np.ones((KINDS, len(bags[0])))
    member = few.dirichlet(first[:, None], kinds[:1], 30)
    own = few.law(member)[:, 0] + tilt
    of = np.eye(KINDS)[_kinds(bags[fitted], (first == 0) & (weight > 0))]
    share = min(0.5, 1.3 * float(firm.sum()) / max(float(weight.sum()), 1.0))
    crowd = few.dirichlet((weight * (1 - first))[:, None], kinds[:1], 30)
    honest = float((weight * (1 - first)).sum())
    safe = max(SAFE, 1 - LEFT * honest / max(float((weight * first).sum()), 1.0)) * first
    belongs = np.maximum(_odds(own - few.law(crowd)[:, 0], share), safe)
    mixing = np.full(KINDS, 1 / KINDS)
    for _ in range(ROUNDS):
        left = of * (weight * (1 - belongs))[:, None]
        kinds = few.dirichlet(left, kinds, 3)
        kinds[-1] = ODD
        mixing = left.sum(0) / max(float(left.sum()), 1e-9)
        mixing[-1] = max(mixing[-1], ODDS)
        of, total = _shared(few, kinds, mixing)
        belongs = np.maximum(_odds(own - total, share), safe)
        share = min(most, float((weight * belongs).sum() / max(float(weight.sum()), 1.0)))
    every = _Held(bags)
    _, honest_law = _shared(every, kinds, mixing)
    ratio = every.law(member)[:, 0] - honest_law + beside
    belongs = _odds(ratio, share)
    _, rank = np.unique(-ratio, return_inverse=True)  # bags that tie are as high
    p = np.cumsum(np.bincount(rank, (1 - belongs) * (1 - others)))[rank] / accounts
    return Belonging(belongs, np.clip(p, LEAST_P, 1))


def _shared(bags: _Held, kinds: Floats, mixing: Floats) -> tuple[Floats, Floats]:
    """Each kind's share in each bag, (n, K), and the bags' log-probabilities under all, (n,)."""
    each = bags.law(kinds) + np.log(mixing + 1e-12)
    most = each.max(1)
    of = np.exp(each - most[:, None])
    total = of.sum(1)
    return of / total[:, None], most + np.log(total)


def _odds(ratio: Floats, share: float) -> Floats:
    share = min(max(share, 1e-9), 1 - 1e-9)
    return 1 / (1 + np.exp(-np.clip(ratio + np.log(share / (1 - share)), -50, 50)))


class _Held:
    """Bags by the values that occur in each level, and by their sizes as one level more.

    These take few values, and a look-up costs a thirtieth of a gamma function.
    """

    def __init__(self, bags: Floats) -> None:
        columns = np.column_stack([bags, bags.sum(1)])
        rows, levels = len(columns), len(columns[0])
        found = [np.unique(level, return_inverse=True) for level in columns.T]
        self._starts = np.cumsum([0, *(len(values) for values, _ in found[:-1])])
        self._values = np.concatenate([values for values, _ in found])[:, None]
        self._level = np.repeat(np.arange(levels), [len(values) for values, _ in found])
        at = np.column_stack([back for _, back in found]) + self._starts
        bounds = np.arange(rows + 1) * levels
        self._has: Any = sparse.csr_array(
            (np.ones(at.size), at.ravel(), bounds), shape=(rows, len(self._values))
        )
        self._had_by: Any = self._has.T.tocsr()

    def law(self, laws: Floats) -> Floats:
        """Log-probability of each bag under `laws` (K, levels), (n, K).

        But for the multinomial coefficient, which all share.
        """
        a = self._with_sizes(laws)
        each = special.gammaln(self._values + a[self._level]) - special.gammaln(a)[self._level]
        each[self._starts[-1] :] *= -1
        return self._has @ each

    def dirichlet(self, weight: Floats, laws: Floats, rounds: int) -> Floats:
        """Minka's fixed point (2000) for the parameters, (K, levels), from `laws` on.

        Of bags taken `weight` (n, K) times.
        """
        of = self._had_by @ weight
        for _ in range(rounds):
            a = self._with_sizes(laws)
            each = special.digamma(self._values + a[self._level]) - special.digamma(a)[self._level]
            up = np.add.reduceat(of * each, self._starts)
            laws = np.clip((a * up / np.maximum(up[-1], 1e-9))[:-1].T, 1e-3, 1e3)
            laws = laws * np.minimum(1.0, MOST / laws.sum(1))[:, None]
        return laws

    @staticmethod
    def _with_sizes(laws: Floats) -> Floats:
        """Parameters (levels + 1, K): what sizes go by are the sums."""
        return np.vstack([laws.T, laws.sum(1)])


def _kinds(bags: Floats, honest: NDArray[np.bool_]) -> NDArray[np.int64]:
    """A first kind for each bag: that of the nearest of `KINDS` honest ones drawn from them."""
    log = np.log((bags + 0.2) / (bags + 0.2).sum(1, keepdims=True))
    among = np.flatnonzero(honest) if honest.any() else np.arange(len(bags))
    drawn = np.random.default_rng(0).choice(among, KINDS, replace=len(among) < KINDS)
    away = ((log[:, None] - log[drawn][None]) ** 2).sum(2)
    return away.argmin(1).astype(np.int64)
