"""Is a family of calls a division of labour? Marks, their honest nulls, and false discovery.

People who happen to use one thing (a tool, a tutorial, a rubric) use it as unevenly as people do,
at the hours at which people do, with the clients that they happen to have. A dispatcher that hands
out a work-list does none of that. The null of every mark is taken from the log's own families:
nearly all of them are honest, and campaigns among them only widen it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limbeck.guard.arrow import special, stats
from limbeck.guard.counts import Counts
from limbeck.guard.even import GRID
from limbeck.guard.link import benjamini_hochberg

Floats = NDArray[np.float64]
LogGamma: TypeAlias = Callable[[float], Floats]
"""log Γ of some counts and what is added to each."""
NEIGHBOURS = 60
"""Families of like size whose median and spread are the null of one family."""
FEWEST = 20
"""With fewer families than this the log is no null of its own; the prior takes their place."""
SHARES = 0.3, 1.2
"""The beta law of a user's share of its calls where nothing is known: most use a thing little."""
PRIOR_Z = (1.0, 0.6)
"""Median and spread of z of evenness among honest families."""
PRIOR_BURSTS = (1.5, 0.6, 0.0)
"""The same of the log of calls within one hour over those that chance would put there."""
CAP = 6.0
"""No mark has a z below −`CAP`."""
LOWER = 0.5
"""Spreads by which a log's own median of bursts may lie below its prior."""
REACH = 8
"""An account with so many times the members' calls is no member."""
EVEN, SURE, OTHERS = 4.0, 12.0, 3.0
"""z of evenness that is needed; the most that counts, and the most of another mark."""
KERNELS = len(GRID)
"""Places at which a narrow group is looked for, each a test of its own."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Marks of each family; larger is more like a dispatcher, on the scale of the null's spread.

    `even` is the division among accounts; `rest` are the others by name, 0 where nothing is known.
    """

    even: Floats
    rest: dict[str, Floats] = field(default_factory=dict[str, Floats])


def null(z: Floats) -> tuple[float, float]:
    """Middle and spread of evenness z among the log's own families, nearly all honest.

    That of a likelihood ratio whose place is searched for. The median is not taken for less than
    `PRIOR_Z` has it, nor the spread, so that few families make no sharp null.
    """
    middle, spread = PRIOR_Z
    if len(z) >= FEWEST:
        middle, high = np.maximum(np.quantile(z, [0.5, 0.75]), middle)
        spread = max(spread, float(high - middle) / 0.6745)
    return float(middle), spread


def above(z: Floats, null: tuple[float, float]) -> Floats:
    """How far evenness z stands out from its null, in spreads."""
    return (z - null[0]) / null[1]


def against_alike(value: Floats, size: Floats, least: float = 0.02) -> Floats:
    """How far each value lies above those of families of like size, in their spread.

    The spread is that of the upper quartile, which stays honest until every fourth neighbour is a
    campaign's.
    """
    if not len(value):
        return value
    order = np.argsort(size, kind="stable")
    ranked = value[order]
    windows = np.lib.stride_tricks.sliding_window_view(ranked, min(NEIGHBOURS, len(value)))
    middle, quarter = np.quantile(windows, [0.5, 0.75], axis=1)
    start = np.clip(np.arange(len(value)) - NEIGHBOURS // 2, 0, len(windows) - 1)
    z = np.empty(len(value))
    spread = np.maximum((quarter - middle) / 0.6745, least)
    z[order] = (ranked - middle[start]) / spread[start]
    return z


def bursts(pairs: Floats, room: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Log of an upper bound of how much oftener than by chance an account's calls share an hour.

    People work in sessions; a dispatcher spreads an account's turns over the day.

    Args:
        pairs: Ordered pairs of calls of one account within one clock hour.
        room: How many there would be, were the calls spread evenly over the account's days.

    Returns:
        The bound, and whether a family has enough calls to say.
    """
    bound = pairs + 2 * np.sqrt(pairs + 1) + 2
    return np.log(bound / np.maximum(room, 1e-9)), room >= 3


def below(
    value: Floats, clear: NDArray[np.bool_], prior: tuple[float, float, float], size: Floats
) -> Floats:
    """How far below the log's own families each value lies, in the spread of families of its size.

    Args:
        value: Upper bounds, on a log scale.
        clear: Where the bound is not mostly noise; the others are no part of the null.
        prior: Median, spread, and the spread that sampling one account alone would add: families
            of n members spread by sqrt(spread² + sampling²/n). However many families of a log are
            hostile, the median is not taken for more than half a spread below, nor the spread for
            smaller, or for more than half as large again.
        size: Members.
    """
    middle, usual, sampling = prior
    spread = np.sqrt(usual**2 + sampling**2 / np.maximum(size, 1))
    if clear.sum() >= FEWEST:
        middle = max(middle - LOWER * usual, float(np.median(value[clear])))
        low = np.quantile(((value - middle) / spread)[clear], 0.25)
        spread = spread * float(np.clip(-low / 0.6745, 1, 1.5))
    return (middle - value) / spread


def verdict(marks: Marks) -> tuple[Floats, Floats]:
    """The p-value of each family, and z of the marks besides evenness.

    Division of labour (`even`) decides. The strongest other mark, at Bonferroni's price, is told
    beside it and decides nothing: members are too few among a set-up's users to show it.
    """
    others = np.stack([np.clip(mark, -CAP, OTHERS) for mark in marks.rest.values()])
    least = np.minimum(0.5, len(others) * np.asarray(stats.norm.sf(others.max(axis=0))))
    return chance(marks.even), np.asarray(stats.norm.isf(least))


def chance(z: Floats) -> Floats:
    """The p-value of evenness that stands out from its null by z spreads; 1 below `EVEN`.

    As many spreads of `PRIOR_Z` give the root of twice the log-likelihood that one narrow kernel
    gains. Its weight is on the edge of its range, so for one kernel that is a normal tail (Self and
    Liang, 1987); Bonferroni's is the price of choosing among all.
    """
    middle, spread = PRIOR_Z
    tail = KERNELS * np.asarray(stats.norm.sf(middle + spread * np.minimum(z, SURE)))
    return np.where(z >= EVEN, np.minimum(tail, 1.0), 1.0)


def spent(turn: int) -> float:
    """The share of an error rate that one turn (from 1) may use; those of all turns sum to 1."""
    return 1 / (turn * (turn + 1))


def named(p: Floats, rate: float) -> NDArray[np.bool_]:
    """Which families are campaigns, at a false discovery rate."""
    return benjamini_hochberg(p, rate)


@dataclass(frozen=True, slots=True)
class Membership:
    """What EM found of one group: the share of all accounts that are members.

    `firm` is the probability that a user is one, `p` its p-value if it is not, both (users,).
    """

    members: float
    firm: Floats
    p: Floats


def membership(
    hits: NDArray[np.int64],
    calls: NDArray[np.int64],
    accounts: int,
    begin: tuple[float, float, float],
    first: Floats,
    exposure: Floats | None = None,
    rounds: int = 60,
) -> Membership:
    """How likely an honest account would hit a family as an account did.

    Fellegi–Sunter with counts: m(h) is the dispatcher's division, negative binomial; u(h | n) is
    that of honest accounts with n calls: most never hit, a share `users` does, unevenly
    (beta-binomial). EM (Dempster, Laird and Rubin, 1977) finds the members' number and u. p is the
    chance under u of a likelihood ratio m/u as large, so that an account which lives in the family
    wholly, as no member does, is no member.

    Args:
        hits: Calls of each user within the group, from 1 on, (users,).
        calls: All its calls, (users,).
        accounts: All accounts, users or not.
        begin: Number of members, their mean calls and CV² as first found; the last two stay.
        first: How likely each user is a member, as first found, (users,).
        exposure: Of what `begin` says of a member's calls, how much each could make, (users,).
        rounds: EM rounds.
    """
    members, mean, uneven = begin
    eighths = 2 ** ((8 * np.log2(calls)).round() / 8)
    calls = np.maximum(hits, np.where(calls > 64, eighths.astype(np.int64), calls))
    most = int(calls.max(initial=0)) + 1
    exposure = np.ones(len(hits)) if exposure is None else exposure
    could, of = np.unique(exposure, return_inverse=True)
    cells = (of * (int(hits.max(initial=0)) + 1) + hits) * most + calls
    _, at, back, many = np.unique(cells, return_index=True, return_inverse=True, return_counts=True)
    h, n, means = hits[at].astype(float), calls[at].astype(float), mean * exposure[at]
    weight, others = many.astype(float), float(accounts - len(hits))
    usual = mean * float(first @ exposure) / max(float(first.sum()), 1e-9)
    m, never = np.exp(_divided(h, means, uneven)), float(np.exp(_divided(0.0, usual, uneven)))
    counts = Counts.of(h).gammaln, Counts.of(n - h).gammaln, Counts.of(n).gammaln
    belongs = np.bincount(back, first, len(at)) / weight
    share, users, law = min(members / accounts, 0.5), 0.0, SHARES
    for _ in range(rounds):
        away = weight * (1 - belongs)
        users = (float(away.sum()) + 1) / accounts
        law = _beta(h / n, away)
        belongs = _posterior(share, m, users * np.exp(_used(counts, law)))
        unseen = float(_posterior(share, never, 1 - users))
        share = (float((weight * belongs).sum()) + others * unseen) / accounts
    p = np.ones(len(at))
    for each, one in enumerate((mean * could).tolist()):
        mine = of[at] == each
        p[mine] = _tail(h[mine], n[mine], (one, uneven), users, law)
    return Membership(share, belongs[back], p[back])


def _posterior(share: float, member: Any, honest: Any) -> Any:
    return share * member / np.maximum(share * member + (1 - share) * honest, 1e-300)


def over_all(p: Floats, users: Floats) -> Floats:
    """Each account's p-value over all named families, (families, accounts) → (accounts,).

    By the union bound the chance that an honest account reaches t somewhere is at most
    Σ_f min(t, users_f), since in family f it must be a user first: a template that honest accounts
    never touch costs almost nothing, however many such families there are.
    """
    best = p.min(axis=0)
    levels, back = np.unique(best, return_inverse=True)
    total = np.minimum(levels[None, :], users[:, None]).sum(axis=0) if len(users) else levels
    return np.where(best < 1, np.minimum(1, np.maximum(levels, total)[back.reshape(-1)]), 1.0)


def _used(counts: tuple[LogGamma, LogGamma, LogGamma], law: tuple[float, float]) -> Floats:
    """Log-probability of h of n calls for an honest user, who has at least one.

    Of h, n − h and n the `counts`.
    """
    h, left, n = counts
    a, b = law
    whole = n(a + b) + float(special.betaln(a, b))
    never = n(b) + float(special.gammaln(a)) - whole
    chosen = n(1) - h(1) - left(1)
    return chosen + h(a) + left(b) - whole - np.log(-np.expm1(never))


def _beta(share: Floats, weight: Floats) -> tuple[float, float]:
    """The beta law of a user's share with these moments, and those of a few users of a broad one.

    Else, where hardly anybody honest uses a thing, it would take the members.
    """
    a, b = SHARES
    mean = a / (a + b)
    square = mean * (a + 1) / (a + b + 1)
    total = float(weight.sum()) + FEWEST
    first = (float((weight * share).sum()) + FEWEST * mean) / total
    spread = (float((weight * share**2).sum()) + FEWEST * square) / total - first**2
    strength = first * (1 - first) / spread - 1
    return first * strength, (1 - first) * strength


def _divided(h: Any, mean: Any, uneven: float) -> Floats:
    """Log-probability of h calls for a member: negative binomial with this CV² of the rate."""
    size = 1 / uneven
    return np.asarray(stats.nbinom.logpmf(h, size, size / (size + mean)))


def _tail(
    h: Floats, n: Floats, members: tuple[float, float], users: float, law: tuple[float, float]
) -> Floats:
    """P under u of a likelihood ratio at least as large as that of (h, n).

    An account with far more calls than members have is none, so the law ends there.
    """
    p = np.ones(len(h))
    most = int(REACH * members[0]) + 30
    near = np.flatnonzero(h <= most)
    if not len(near):
        return p
    calls, of = np.unique(n[near], return_inverse=True)
    grid, total = np.arange(1.0, min(most, calls[-1]) + 1), calls[:, None]
    left = np.maximum(total - grid, 0)
    use = _used((partial(_gammaln, grid), partial(_gammaln, left), partial(_gammaln, total)), law)
    use = np.where(grid <= total, use, -np.inf)
    order = np.argsort(use - _divided(grid, *members), axis=1, kind="stable")
    mass = np.empty_like(use)
    np.put_along_axis(mass, order, np.take_along_axis(np.exp(use), order, 1).cumsum(axis=1), 1)
    p[near] = np.minimum(1, users * mass[of, h[near].astype(int) - 1])
    return p


def _gammaln(counts: Floats, plus: float) -> Floats:
    return np.asarray(special.gammaln(counts + plus))
