"""Is a family of calls a division of labour? Marks, their honest nulls, and false discovery.

People who happen to use one thing (a tool, a tutorial, a rubric) use it as unevenly as people do,
at the hours at which people do, with the clients that they happen to have. A dispatcher that hands
out a work-list does none of that. The null of every mark is therefore taken from the log's own
families of like size: nearly all of them are honest, and campaigns among them only widen it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from limbeck.guard.link import benjamini_hochberg

Floats = NDArray[np.float64]
NEIGHBOURS = 200
"""Families of like size whose median and spread are the null of one family."""
FEWEST = 20
"""With fewer families than this the log is no null of its own; the prior takes their place."""
PRIOR_EVEN = (0.4, 0.6)
"""Median and spread of log CV² where a log says too little: activity of people is log-normal with
sigma near 1 (CV² = e^σ² − 1 = 1.7), as in the public traces of every shared service."""
CAP = 6.0
EVEN, OTHER = 3.0, 1.645


@dataclass(frozen=True, slots=True)
class Marks:
    """Marks of each family; larger is more like a dispatcher, on the scale of the null's spread.

    `even` is the division among accounts; `rest` are the others by name, 0 where nothing is known.
    """

    even: Floats
    rest: dict[str, Floats] = field(default_factory=dict[str, Floats])


def unevenness(members: Floats, x: Floats, xx: Floats, n: Floats, xn: Floats, nn: Floats) -> Floats:
    """Log of an upper bound of CV² of the members' rates, beyond Poisson noise: 0.05 is a machine.

    Counts x are overdispersed by CV²: Var x = e + CV²·e² with e the expectation, either equal for
    all members or proportional to the days that they were there (n); the smaller of both counts,
    so that accounts which are replaced one by one look no less even.

    Args:
        members: Accounts; x, xx, n, xn, nn: sums of x, x², n, x·n, n² over them.
        x: See there.
        xx: See there.
        n: See there.
        xn: See there.
        nn: See there.
    """
    x = np.maximum(x, 0.5)
    alike = _excess(xx, x, x / members, members, x, members)
    by_days = _excess(xx, x, x / np.maximum(n, 1), nn, xn, n)
    return np.minimum(alike, by_days)


def _excess(xx: Floats, x: Floats, rate: Floats, nn: Floats, xn: Floats, _: Floats) -> Floats:
    square = rate**2 * nn
    value = (xx - 2 * rate * xn + square - x) / square
    return np.log(np.maximum(value, 0) + 2 * np.sqrt(2 / square))


def against_alike(value: Floats, size: Floats, *, lower: bool) -> Floats:
    """How far each value lies beyond those of families of like size, in their spread.

    Spread is the larger of the scaled quartile and the scaled 5 % tail on the side that is tested,
    so that a skewed or heavy null is not taken for a normal one.
    """
    value = -value if lower else value
    order = np.argsort(size, kind="stable")
    ranked = value[order]
    z = np.zeros(len(value))
    half = NEIGHBOURS // 2
    for place, row in enumerate(order):
        start = max(0, min(place - half, len(value) - NEIGHBOURS))
        near = ranked[start : start + NEIGHBOURS]
        middle, quarter, tail = np.quantile(near, [0.5, 0.75, 0.95])
        spread = max((quarter - middle) / 0.6745, (tail - middle) / 1.645, 1e-3)
        z[row] = (value[row] - middle) / spread
    return z


def verdict(marks: Marks, size: Floats) -> tuple[Floats, Floats]:
    """The p-value of each family, and z of the marks besides evenness.

    Division of labour (`even`) is needed, and so is one more mark; both are added as z. The sum of
    the others is set against the same sum of families of like size, so that marks that go
    together among honest families are not counted twice.
    """
    even = np.clip(marks.even, -CAP, CAP)
    others = [np.clip(mark, -CAP / 2, CAP) for mark in marks.rest.values()]
    total = np.sum(others, axis=0) if others else np.zeros(len(even))
    rest = np.clip(against_alike(total, size, lower=False), -CAP, CAP) if len(even) >= FEWEST else (
        np.clip(total / max(1, len(others)) ** 0.5, -CAP, CAP)
    )
    gate = (even >= EVEN) & (rest >= OTHER)
    p = np.asarray(stats.norm.sf((even + rest) / np.sqrt(2)))
    return np.where(gate, p, 1.0), rest


def named(p: Floats, rate: float) -> NDArray[np.bool_]:
    """Which families are campaigns, at a false discovery rate."""
    return benjamini_hochberg(p, rate)


@dataclass(frozen=True, slots=True)
class Membership:
    """What EM found of one family: share of members, their rate a call, share of honest users."""

    members: float
    rate: float
    users: float
    p: Floats


def membership(hits: NDArray[np.int64], calls: NDArray[np.int64], honest: tuple[float, float],
               rounds: int = 60) -> Membership:  # fmt: skip
    """How likely an honest account would hit a family as an account did: p-values of all accounts.

    Fellegi–Sunter with counts: m(h) is binomial in the account's calls at the members' common rate
    (a dispatcher's share), u(h) that of honest accounts: most never hit, a share `users` does, as
    unevenly as the log's honest users of other families do (beta-binomial with `honest`). EM
    (Dempster, Laird and Rubin, 1977) finds the members' share and rate and the honest users' share;
    `honest` stays as it is. p is the chance under u of a likelihood ratio m/u as large, so an
    account that lives in the family wholly, as no member does, is no member.

    Args:
        hits: Calls of each account within the family.
        calls: All its calls.
        honest: Parameters a, b of the beta law of a user's share.
        rounds: Most EM rounds.
    """
    pairs, back, weight = np.unique(
        np.stack([hits, calls]), axis=1, return_inverse=True, return_counts=True
    )
    h, n = pairs.astype(float)
    n_all = float(len(hits))
    a, b = honest
    never = stats.betabinom.pmf(0, n, a, b)
    use = np.where(h > 0, stats.betabinom.pmf(h, n, a, b) / np.maximum(1 - never, 1e-12), 0.0)
    hit = h > 0
    share, users = float(weight[hit].sum()) / n_all, 2 / n_all
    rate = float((weight * h)[hit].sum() / max((weight * n)[hit].sum(), 1))
    for _ in range(rounds):
        m = np.asarray(stats.binom.pmf(h, n, rate))
        u = np.where(hit, users * use, 1 - users)
        belongs = share * m / np.maximum(share * m + (1 - share) * u, 1e-300)
        before = rate
        share = float((weight * belongs).sum() / n_all)
        rate = float((weight * belongs * h).sum() / max((weight * belongs * n).sum(), 1e-9))
        away = float((weight * (1 - belongs))[hit].sum())
        users = (away + 1) / max(n_all * (1 - share), 1)
        if abs(rate - before) < 1e-6:
            break
    p = _tail(h, n, rate, users, honest)
    return Membership(share, rate, users, p[back.reshape(-1)])


def _tail(h: Floats, n: Floats, rate: float, users: float, honest: tuple[float, float]) -> Floats:
    """P under u of a likelihood ratio at least as large as that of (h, n)."""
    a, b = honest
    p = np.ones(len(h))
    for calls in np.unique(n):
        rows = np.flatnonzero((n == calls) & (h > 0))
        if not len(rows):
            continue
        grid = np.arange(int(calls) + 1)
        law = np.asarray(stats.betabinom.logpmf(grid, calls, a, b))
        law[0] = -np.inf
        law = law - np.logaddexp.reduce(law)
        ratio = np.asarray(stats.binom.logpmf(grid, calls, rate)) - law - np.log(users)
        ratio[0] = np.asarray(stats.binom.logpmf(0, calls, rate)) - np.log1p(-users)
        order = np.argsort(-ratio, kind="stable")
        mass = np.where(grid == 0, 1 - users, users * np.exp(law))[order].cumsum()
        place = np.empty(len(grid), int)
        place[order] = grid
        p[rows] = np.minimum(1, mass[place[h[rows].astype(int)]])
    return p


def beta_of(share: Floats) -> tuple[float, float]:
    """The beta law with the mean and variance of honest users' shares, by moments."""
    if len(share) < FEWEST:
        return 0.3, 1.2
    mean, var = float(share.mean()), float(share.var())
    mean = min(max(mean, 1e-3), 0.999)
    strength = max(mean * (1 - mean) / max(var, 1e-6) - 1, 0.05)
    return mean * strength, (1 - mean) * strength
