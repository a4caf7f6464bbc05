"""The users of what was named, in whole and in cells, and who divides it evenly among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limbeck.guard import even, marks, score
from limbeck.guard.arrow import Table, column, numbers, pa
from limbeck.guard.engine import Engine
from limbeck.guard.families import LEAST, Families
from limbeck.guard.features import FAMILIES, LENGTHS, WAYS, Layer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

CELLS: dict[int, tuple[str, Layer]] = {1: ("recipe", "template"), 2: ("method", "client")}
"""Kinds of cells, and the layer whose null of evenness is theirs."""
UNEVEN = 0.1
"""CV² of members' calls within a family: their days differ."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The users of one thing, (users,) each: accounts, calls with it, days from first to last call.

    `layer` is a layer of `features` or a kind of `CELLS`, `key` its key there.
    """

    layer: str
    key: int
    aid: Ints
    n: Ints
    days: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Bump:
    """The even group among a group's users: who is in it, how many, and how clearly.

    `mean` is their calls, or where they are even `by_day` those of the longest there; `z` is how
    far evenness stands out from its null, in spreads.
    """

    of: Group
    belongs: Floats  # (users,)
    members: float
    mean: float
    z: float
    by_day: bool

    @property
    def clear(self) -> float:
        """Accounts that are in it rather than not; one as likely to be honest counts nothing."""
        return float(np.clip(2 * self.belongs - 1, 0, None).sum())

    def spread(self, accounts: int) -> Floats:
        """The probability of each account of the log, (accounts,)."""
        whole = np.zeros(accounts)
        whole[self.of.aid] = self.belongs
        return whole


def users(engine: Engine, tested: list[Families]) -> list[Group]:
    """The accounts of each named family, of those that live by it or those that do not."""
    found: list[Group] = []
    for of in tested:
        unit = 2 * of.family[of.named] + of.lives[of.named]
        engine.keep("units", pa.table({"unit": unit}))
        rows = engine.fetch(
            f"""SELECT u.unit, h.aid, h.n, h.days FROM hits_{of.layer} h
                JOIN units u ON u.unit = 2 * h.family + h.lives ORDER BY u.unit, h.aid"""
        )
        aid, n, days = _counts(rows)
        whose = column(rows, "unit")
        starts, stops = (np.searchsorted(whose, unit, side).tolist() for side in ("left", "right"))
        for one, start, stop in zip(unit.tolist(), starts, stops, strict=True):
            at = slice(start, stop)
            found.append(Group(of.layer, one // 2, aid[at], n[at], days[at]))
    return found


def _counts(rows: Table) -> tuple[Ints, Ints, Floats]:
    return column(rows, "aid"), column(rows, "n"), numbers(rows, "days")


def cells(engine: Engine, families: list[tuple[Layer, int]]) -> list[Group]:
    """The users of each cell of the named set-ups and templates."""
    stacks = {
        key // LENGTHS if layer == "shape" else key
        for layer, key in families
        if layer != "template"
    }
    templates = {key for layer, key in families if layer == "template"}
    engine.table("cells", marks.cells(sorted(stacks), sorted(templates)))
    rows = engine.fetch(marks.large_cells(), least=LEAST)
    kind, key = column(rows, "kind"), column(rows, "key")
    cuts = np.flatnonzero((np.diff(kind) != 0) | (np.diff(key) != 0)) + 1
    parts = [np.split(one, cuts) for one in (kind, key, *_counts(rows))]
    return [
        Group(CELLS[int(kind[0])][0], int(key[0]), aid, n, days)
        for kind, key, aid, n, days in zip(*parts, strict=True)
        if len(kind)
    ]


def even_within(
    groups: list[Group], taken: Flags, null: Mapping[str, tuple[float, float]], threads: int
) -> list[Bump | None]:
    """Of each group the even one among its users who are in no campaign yet; None of too few.

    Args:
        groups: To look into.
        taken: Who is in a campaign, (accounts,).
        null: Of evenness, as `score.null` has it, for each layer and kind of cell.
        threads: So many may work at it.
    """
    left = [_left(group, ~taken[group.aid]) for group in groups]
    large = [place for place, group in enumerate(left) if len(group.aid) >= LEAST]
    if not large:
        return [None] * len(groups)
    sizes = [len(left[place].aid) for place in large]
    n = np.concatenate([left[place].n for place in large])
    days = np.concatenate([left[place].days for place in large]).astype(np.int64)
    most, longest = int(n.max()) + 1, int(days.max()) + 1
    keys, back, users = np.unique(
        (np.repeat(np.arange(len(large)), sizes) * most + n) * longest + days,
        return_inverse=True, return_counts=True,
    )  # fmt: skip
    told = even.either(
        keys // (most * longest), keys // longest % most,
        (keys % longest).astype(np.float64), users.astype(np.float64), threads,
    )  # fmt: skip
    belongs = np.split(told.belongs[back], np.cumsum(sizes)[:-1])
    found: list[Bump | None] = [None] * len(groups)
    for at, place in enumerate(large):
        z = score.above(told.z[at], null[left[place].layer])
        found[place] = Bump(
            left[place], belongs[at], float(told.members[at]), float(told.mean[at]), float(z),
            bool(told.by_day[at]),
        )  # fmt: skip
    return found


def _left(group: Group, free: Flags) -> Group:
    return Group(group.layer, group.key, group.aid[free], group.n[free], group.days[free])


def by_count(bump: Bump, calls: Ints) -> score.Membership:
    """Whom of a group's users the number of calls tells to be of its even group.

    Args:
        bump: The even group.
        calls: Of each account of the log, (accounts,).
    """
    of, begin = bump.of, (bump.members, bump.mean, UNEVEN)
    there = even.present(of.days) if bump.by_day else np.ones(len(of.n))
    share = there / there.max(initial=1)
    return score.membership(of.n, calls[of.aid], len(calls), begin, bump.belongs, share)


def set_up(group: Group) -> int | None:
    """The set-up that a group's calls go through."""
    parts = {"client": 1, "shape": LENGTHS, "method": WAYS, "recipe": FAMILIES}
    return group.key // parts[group.layer] if group.layer in parts else None
