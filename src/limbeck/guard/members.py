"""Named families → campaigns and their accounts, one campaign after another, the clearest first.

Several campaigns may work through one set-up, and one through several templates. So the users of
what was named are looked at in cells (a family of templates through a set-up, a way of asking
through a set-up), where hardly anybody honest is left. The clearest even group of all begins a
campaign; groups with the same accounts confirm it; who else belongs is told by what the calls look
like. Its accounts are then taken out, and what is left is looked at again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.guard import bags, even, marks, profile, score
from limbeck.guard.arrow import Table, column, numbers, pa
from limbeck.guard.engine import Engine
from limbeck.guard.families import LEAST, Families
from limbeck.guard.features import FAMILIES, LENGTHS, WAYS, Layer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

FLAG = 1e-4
"""An account is flagged at this p-value, within a named campaign."""
FIRM = 0.8
"""Accounts that belong to an even group with so much probability are what a campaign is learnt
from."""
LIKELY = 0.5
PURE = (0.3, 0.3, 0.5, 0.5)
"""Firm members stay so while they divide their calls alike with such a probability, turn by turn."""
COMMON = 20
"""Ways of asking, or lengths, that are looked at one by one."""
CELLS: dict[int, tuple[str, Layer]] = {1: ("recipe", "template"), 2: ("method", "client")}
"""Kinds of cells, and the layer whose null of evenness is theirs."""
MOST = 40
"""Campaigns of one log."""
MISFIT = 2
"""By how much more honest accounts reached a p-value than it says, on simulated logs."""
LITTLE = 4
"""A member does a share of the work: no less than the firm members' by this factor."""
MORE = 1.25
"""Members are at most so many times those that a family's evenness tells."""
FAMILY = 10
"""A payment that more accounts share is an agency's or a firm's."""
UNEVEN = 0.1
"""CV² of members' calls within a family: their days differ."""


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """Who belongs to what.

    Attributes:
        campaign: Of each account, −1 for none, (accounts,).
        p_value: Over all campaigns, (accounts,).
        families: The named families of each campaign.
        evidence: Each account's p-value over the families of one layer alone, (accounts,).
    """

    campaign: Ints
    p_value: Floats
    families: list[list[tuple[Layer, int]]]
    evidence: dict[Layer, Floats]


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """The users of one thing: accounts, their calls, and the days between their first and last."""

    layer: str
    key: int
    aid: Ints
    n: Ints
    days: Floats


@dataclass(frozen=True, slots=True, eq=False)
class _Bump:
    """The even group among a group's users: who is in it, how many, and how clearly."""

    of: _Group
    belongs: Floats  # (users,)
    members: float
    mean: float
    z: float

    @property
    def clear(self) -> float:
        """Accounts that are in it rather than not, beyond those as likely to be honest."""
        return float(np.clip(2 * self.belongs - 1, 0, None).sum())

    def spread(self, accounts: int) -> Floats:
        """The probability of each account of the log."""
        whole = np.zeros(accounts)
        whole[self.of.aid] = self.belongs
        return whole


@dataclass(frozen=True, slots=True, eq=False)
class _Campaign:
    """A core of firm members, the even groups that they were seen in, and every account's p-value.

    `users` is the share of honest accounts that make such calls at all.
    """

    core: Flags
    bumps: list[_Bump]
    p: Floats
    users: float


def assign(engine: Engine, tested: list[Families], calls: Ints) -> Members:
    """The campaigns behind the named families, and the accounts that belong to them.

    Args:
        engine: With the tables of the scan.
        tested: The families of each layer, judged.
        calls: Of each account, (accounts,).
    """
    named = [(families, int(at)) for families in tested for at in np.flatnonzero(families.named)]
    if not named:
        return Members(np.full(len(calls), -1), np.ones(len(calls)), [], {})
    groups = [_users(engine, families, at) for families, at in named]
    families = [(group.layer, group.key) for group in groups]
    prompts = any(families.layer == "template" for families in tested)
    if prompts:
        groups += _cells(engine, families)
    engine.table("parts", profile.parts(engine))
    engine.table("background", profile.background(prompts=prompts))
    null: dict[str, tuple[float, float]] = {one.layer: one.null for one in tested}
    null |= {cell: null[layer] for cell, layer in CELLS.values() if layer in null}
    found = _peeled(engine, groups, null, calls, prompts=prompts)
    p, users = np.ones((max(1, len(found)), len(calls))), np.zeros(max(1, len(found)))
    for place, one in enumerate(found):
        p[place], users[place] = one.p, one.users
    p = _together(engine, p)
    adjusted = score.over_all(p, users)
    campaign = np.where((adjusted <= FLAG) & bool(found), p.argmin(axis=0), -1)
    kept = [_parents(one.bumps, families) for one in found]
    return Members(campaign, adjusted, kept, {})


def _users(engine: Engine, families: Families, at: int) -> _Group:
    """The accounts of a named family, of those that live by it or those that do not."""
    layer, family = families.layer, int(families.family[at])
    rows = engine.fetch(
        f"""SELECT aid, n, days FROM hits_{layer}
            WHERE family = $family AND lives = $lives ORDER BY aid""",
        family=family,
        lives=int(families.lives[at]),
    )
    return _Group(layer, family, *_counts(rows))


def _counts(rows: Table) -> tuple[Ints, Ints, Floats]:
    return column(rows, "aid"), column(rows, "n"), numbers(rows, "days")


def _cells(engine: Engine, families: list[tuple[str, int]]) -> list[_Group]:
    """The users of each cell of the named set-ups and templates."""
    stacks = {key // LENGTHS if layer == "shape" else key for layer, key in families if layer != "template"}
    templates = {key for layer, key in families if layer == "template"}
    engine.table("cells", marks.cells(sorted(stacks), sorted(templates)))
    rows = engine.fetch(marks.large_cells(), least=LEAST)
    kind, key = column(rows, "kind"), column(rows, "key")
    cuts = np.flatnonzero((np.diff(kind) != 0) | (np.diff(key) != 0)) + 1
    parts = [np.split(one, cuts) for one in (kind, key, *_counts(rows))]
    return [
        _Group(CELLS[int(kind[0])][0], int(key[0]), aid, n, days)
        for kind, key, aid, n, days in zip(*parts, strict=True)
        if len(kind)
    ]


def _peeled(
    engine: Engine,
    groups: list[_Group],
    null: dict[str, tuple[float, float]],
    calls: Ints,
    *,
    prompts: bool,
) -> list[_Campaign]:
    """One campaign after another, until no group of what is left divides its calls evenly."""
    taken = np.zeros(len(calls), bool)
    found: list[_Campaign] = []
    fresh = dict(enumerate(groups))
    bumps: dict[int, _Bump] = {}
    while len(found) < MOST:
        for place, group in fresh.items():
            bump = _bump(group, taken)
            if bump is not None and score.above(np.array(bump.z), null[group.layer]) >= score.EVEN:
                bumps[place] = bump
            else:
                bumps.pop(place, None)
        core, joined = _first(list(bumps.values()), calls)
        if not joined:
            break
        one = _campaign(engine, core, joined, calls, taken, prompts=prompts)
        found.append(one)
        gone = core | (one.p <= FLAG)
        taken |= gone
        fresh = {place: groups[place] for place in bumps if gone[groups[place].aid].any()}
    if len(found) > 1:
        found = [
            _campaign(engine, one.core, one.bumps, calls, _others_of(found, one), prompts=prompts)
            for one in found
        ]
    return found


def _others_of(found: list[_Campaign], one: _Campaign) -> Flags:
    """The accounts of all campaigns but one."""
    return np.any([(other.p <= FLAG) & (one.p > other.p) for other in found], axis=0) & ~one.core


def _bump(group: _Group, taken: Flags) -> _Bump | None:
    """The even group among those users who are in no campaign yet."""
    free = ~taken[group.aid]
    if free.sum() < LEAST:
        return None
    pairs, back, users = np.unique(
        np.stack([group.n[free], group.days[free].astype(np.int64)]),
        axis=1, return_inverse=True, return_counts=True,
    )  # fmt: skip
    told = even.either(pairs[0], pairs[1].astype(float), users.astype(float))
    left = _Group(group.layer, group.key, group.aid[free], group.n[free], group.days[free])
    return _Bump(left, told.belongs[back.reshape(-1)], told.members, told.mean, told.z)


def _first(bumps: list[_Bump], calls: Ints) -> tuple[Flags, list[_Bump]]:
    """The clearest group that has firm members."""
    bumps = sorted(bumps, key=lambda bump: -bump.clear)
    for place in range(len(bumps)):
        core, joined = _core([bumps[place], *bumps[:place], *bumps[place + 1 :]], calls)
        if core.sum() >= LEAST // 2:
            return core, joined
    return np.zeros(len(calls), bool), []


def _core(bumps: list[_Bump], calls: Ints) -> tuple[Flags, list[_Bump]]:
    """Firm members of the first group and of those with the same accounts."""
    seed, likely = bumps[0], bumps[0].spread(len(calls)) >= LIKELY
    joined = [seed]
    for bump in bumps[1:]:
        mine = bump.spread(len(calls)) >= LIKELY
        both = (mine & likely).sum()
        if both and 2 * both >= min(mine.sum(), likely.sum()):
            joined.append(bump)
    odds = np.zeros(len(calls))
    for bump in joined:
        firm = _counted(bump, calls).firm[bump.of.aid]
        lost = 2 * firm.sum() < bump.members
        odds[bump.of.aid] += _odds(bump.belongs if lost else firm)
    return odds >= np.log(FIRM / (1 - FIRM)), joined


def _counted(bump: _Bump, calls: Ints) -> score.Membership:
    hits = np.zeros(len(calls), np.int64)
    hits[bump.of.aid] = bump.of.n
    begin = (bump.members, bump.mean, UNEVEN)
    return score.membership(hits, calls, begin, bump.spread(len(calls)))


def _odds(p: Floats) -> Floats:
    p = np.clip(p, 0.05, 0.95)
    return np.log(p / (1 - p))


def _campaign(
    engine: Engine, core: Flags, bumps: list[_Bump], calls: Ints, known: Flags, *, prompts: bool
) -> _Campaign:
    """Who belongs to a core: the least p-value of three statistics, at three times the p.

    What an account's calls look like; how it divides them within the campaign's set-ups; how many
    it made in the group that fewest honest accounts use.
    """
    core, divided = _pure(engine, core, bumps, calls, known, prompts=prompts)
    most = max(bump.members for bump in bumps)
    alike, users = _alike(engine, core, most, bumps, calls, known, prompts=prompts)
    rarest = min(bumps, key=lambda bump: len(bump.of.aid) - bump.members)
    counted = _counted(rarest, calls).p
    p = np.minimum(alike, counted)
    if not prompts:
        p = np.minimum(p, MISFIT * divided)
    return _Campaign(core, bumps, np.minimum(1, (2 if prompts else 3) * p), users)


def _pure(
    engine: Engine, core: Flags, bumps: list[_Bump], calls: Ints, known: Flags, *, prompts: bool
) -> tuple[Flags, Floats]:
    """Those of a core who divide their calls within its set-ups as most of it does; p of all.

    By ways of asking, or by lengths where there are no prompts: the commonest of the core's, what
    else goes through the set-ups, and all other calls.
    """
    p = np.ones(len(calls))
    stacks = sorted({stack for bump in bumps if (stack := _stack(bump.of)) is not None})
    if not stacks:
        return core, p
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
    for least in PURE:
        found = bags.belonging(held, core[aid], len(calls), known=known[aid])
        fits = np.zeros(len(calls), bool)
        fits[aid] = found.member >= least
        if (core & fits).sum() < LEAST // 2:
            break
        core = core & fits
        p[aid] = found.p
    return core, p


def _stack(group: _Group) -> int | None:
    """The set-up that a group's calls go through."""
    parts = {"client": 1, "shape": LENGTHS, "method": WAYS, "recipe": FAMILIES}
    return group.key // parts[group.layer] if group.layer in parts else None


def _alike(
    engine: Engine,
    core: Flags,
    most: float,
    bumps: list[_Bump],
    calls: Ints,
    known: Flags,
    *,
    prompts: bool,
) -> tuple[Floats, float]:
    """Each account's p-value by what its calls look like, and the share of honest users.

    Learnt from the calls that firm members (`core`) made within the groups, of which `most` divide
    one evenly; `known` belong to other campaigns. Judged twice where there are prompts, the second
    time without the set-up, as some of a campaign's accounts keep that of their cover; at twice the
    p. The laws never fit wholly, which costs another factor.
    """
    engine.keep("core", pa.table({"aid": np.flatnonzero(core)}))
    engine.table("work", profile.work([(bump.of.layer, bump.of.key) for bump in bumps]))
    made = engine.fetch("SELECT count(*) AS n FROM work")["n"][0].as_py()
    seen = engine.fetch(profile.seen(prompts=prompts))
    weights, others = profile.weights(seen, made, len(calls))
    engine.keep("weights", weights)
    counted = engine.fetch(profile.counts(profile.weighed(others, prompts=prompts)))
    aid = column(counted, "aid")
    firm = core[aid]
    p, users = np.ones((2, len(calls))), np.zeros(2)
    if firm.sum() < LEAST // 2:
        return p[0], 0.0
    for place, view in enumerate(profile.VIEWS if prompts else profile.VIEWS[:1]):
        reach = np.stack([numbers(counted, f"{view}_{i}") for i in range(len(profile.LEVELS))])
        suspect = reach[profile.SUSPECT]
        usual = suspect[firm].mean()
        near = suspect <= score.BEYOND * usual + 10
        members = MORE * max(float(firm.sum()), most)
        if view == "besides":
            members = float(firm.sum()) + _others(reach[:, near & ~firm & ~known[aid]])
        if members <= firm.sum():
            continue
        held = np.vstack([calls[aid].astype(np.float64), reach])
        held[:-1] -= held[1:]
        found = bags.belonging(held.T, firm, len(calls), members / len(aid), known[aid])
        p[place, aid] = np.where(near & (suspect >= usual / LITTLE), found.p, 1.0)
        users[place] = float((1 - found.member).sum()) / len(calls)
    return np.minimum(1, MISFIT * len(p) * p.min(axis=0)), float(users.max())


def _others(reach: Floats) -> float:
    """How many accounts besides the firm members divide such calls evenly, at any level; or 0."""
    told: list[even.Evenness] = []
    for one in reach[profile.SUSPECT :]:
        x, n = np.unique(one[one > 0].astype(np.int64), return_counts=True)
        if n.sum() >= LEAST:
            told.append(even.evenness(x, n.astype(np.float64)))
    most = max(told, key=lambda one: one.z, default=None)
    z = np.array([most.z if most else 0.0])
    return most.members if most and score.above(z, score.PRIOR_Z)[0] >= score.EVEN else 0.0


def _together(engine: Engine, p: Floats) -> Floats:
    """An account whose calls look a little like a campaign's, and whose payment is a member's.

    k accounts with one payment are judged as one: if all are honest, the least of their p-values is
    below t with a probability of at most k·t. Those that more than `FAMILY` share say nothing.
    """
    rows = engine.fetch(marks.payments(), most=FAMILY)
    aid, payment = column(rows, "aid"), column(rows, "payment")
    if not len(aid):
        return p
    size = np.bincount(payment)
    p = p.copy()
    for one in p:
        least = np.ones(len(size))
        np.minimum.at(least, payment, one[aid])
        shared = np.minimum(1, size[payment] * least[payment])
        one[aid] = np.where(one[aid] < 1, np.minimum(one[aid], shared), 1.0)
    return p


def _parents(bumps: list[_Bump], named: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The named families that a campaign's groups are, or are cells of."""
    found: set[tuple[str, int]] = set()
    for group in (bump.of for bump in bumps):
        layer, key, stack = group.layer, group.key, _stack(group)
        for of, other in named:
            same = (of, other) == (layer, key)
            same |= layer == "recipe" and of == "template" and other == key % FAMILIES
            same |= layer in ("recipe", "method") and of == "client" and other == stack
            same |= layer in ("recipe", "method") and of == "shape" and other // LENGTHS == stack
            if same:
                found.add((of, other))
    return sorted(found)
