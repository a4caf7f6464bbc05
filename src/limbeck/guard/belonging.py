"""Who belongs to a core of firm members: by what their calls look like, and who they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from limbeck.guard import bags, even, marks, profile, score, standing
from limbeck.guard.arrow import Table, column, numbers, pa
from limbeck.guard.engine import Engine
from limbeck.guard.families import LEAST
from limbeck.guard.groups import Bump, Flags, Floats, Ints, set_up

MISFIT = 2
"""By how much more honest accounts reached a p-value than it says, on simulated logs."""
BEYOND = 3
"""An account with more than so many times the members' calls lives by such calls."""
LITTLE = 4
"""A member does a share of the work: no less than the firm members' by this factor, and something
at all, or what an account is would accuse it."""
MORE = 1.25
"""Members are at most so many times those that a family's evenness tells."""
PURE = (0.3, 0.3, 0.5, 0.5)
"""Firm members stay so while they divide their calls as the others do with this probability, turn
by turn; a weak campaign would not outlive .8 at once."""
LISTED = 0.2
"""A work-list is divided; where a prompt is run by so many of the firm members, it is a public list
that each of them runs for itself."""
COMMON = 20
"""Ways of asking, or lengths, that are told apart; the rest count as one."""


@dataclass(frozen=True, slots=True, eq=False)
class Core:
    """Firm members and what they teach.

    `members` are (accounts,), `bumps` the even groups that they were seen in, and `p_value` that of
    the clearest of these among all groups that were tested. `learnt` is what `profile.weights`
    gave, `counted` what `profile.counts` did with it, and `beside` the odds of each account by what
    it is, (accounts,).
    """

    members: Flags
    bumps: list[Bump]
    p_value: float
    learnt: tuple[Table, dict[str, int]]
    counted: Table
    beside: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Campaign:
    """A core, and who belongs to it.

    `p` (an account's p-value if it is honest) and `likely` (the probability that it belongs) are
    (accounts,). `users` is the share of all accounts that are honest and make such calls at all.
    """

    core: Core
    p: Floats
    likely: Floats
    users: float


def mended(
    engine: Engine, core: Flags, bumps: list[Bump], calls: Ints, known: Flags, *, prompts: bool
) -> Flags:
    """Those of a core who divide their calls within its set-ups as most of it does.

    By ways of asking, or by lengths where there are no prompts: the commonest of the core's, what
    else goes through the set-ups, and all other calls.
    """
    stacks = sorted({stack for bump in bumps if (stack := set_up(bump.of)) is not None})
    if not stacks:
        return core
    rows = engine.fetch(marks.divided("method" if prompts else "shape", stacks))
    _, key = np.unique(column(rows, "key"), return_inverse=True)
    aid, at = np.unique(column(rows, "aid"), return_inverse=True)
    n = numbers(rows, "n")
    common = np.argsort(-np.bincount(key, n * core[aid][at]))[:COMMON]
    place = np.full(key.max(initial=0) + 1, COMMON)
    place[common] = np.arange(len(common))
    held = np.zeros((len(aid), COMMON + 2))
    np.add.at(held, (at, place[key]), n)
    held[:, -1] = calls[aid] - held.sum(1)
    beside = standing.odds(engine, core)[aid]
    member: Floats | None = None
    for least in PURE:
        if member is None:
            member = bags.belonging(held, core[aid], len(calls), 1.0, known[aid], beside).member
        left = np.zeros(len(calls), bool)
        left[aid] = core[aid] & (member >= least)
        if left.sum() < LEAST // 2:
            break
        if left.sum() < core.sum():
            core, member = left, None
    return core


def undivided(engine: Engine, core: Flags, bumps: list[Bump]) -> bool:
    """Whether a core's accounts all run the same prompts; keeps its calls in `bumps` as `work`."""
    engine.keep("core", pa.table({"aid": np.flatnonzero(core)}))
    engine.table("work", profile.work([(bump.of.layer, bump.of.key) for bump in bumps]))
    users = engine.fetch(profile.in_common())["users"][0].as_py()
    return users >= LISTED * core.sum()


def taught(
    engine: Engine, members: Flags, bumps: list[Bump], p_value: float, *, prompts: bool
) -> Core:
    """What firm members teach: what their calls within the groups weigh, and whose calls do.

    Args:
        engine: With the tables of the scan, `stood`, `parts`, `background` and `work`.
        members: Firm members, (accounts,).
        bumps: The even groups that they were seen in.
        p_value: Of the clearest of these.
        prompts: Whether the log has them.
    """
    made = engine.fetch("SELECT count(*) AS n FROM work")["n"][0].as_py()
    learnt = profile.weights(engine.fetch(profile.seen(prompts=prompts)), made, len(members))
    weights, others = learnt
    engine.keep("weights", weights)
    counted = engine.fetch(profile.counts(profile.weighed(others, prompts=prompts)))
    return Core(members, bumps, p_value, learnt, counted, standing.odds(engine, members))


def follow(core: Core, calls: Ints, known: Flags) -> Campaign:
    """Who belongs to a core.

    Judged twice, the second time without the set-up, as some of a campaign's accounts keep that of
    their cover; at twice the p. The laws never fit wholly, which costs another factor.

    Args:
        core: Firm members and what they taught.
        calls: Of each account, (accounts,).
        known: Who belongs to another campaign, (accounts,).
    """
    aid = column(core.counted, "aid")
    firm, beside = core.members[aid], core.beside[aid]
    p, member, users = np.ones((2, len(calls))), np.zeros((2, len(calls))), np.zeros(2)
    if firm.sum() < LEAST // 2:
        return Campaign(core, p[0], member[0], 1.0)
    most = max(bump.members for bump in core.bumps)
    for place, (view, least) in enumerate(profile.VIEWS.items()):
        reach = np.stack([numbers(core.counted, f"{view}_{i}") for i in range(len(profile.LEVELS))])
        suspect = reach[least]
        usual = suspect[firm].mean()
        near = suspect <= BEYOND * usual + 10
        members = MORE * max(float(firm.sum()), most)
        if view == "besides":
            members = 2 * float(firm.sum()) + _others(reach[:, near & ~firm & ~known[aid]])
        held = np.vstack([calls[aid].astype(np.float64), reach])
        held[:-1] -= held[1:]
        found = bags.belonging(held.T, firm, len(calls), members / len(aid), known[aid], beside)
        able = near & (suspect >= max(usual / LITTLE, 1))
        p[place, aid] = np.where(able, found.p, 1.0)
        member[place, aid] = np.where(able, found.member, 0.0)
        users[place] = float((1 - found.member).sum()) / len(calls)
    p = np.minimum(1, MISFIT * len(p) * p.min(axis=0))
    return Campaign(core, p, member.max(axis=0), float(users.max()))


def _others(reach: Floats) -> float:
    """How many accounts besides the firm members divide such calls evenly, at any level; or 0."""
    level, at = np.nonzero(reach > 0)
    counts = np.stack([level, reach[level, at].astype(np.int64)])
    (level, x), n = np.unique(counts, axis=1, return_counts=True)
    enough = np.bincount(level, n, minlength=len(reach))[level] >= LEAST
    if not enough.any():
        return 0.0
    of = np.unique(level[enough], return_inverse=True)[1]
    told = even.evenness(of, x[enough], n[enough].astype(np.float64))
    most = int(told.z.argmax())
    clear = score.above(told.z, score.PRIOR_Z)[most] >= score.EVEN
    return float(told.members[most]) if clear else 0.0
