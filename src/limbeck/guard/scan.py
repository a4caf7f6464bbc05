"""The walk over a state folder: sketched calls → uses → families → campaigns → accounts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from limbeck.guard import cohorts, features, link, marks, score
from limbeck.guard.arrow import Table, pa, pq
from limbeck.guard.engine import Engine
from limbeck.guard.features import Layer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST = 20
"""A family of fewer accounts is not tested: too few to tell evenness from chance."""
QUIET = 8
"""The quietest hours of the day, over all accounts."""
SOURCES: dict[Layer, tuple[str, str]] = {
    "template": ("templated", "template"),
    "recipe": ("templated", "template * 1048576 + stack"),
    "method": ("events", "method"),
    "shape": ("events", "shape"),
    "client": ("events", "stack"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Families:
    """What was tested in one layer: a row a family."""

    layer: Layer
    family: Ints
    members: Ints
    even: Floats
    rest: dict[str, Floats]
    p: Floats
    z_even: Floats
    z_rest: Floats
    clear: NDArray[np.bool_]
    named: NDArray[np.bool_]
    honest: tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """All of a scan's results: families by layer, and each account's evidence.

    `keys` gives the campaign of each named family that was kept. `campaign` (accounts,) is the
    number of an account's campaign, −1 for none; `p_value` (accounts,) is over all families, and
    `evidence` (accounts,) over those of one layer alone.
    """

    layers: list[Families]
    keys: dict[tuple[Layer, int], int]
    campaign: Ints
    p_value: Floats
    evidence: dict[Layer, Floats]


def prepare(engine: Engine) -> list[Layer]:
    """Run the SQL that does not depend on what is found; gives the layers that the log allows."""
    engine.table("account_ids", features.accounts())
    engine.table("stacks", features.stacks())
    engine.table("events", features.events())
    engine.table("volumes", features.volumes(engine))
    seen = engine.fetch("SELECT count(skeleton) AS prompts FROM events")["prompts"][0].as_py()
    counted = engine.fetch(features.hours()).to_pydict()
    calls = dict(zip(counted["hour"], counted["calls"], strict=True))
    quiet = sorted(range(24), key=lambda hour: (calls.get(hour, 0), hour))[:QUIET]
    layers: list[Layer] = (
        ["template", "recipe", "method", "shape", "client"] if seen else ["shape", "client"]
    )
    if seen:
        engine.table("shared_skeletons", features.shared_skeletons())
        engine.table("shared_bands", features.shared_bands("shared_skeletons"))
        engine.table("templates", features.templates())
        engine.table("templated", features.templated())
    for layer in layers:
        source, key = SOURCES[layer]
        sql = features.uses(source, key, quiet, prompts=bool(seen))
        engine.table(f"uses_{layer}", sql)
    return layers


def group(engine: Engine, accounts: int) -> None:
    """Put templates into families by who uses them together, from fold 0 alone."""
    engine.table("degrees", link.degrees())
    hub = max(link.FEW, int(link.HUB * accounts))
    engine.table("votes", link.votes(), hub=hub, most=link.KEYS_AN_ACCOUNT)
    engine.table("pairs", link.pairs())
    pairs = engine.fetch("SELECT * FROM pairs ORDER BY one, other")  # what Leiden finds goes by it
    found = link.edges(pairs, engine.fetch("SELECT * FROM votes"))
    keys = column(engine.fetch("SELECT DISTINCT key FROM uses_template ORDER BY key"), "key")
    keep(engine, "families", pa.table({"key": keys, "family": cohorts.families(keys, found)}))


def test(engine: Engine, layer: Layer) -> Families:
    """Marks, nulls and p-values of the families of one layer, on fold 1."""
    engine.table(f"hits_{layer}", marks.hits(layer))
    sums = engine.fetch(marks.sums(f"hits_{layer}"), least=LEAST)
    family, size = column(sums, "family"), column(sums, "members").astype(float)
    x, xx, n, xn, nn = (numbers(sums, name) for name in ("x", "xx", "n", "xn", "nn"))
    even, clear = score.unevenness(size, x, xx, n, xn, nn)
    calls = np.maximum(x, 1)
    shares = {"hours": numbers(sums, "calm") / calls}
    repeated = np.zeros(len(family))
    if layer != "method":
        shares["elicitation"] = numbers(sums, "eliciting") / calls
    if layer == "template":
        repeated = _repeated(engine, family)
        shares["client"] = _alike(engine, family)
    burst, counted = score.bursts(numbers(sums, "pairs"), numbers(sums, "room"))
    for name in ("payment", "signup"):
        shares[name] = _kin(engine, layer, name, family)
    against = {k: score.against_alike(v, size) for k, v in shares.items()}
    shares["bursts"] = burst
    against["bursts"] = score.below(burst, counted, score.PRIOR_BURSTS, size)
    z = score.below(even, clear, score.PRIOR_EVEN, size)
    z = np.where(repeated > REPEATED, -score.CAP, z)
    p, rest = score.verdict(score.Marks(z, against))
    p = np.where(clear, p, 1.0)
    honest = _honest(engine, layer)
    none = np.zeros(len(family), bool)
    return Families(layer, family, size.astype(int), even, shares, p, z, rest, clear, none, honest)


REPEATED = 0.5
"""Above this share of exact repeats a family is a public set of prompts, not a work-list."""


def _repeated(engine: Engine, family: Ints) -> Floats:
    rows = engine.fetch(marks.repeats())
    share = 1 - numbers(rows, "different") / np.maximum(numbers(rows, "seen"), 1)
    return looked_up(family, column(rows, "family"), share)


def _alike(engine: Engine, family: Ints) -> Floats:
    rows = engine.fetch(marks.set_ups())
    share = numbers(rows, "squares") / np.maximum(numbers(rows, "calls"), 1) ** 2
    return looked_up(family, column(rows, "family"), share)


def _kin(engine: Engine, layer: Layer, name: str, family: Ints) -> Floats:
    rows = engine.fetch(marks.kin(f"hits_{layer}", name))
    size = numbers(rows, "members")
    share = numbers(rows, "same") / np.maximum(size * (size - 1), 1)
    return looked_up(family, column(rows, "family"), share)


def _honest(engine: Engine, layer: Layer) -> tuple[float, float]:
    """The beta law of users' shares over the families of a layer, each family weighing the same."""
    rows = engine.fetch(marks.shares(f"hits_{layer}"), least=LEAST)
    return score.beta_from(numbers(rows, "mean"), numbers(rows, "square"))


def find(engine: Engine, rate: float = 0.05, say: Callable[[str], None] = lambda _: None) -> Scan:
    """Everything from sketched calls (readable as `sketched`) to campaigns and accounts.

    Args:
        engine: Where `sketched` can be read.
        rate: False discovery rate of the families that campaigns are made of.
        say: Is told each step.
    """
    layers = prepare(engine)
    volume = engine.fetch("SELECT aid, calls FROM volumes ORDER BY aid")
    calls = column(volume, "calls")
    engine.table("known", marks.known(engine))
    if "template" in layers:
        say("link")
        group(engine, len(calls))
    say("test")
    tested = [test(engine, layer) for layer in layers]
    p = np.concatenate([families.p for families in tested])
    told = np.concatenate([families.clear for families in tested])
    passed = np.zeros(len(p), bool)
    passed[told] = score.named(p[told], rate)
    named = np.split(passed, np.cumsum([len(f.p) for f in tested])[:-1])
    tested = [replace(f, named=n) for f, n in zip(tested, named, strict=True)]
    say("score")
    return _accounts(engine, tested, calls)


def _accounts(engine: Engine, tested: list[Families], calls: Ints) -> Scan:
    """Membership of each account in each named family, families merged into campaigns."""
    found: list[tuple[Layer, int, score.Membership]] = []
    tests = sum(int(families.named.sum()) for families in tested)
    for families in (one for one in tested if one.named.any()):
        engine.table(
            "calm",
            marks.calm(f"hits_{families.layer}"),
            part=max(1, len(calls) // 50_000),
            told=TOLD,
        )
        sample = engine.fetch("SELECT * FROM calm")
        honest = ~np.isin(column(sample, "family"), families.family[families.named])
        ratio = numbers(sample, "pairs")[honest] / numbers(sample, "room")[honest]
        calm = (ratio, column(sample, "h1")[honest])
        for place in np.flatnonzero(families.named).tolist():
            belongs = _members(engine, families, place, calls, tests, calm)
            found.append((families.layer, int(families.family[place]), belongs))
    evidence: dict[Layer, Floats] = {
        layer: np.min([belongs.p for of, _, belongs in found if of == layer], axis=0)
        for layer in SOURCES
        if any(of == layer for of, _, _ in found)
    }
    kept = cohorts.peeled([belongs.p <= FLAG for _, _, belongs in found])
    found = [found[i] for i in kept]
    p = np.stack([belongs.p for _, _, belongs in found]) if found else np.ones((1, len(calls)))
    adjusted = score.over_all(p, np.array([belongs.users for _, _, belongs in found]))
    number = cohorts.merged([(row <= FLAG) & (adjusted <= FLAG) for row in p[: len(found)]])
    named = adjusted <= FLAG
    campaign = np.full(len(calls), -1)
    if found:
        campaign[named] = number[p.argmin(axis=0)][named]
    keys: dict[tuple[Layer, int], int] = {
        (layer, family): int(c) for (layer, family, _), c in zip(found, number, strict=True)
    }
    return Scan(tested, keys, campaign, adjusted, evidence)


def _members(engine: Engine, families: Families, place: int, calls: Ints, tests: int,
             calm: tuple[Floats, Ints]) -> score.Membership:  # fmt: skip
    """p-values of all accounts as members of one named family: how many calls, and how spread."""
    rows = engine.fetch(
        f"""SELECT h.aid, h.h0 + h.h1 AS hits, h.h1, h.pairs, h.room / (24e0 * v.days) AS room
        FROM hits_{families.layer} h JOIN volumes v ON v.aid = h.aid WHERE family = $family""",
        family=int(families.family[place]),
    )
    aid, late = column(rows, "aid"), column(rows, "h1")
    hits = np.zeros(len(calls), int)
    hits[aid] = column(rows, "hits")
    uneven = float(np.clip(np.exp(families.even[place]), 0.02, 0.5))
    belongs = score.membership(hits, calls, uneven, families.honest, tests)
    told = numbers(rows, "room") >= TOLD
    spread = numbers(rows, "pairs")[told] / numbers(rows, "room")[told]
    p, rows_told = belongs.p.copy(), aid[told]
    together = score.both(p[rows_told], score.calmness(spread, late[told], *calm))
    p[rows_told] = np.minimum(1, 2 * np.minimum(p[rows_told], together))
    return replace(belongs, p=p)


TOLD = 0.5
"""Pairs within an hour that chance would bring, from which on an account's rhythm tells."""


FLAG = 1e-4
"""An account is flagged at this p-value, within a named campaign."""


def column(table: Table, name: str) -> Ints:
    """A column of integers."""
    return table[name].to_numpy().astype(np.int64)


def numbers(table: Table, name: str) -> Floats:
    """A column of floats."""
    return table[name].to_numpy().astype(np.float64)


def looked_up(wanted: Ints, keys: Ints, values: Floats) -> Floats:
    """The value of each wanted key, 0 where it is not among the keys."""
    if not len(keys):
        return np.zeros(len(wanted))
    order = np.argsort(keys)
    place = np.searchsorted(keys[order], wanted).clip(0, len(keys) - 1)
    return np.where(keys[order][place] == wanted, values[order][place], 0.0)


def keep(engine: Engine, name: str, columns: Table) -> None:
    """Make a small table readable in SQL as `name`."""
    path = engine.work / f"{name}.parquet"
    pq.write_table(columns, path)
    engine.read(name, [path])
