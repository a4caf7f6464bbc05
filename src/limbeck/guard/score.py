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

from limbeck.guard.arrow import stats
from limbeck.guard.link import benjamini_hochberg

Floats = NDArray[np.float64]
NEIGHBOURS = 60
"""Families of like size whose median and spread are the null of one family."""
FEWEST = 20
"""With fewer families than this the log is no null of its own; the prior takes their place."""
PRIOR_EVEN = (0.4, 0.45, 3.0)
"""Median, spread and sampling error of log CV² where a log says too little: people's activity is
near log-normal with sigma 0.8 to 1.2 (CV² = e^σ² − 1, so 0.9 to 3.2), and the CV² of n such rates
is estimated with an error of about 3/√n on the log scale."""
PRIOR_BURSTS = (1.5, 0.6, 0.0)
"""The same of the log of calls within one hour over those that chance would put there."""
CAP = 6.0
FIRM = 0.5
REACH = 8
"""An account with so many times the members' calls is no member."""
EVEN, OTHER, OTHERS = 3.0, 1.0, 3.0


@dataclass(frozen=True, slots=True)
class Marks:
    """Marks of each family; larger is more like a dispatcher, on the scale of the null's spread.

    `even` is the division among accounts; `rest` are the others by name, 0 where nothing is known.
    """

    even: Floats
    rest: dict[str, Floats] = field(default_factory=dict[str, Floats])


def unevenness(
    members: Floats, x: Floats, xx: Floats, n: Floats, xn: Floats, nn: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """Log of an upper bound of CV² of the members' rates beyond Poisson noise, and if it is clear.

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
    alike = _excess(xx, x, x / members, members, x)
    by_days = _excess(xx, x, x / np.maximum(n, 1), nn, xn)
    return np.minimum(alike, by_days), _noise(x**2 / members) < np.exp(PRIOR_EVEN[0]) / 2


def _excess(xx: Floats, x: Floats, rate: Floats, nn: Floats, xn: Floats) -> Floats:
    square = rate**2 * nn
    value = (xx - 2 * rate * xn + square - x) / square
    return np.log(np.maximum(value, 0) + _noise(square))


def _noise(square: Floats) -> Floats:
    """Two standard errors of CV² where it is 0: the variance of Σ (x−e)² − x is 2·Σ e²."""
    return 2 * np.sqrt(2 / square)


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
    middle, firm, sampling = prior
    spread = np.sqrt(firm**2 + sampling**2 / np.maximum(size, 1))
    if clear.sum() >= FEWEST:
        middle = max(middle - FIRM * firm, float(np.median(value[clear])))
        low = np.quantile(((value - middle) / spread)[clear], 0.25)
        spread = spread * float(np.clip(-low / 0.6745, 1, 1.5))
    return (middle - value) / spread


def verdict(marks: Marks) -> tuple[Floats, Floats]:
    """The p-value of each family, and z of the marks besides evenness.

    Division of labour (`even`) is needed, and so is something else: the strongest other mark, at
    Bonferroni's price. That one is cut at z = 3, so that none speaks louder than the division.
    """
    even = np.clip(marks.even, -CAP, CAP)
    others = np.stack([np.clip(mark, -CAP, OTHERS) for mark in marks.rest.values()])
    least = np.minimum(0.5, len(others) * np.asarray(stats.norm.sf(others.max(axis=0))))
    rest = np.asarray(stats.norm.isf(least))
    p = both(np.asarray(stats.norm.sf(even)), least)
    return np.where((even >= EVEN) & (rest >= OTHER), p, 1.0), rest


def named(p: Floats, rate: float) -> NDArray[np.bool_]:
    """Which families are campaigns, at a false discovery rate."""
    return benjamini_hochberg(p, rate)


@dataclass(frozen=True, slots=True)
class Membership:
    """What EM found of one family: share of members, their mean calls, share of honest users.

    `p` is the p-value of each account, 1 for those without a call in the family.
    """

    members: float
    mean: float
    users: float
    p: Floats


def membership(
    hits: NDArray[np.int64],
    calls: NDArray[np.int64],
    uneven: float,
    honest: tuple[float, float],
    families: int = 1,
    rounds: int = 100,
) -> Membership:
    """How likely an honest account would hit a family as an account did.

    Fellegi–Sunter with counts: m(h) is the dispatcher's division, negative binomial with the
    family's own CV² `uneven`; u(h) is that of honest accounts: most never hit, a share `users`
    does, as unevenly as the log's users of other families do (beta-binomial with `honest`). EM
    (Dempster, Laird and Rubin, 1977) finds the members' share, mean and CV², and the honest users'
    share. p is the chance under u of a likelihood ratio m/u as large, so that an account which
    lives in the family wholly, as no member does, is no member.

    Args:
        hits: Calls of each account within the family.
        calls: All its calls.
        uneven: CV² of the members' rates, from which EM starts.
        honest: Parameters a, b of the beta law of an honest user's share of calls.
        families: How many are looked at; together they get one honest user more than EM found.
        rounds: Most EM rounds.
    """
    eighths = 2 ** ((8 * np.log2(np.maximum(calls, 1))).round() / 8)
    calls = np.maximum(hits, np.where(calls > 64, eighths.astype(np.int64), calls))
    pairs, back, weight = np.unique(
        np.stack([hits, calls]), axis=1, return_inverse=True, return_counts=True
    )
    h, n = pairs.astype(float)
    hit, total = h > 0, float(len(hits))
    use = np.zeros(len(h))
    use[hit] = np.exp(_used(h[hit], n[hit], honest))
    share, users = 0.9 * float(weight[hit].sum()) / total, 0.1 * float(weight[hit].sum()) / total
    mean, before = float((weight * h)[hit].sum() / weight[hit].sum()), 0.0
    for _ in range(rounds):
        m = np.exp(_divided(h, mean, uneven))
        u = np.where(hit, users * use, 1 - users)
        belongs = share * m / np.maximum(share * m + (1 - share) * u, 1e-300)
        share = float((weight * belongs).sum() / total)
        mass = weight * belongs
        mean = float((mass * h).sum() / max(mass.sum(), 1e-9))
        excess = float((mass * (h - mean) ** 2).sum() / max(mass.sum(), 1e-9)) - mean
        uneven = float(np.clip(excess / max(mean, 1e-9) ** 2, 0.02, 1.0))
        away = float((weight * (1 - belongs))[hit].sum())
        users = (away + 1 / families) / (total * (1 - share) + 1)
        if abs(mean - before) < 1e-4 * mean:
            break
        before = mean
    p = _tail(h, n, (mean, uneven), users, honest)
    return Membership(share, mean, users, p[back.reshape(-1)])


def calmness(
    ratio: Floats, hits: NDArray[np.int64], reference: Floats, of: NDArray[np.int64]
) -> Floats:
    """Conformal p-values: how rarely honest use of as many calls is spread over time as evenly.

    Args:
        ratio: Pairs within an hour over those that chance would put there, of each account.
        hits: Its calls.
        reference: The same ratio of accounts in families that nobody suspects.
        of: Their calls.
    """
    p = np.ones(len(ratio))
    mine, theirs = (np.log2(np.maximum(n, 1)).round() for n in (hits, of))
    for level in np.unique(mine):
        known = np.sort(reference[theirs == level])
        rows = mine == level
        p[rows] = (1 + np.searchsorted(known, ratio[rows], "right")) / (1 + len(known))
    return p


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


def both(p: Floats, q: Floats) -> Floats:
    """Fisher's combination of two independent p-values."""
    product = np.maximum(p * q, 1e-300)
    return product * (1 - np.log(product))


def _used(h: Floats, n: Floats, honest: tuple[float, float]) -> Floats:
    """Log-probability of h of n calls for an honest user, who has at least one."""
    never = np.asarray(stats.betabinom.logpmf(0, n, *honest))
    return np.asarray(stats.betabinom.logpmf(h, n, *honest)) - np.log(-np.expm1(never))


def _divided(h: Floats, mean: float, uneven: float) -> Floats:
    """Log-probability of h calls for a member: negative binomial with this CV² of the rate."""
    size = 1 / uneven
    return np.asarray(stats.nbinom.logpmf(h, size, size / (size + mean)))


def _tail(
    h: Floats, n: Floats, members: tuple[float, float], users: float, honest: tuple[float, float]
) -> Floats:
    """P under u of a likelihood ratio at least as large as that of (h, n).

    An account with far more calls than members have is none, so the law ends there.
    """
    p = np.ones(len(h))
    most = int(REACH * members[0]) + 30
    near = (h > 0) & (h <= most)
    for calls in np.unique(n[near]):
        rows = np.flatnonzero((n == calls) & near)
        grid = np.arange(1, min(int(calls), most) + 1, dtype=float)
        law = _used(grid, np.full(len(grid), calls), honest)
        ratio = _divided(grid, *members) - law
        order = np.argsort(-ratio, kind="stable")
        mass = np.empty(len(grid))
        mass[order] = np.exp(law)[order].cumsum()
        p[rows] = np.minimum(1, users * mass[h[rows].astype(int) - 1])
    return p


def beta_from(mean: Floats, square: Floats) -> tuple[float, float]:
    """The beta law of a user's share with this mean and mean square; a broad one if unknown."""
    first, second = (float(values[0]) if len(values) else np.nan for values in (mean, square))
    spread = second - first**2
    if not 0 < spread < first * (1 - first):
        return 0.3, 1.2
    strength = first * (1 - first) / spread - 1
    return first * strength, (1 - first) * strength
