"""Named families → campaigns and their accounts, one campaign after another, the clearest first.

Several campaigns may work through one set-up, and one through several templates. So the users of
what was named are looked at in cells (a family of templates through a set-up, a way of asking
through a set-up), where hardly anybody honest is left. The clearest even group of all begins a
campaign; groups with the same accounts confirm it; who else belongs is told by what the calls look
like and what accounts these are. They are then taken out, and what is left is looked at again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from limbeck.guard import marks, profile, score, standing
from limbeck.guard.arrow import column, pa
from limbeck.guard.belonging import Campaign, follow, mended, taught, undivided
from limbeck.guard.engine import Engine
from limbeck.guard.families import LEAST, Families
from limbeck.guard.features import FAMILIES, LENGTHS, Layer
from limbeck.guard.groups import (
    CELLS,
    Bump,
    Flags,
    Floats,
    Group,
    Ints,
    by_count,
    cells,
    even_within,
    set_up,
    users,
)  # fmt: skip

FLAG = 1e-4
"""An account is flagged at this p-value, within a named campaign."""
FIRM = 0.8
"""Accounts that belong to an even group with so much probability are what a campaign is learnt
from."""
LIKELY = 0.5
"""Accounts in an even group with so much probability are compared: groups with half of the smaller
one's in common are one campaign's. Those likelier a campaign's than not are out of the next one's
way."""
SEEN_IN = 20
"""Groups, the clearest, that a core is told by: they overlap, so more of them tell no more."""
MOST = 40
"""Campaigns of one log."""
FAMILY = 10
"""A payment that more accounts share is an agency's or a firm's."""


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """Who belongs to what.

    Attributes:
        campaign: The number of each account's campaign, −1 for none, (accounts,).
        p_value: Of each account over all campaigns, (accounts,).
        families: The named families of each campaign; one may be that of several.
        evidence: The p-value of each account over the families of one layer alone, (accounts,).
        p_values: Of each campaign: how likely the clearest of its groups is among all groups that
            were tested, were these honest people's.
        honest: The probability that an account of a campaign is honest all the same, (accounts,).
        more: Whether there may be more campaigns than the `MOST` that were looked for.
    """

    campaign: Ints
    p_value: Floats
    families: dict[int, list[tuple[Layer, int]]]
    evidence: dict[Layer, Floats]
    p_values: dict[int, float]
    honest: Floats
    more: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """Groups that campaigns are looked for in.

    `null` is that of evenness in each layer and kind of cell, `tests` how many groups were tested,
    and `rate` the chance that a scan may take of naming any campaign where there is none.
    """

    groups: list[Group]
    null: dict[str, tuple[float, float]]
    tests: int
    rate: float

    def p_value(self, bumps: list[Bump], turn: int) -> float:
        """Of the clearest of some groups, over all groups tested and all turns (from 1)."""
        clearest = float(score.chance(np.array(max(bump.z for bump in bumps))))
        return min(1.0, self.tests * clearest / score.spent(turn))

    def first(self, bumps: list[Bump | None], turn: int, calls: Ints) -> tuple[Flags, list[Bump]]:
        """Firm members of the largest group that is no chance, (accounts,), and their groups."""
        even = [bump for bump in bumps if bump is not None and bump.z >= score.EVEN]
        even.sort(key=lambda bump: -bump.clear)
        for place, seed in enumerate(even):
            if self.p_value([seed], turn) <= self.rate:
                core, joined = _core([seed, *even[:place], *even[place + 1 :]], calls)
                if core.sum() >= LEAST // 2:
                    return core, joined
        return np.zeros(len(calls), bool), []


def assign(engine: Engine, tested: list[Families], calls: Ints, rate: float) -> Members:
    """The campaigns behind the named families, and the accounts that belong to them.

    Args:
        engine: With the tables of the scan.
        tested: The families of each layer, judged.
        calls: Of each account, (accounts,).
        rate: The chance of naming any campaign where there is none.
    """
    families: list[tuple[Layer, int]] = [
        (of.layer, int(family)) for of in tested for family in of.family[of.named]
    ]
    if not families:
        return _nobody(len(calls), {})
    prompts = any(of.layer == "template" for of in tested)
    search = _search(engine, tested, families, rate, prompts=prompts)
    none = np.zeros(len(calls), bool)
    whole = even_within(search.groups, none, search.null, engine.threads)
    evidence = _alone(engine, families, whole[: len(families)], calls)
    engine.table("paces", standing.paces(engine))
    engine.table("visits", standing.visits())
    engine.table("homes", standing.homes())
    engine.table("stood", standing.stood())
    engine.table("parts", profile.parts(engine))
    engine.table("background", profile.background(prompts=prompts))
    found = _peeled(engine, search, whole, calls, prompts=prompts)
    if not found:
        return _nobody(len(calls), evidence)
    engine.keep("learnt", profile.learnt({n: one.core.learnt for n, one in enumerate(found)}))
    p = _together(engine, np.stack([one.p for one in found]))
    adjusted = score.over_all(p, np.array([one.users for one in found]))
    campaign = np.where(adjusted <= FLAG, p.argmin(axis=0), -1)
    size = np.bincount(campaign[campaign >= 0], minlength=len(found))
    campaign = np.where(size[campaign] >= LEAST // 2, campaign, -1)  # of −1, what it was
    kept = {
        number: _parents(one.core.bumps, families)
        for number, one in enumerate(found)
        if size[number] >= LEAST // 2
    }
    sure = {number: found[number].core.p_value for number in kept}
    honest = _together(engine, 1 - np.stack([one.likely for one in found])).min(axis=0)
    return Members(campaign, adjusted, kept, evidence, sure, honest, more=len(found) == MOST)


def _nobody(accounts: int, evidence: dict[Layer, Floats]) -> Members:
    return Members(np.full(accounts, -1), np.ones(accounts), {}, evidence, {}, np.ones(accounts))


def _search(
    engine: Engine,
    tested: list[Families],
    families: list[tuple[Layer, int]],
    rate: float,
    *,
    prompts: bool,
) -> _Search:
    """The users of the named `families`, and those of their cells."""
    groups = users(engine, tested)
    if prompts:
        groups += cells(engine, families)
    null: dict[str, tuple[float, float]] = {one.layer: one.null for one in tested}
    null |= {cell: null[layer] for cell, layer in CELLS.values() if layer in null}
    # Each family was tested among those who live by it, and among the others.
    tests = 2 * sum(len(one.family) for one in tested) + len(groups) - len(families)
    return _Search(groups, null, tests, rate)


def _alone(
    engine: Engine, families: list[tuple[Layer, int]], bumps: list[Bump | None], calls: Ints
) -> dict[Layer, Floats]:
    """What each layer's named families say by themselves; keeps who is firm in them as `firm`."""
    evidence: dict[Layer, Floats] = {}
    firm: list[tuple[str, int, int]] = []
    for (layer, family), bump in zip(families, bumps, strict=True):
        if bump is not None:
            told = by_count(bump, calls)
            best = evidence.setdefault(layer, np.ones(len(calls)))
            best[bump.of.aid] = np.minimum(best[bump.of.aid], told.p)
            beyond = bump.of.aid[told.firm >= FIRM].tolist()
            firm += [(layer, family, aid) for aid in beyond]
    rows = {
        "layer": pa.array([layer for layer, _, _ in firm], pa.string()),
        "family": pa.array([family for _, family, _ in firm], pa.int64()),
        "aid": pa.array([aid for _, _, aid in firm], pa.int64()),
    }
    engine.keep("firm", pa.table(rows))
    return evidence


def _peeled(
    engine: Engine, search: _Search, bumps: list[Bump | None], calls: Ints, *, prompts: bool
) -> list[Campaign]:
    """One campaign after another, until no group of what is left divides its calls evenly."""
    # What a campaign leaves of its families is no honest family.
    worst = max(search.null.values(), key=lambda one: one[0] + score.EVEN * one[1])
    after = dict.fromkeys(search.null, worst)
    taken = np.zeros(len(calls), bool)
    found: list[Campaign] = []
    bumps = bumps.copy()
    while len(found) < MOST:
        turn = len(found) + 1
        core, joined = search.first(bumps, turn, calls)
        if not joined:
            break
        core = mended(engine, core, joined, calls, taken, prompts=prompts)
        if undivided(engine, core, joined):
            bumps = [None if any(bump is one for one in joined) else bump for bump in bumps]
            continue
        learnt = taught(engine, core, joined, search.p_value(joined, turn), prompts=prompts)
        one = follow(learnt, calls, taken)
        found.append(one)
        gone = core | (one.p <= FLAG) | (one.likely >= LIKELY)
        taken |= gone
        touched = [place for place, group in enumerate(search.groups) if gone[group.aid].any()]
        left = even_within([search.groups[p] for p in touched], taken, after, engine.threads)
        for place, bump in zip(touched, left, strict=True):
            bumps[place] = bump
    if len(found) > 1:
        found = [follow(one.core, calls, _others_of(found, one)) for one in found]
    return found


def _others_of(found: list[Campaign], one: Campaign) -> Flags:
    """The accounts of all campaigns but one."""
    return (
        np.any([(other.p <= FLAG) & (one.p > other.p) for other in found], axis=0)
        & ~one.core.members
    )


def _core(bumps: list[Bump], calls: Ints) -> tuple[Flags, list[Bump]]:
    """Firm members of the first group and of those with the same accounts; all these groups.

    Evenness' own posterior stands in where EM has lost most of a group's members: there, honest
    accounts are many, and their law takes them.
    """
    seed, likely = bumps[0], bumps[0].spread(len(calls)) >= LIKELY
    joined = [seed]
    for bump in bumps[1:]:
        mine = bump.spread(len(calls)) >= LIKELY
        both = (mine & likely).sum()
        if both and 2 * both >= min(mine.sum(), likely.sum()):
            joined.append(bump)
    odds = np.zeros(len(calls))
    for bump in joined[:SEEN_IN]:
        firm = by_count(bump, calls).firm
        lost = 2 * firm.sum() < bump.members
        odds[bump.of.aid] += _odds(bump.belongs if lost else firm)
    return odds >= np.log(FIRM / (1 - FIRM)), joined


def _odds(p: Floats) -> Floats:
    p = np.clip(p, 0.05, 0.95)
    return np.log(p / (1 - p))


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


def _parents(bumps: list[Bump], named: list[tuple[Layer, int]]) -> list[tuple[Layer, int]]:
    """The named families that a campaign's groups are, or are cells of."""
    found: set[tuple[Layer, int]] = set()
    for group in (bump.of for bump in bumps):
        layer, key, stack = group.layer, group.key, set_up(group)
        for of, other in named:
            same = (of, other) == (layer, key)
            same |= layer == "recipe" and of == "template" and other == key % FAMILIES
            same |= layer in ("recipe", "method") and of == "client" and other == stack
            same |= layer in ("recipe", "method") and of == "shape" and other // LENGTHS == stack
            if same:
                found.add((of, other))
    return sorted(found)
