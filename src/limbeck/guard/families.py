"""Which families of calls are shared out evenly among a group of their users, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from limbeck.guard import even, marks, score
from limbeck.guard.arrow import column, numbers, pa
from limbeck.guard.engine import Engine
from limbeck.guard.features import Layer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST = 20
"""A family of fewer accounts is not tested: too few to tell evenness from chance."""
TOLD = 20_000
"""Accounts of a log whose hours and set-ups are told beside; of more, a part is taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Families:
    """What was tested in one layer: a row a family.

    `members` is how many of its `users` divide it evenly, `mean` their calls; `lives` says whether
    these are accounts that live by the family. `even` is the log of their CV², or of all users'
    where none do. `null` is that of raw evenness.
    """

    layer: Layer
    family: Ints
    lives: Ints
    users: Ints
    members: Floats
    mean: Floats
    even: Floats
    rest: dict[str, Floats]
    p: Floats
    z_even: Floats
    z_rest: Floats
    named: NDArray[np.bool_]
    null: tuple[float, float]


def test(engine: Engine, layer: Layer, accounts: int) -> Families:
    """Marks, nulls and p-values of the families of one layer.

    Users who live by a family and those who do not are tested apart, each as a family of its own,
    so that the many who keep a common set-up do not hide the few who slip it in.
    """
    engine.table(f"hits_{layer}", marks.hits(layer))
    sums = engine.fetch(marks.sums(f"hits_{layer}"), least=LEAST)
    family, users = column(sums, "family"), numbers(sums, "users")
    unit = 2 * family + column(sums, "lives")
    told = _evenness(engine, layer, unit)
    calls = numbers(sums, "n")
    shares = {
        "hours": numbers(sums, "calm") / calls,
        "elicitation": numbers(sums, "eliciting") / calls,
    }
    part = max(accounts // TOLD, 1)
    if layer == "template":
        shares["client"] = _one_set_up(engine, family, part)
    for name in ("payment", "signup"):
        shares[name] = _kin(engine, layer, name, unit)
    against = {k: score.against_alike(v, users) for k, v in shares.items()}
    burst, counted = _bursts(engine, layer, unit, part)
    shares["bursts"] = burst
    against["bursts"] = score.below(burst, counted, score.PRIOR_BURSTS, users)
    null = score.null(told.z)
    z = score.above(told.z, null)
    if layer == "template":
        z = np.where(_repeated(engine, family, calls, z) > REPEATED, -score.CAP, z)
    p, rest = score.verdict(score.Marks(z, against))
    best = np.lexsort((p, family))
    best = best[np.unique(family[best], return_index=True)[1]]
    return Families(
        layer, family[best], column(sums, "lives")[best], users[best].astype(int),
        told.members[best], told.mean[best],
        np.log(np.where(z >= score.EVEN, told.cv2, told.all_cv2))[best],
        {name: value[best] for name, value in shares.items()}, np.minimum(1, 2 * p[best]),
        z[best], rest[best], np.zeros(len(best), bool), null,
    )  # fmt: skip


def _evenness(engine: Engine, layer: Layer, unit: Ints) -> even.Evenness:
    """Of each unit, 2 · family + `lives`; they ascend."""
    rows = engine.fetch(marks.histogram(f"hits_{layer}"))
    of = 2 * column(rows, "family") + column(rows, "lives")
    tested = np.isin(of, unit)
    x, days, users = column(rows, "x"), numbers(rows, "days"), numbers(rows, "users")
    place = np.searchsorted(unit, of[tested])
    return even.either(place, x[tested], days[tested], users[tested], engine.threads)


REPEATED, ENOUGH = 0.5, 20_000
"""Above this share of exact repeats a family is a public set of prompts, not a work-list; and how
many of a family's calls tell so."""


def _repeated(engine: Engine, family: Ints, calls: Floats, z: Floats) -> Floats:
    """Of each family the calls whose prompt came before; 0 where it is not even anyway."""
    even = z >= score.EVEN
    names, at = np.unique(family[even], return_inverse=True)
    part = np.maximum(np.bincount(at, calls[even], len(names)) // ENOUGH, 1).astype(np.int64)
    engine.keep("even", pa.table({"family": names, "part": part}))
    rows = engine.fetch(marks.repeats())
    share = 1 - numbers(rows, "different") / np.maximum(numbers(rows, "seen"), 1)
    return looked_up(family, column(rows, "family"), share)


def _one_set_up(engine: Engine, family: Ints, part: int) -> Floats:
    rows = engine.fetch(marks.set_ups(), part=part)
    share = numbers(rows, "squares") / np.maximum(numbers(rows, "calls"), 1) ** 2
    return looked_up(family, column(rows, "family"), share)


def _bursts(
    engine: Engine, layer: Layer, unit: Ints, part: int
) -> tuple[Floats, NDArray[np.bool_]]:
    rows = engine.fetch(marks.bursts(layer), part=part)
    of = 2 * column(rows, "family") + column(rows, "lives")
    pairs, room = (looked_up(unit, of, numbers(rows, name)) for name in ("pairs", "room"))
    return score.bursts(pairs, room)


def _kin(engine: Engine, layer: Layer, name: str, unit: Ints) -> Floats:
    rows = engine.fetch(marks.kin(f"hits_{layer}", name))
    size = numbers(rows, "users")
    share = numbers(rows, "same") / np.maximum(size * (size - 1), 1)
    return looked_up(unit, 2 * column(rows, "family") + column(rows, "lives"), share)


def judged(tested: list[Families], rate: float) -> list[Families]:
    """Which families of all layers are named, at a false discovery rate."""
    passed = score.named(np.concatenate([families.p for families in tested]), rate)
    named = np.split(passed, np.cumsum([len(f.p) for f in tested])[:-1])
    return [replace(f, named=n) for f, n in zip(tested, named, strict=True)]


def looked_up(wanted: Ints, keys: Ints, values: Floats) -> Floats:
    """The value of each wanted key, 0 where it is not among the keys."""
    if not len(keys):
        return np.zeros(len(wanted))
    order = np.argsort(keys)
    place = np.searchsorted(keys[order], wanted).clip(0, len(keys) - 1)
    return np.where(keys[order][place] == wanted, values[order][place], 0.0)
