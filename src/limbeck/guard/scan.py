"""The walk over a state folder: sketched calls → uses → families → campaigns → accounts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from limbeck.guard import bags, cohorts, even, features, link, marks, profile, score
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
    "shape": ("events", "shape"),
    "client": ("events", "stack"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Families:
    """What was tested in one layer: a row a family.

    `members` is how many of its `users` divide it evenly, `mean` their calls; `lives` says whether
    these are accounts that live by the family. `even` is the log of their CV², or of all users'
    where none do.
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
    layers: list[Layer] = ["template", "shape", "client"] if seen else ["shape", "client"]
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
    """Put templates into families by who uses them together, beyond chance."""
    engine.table("degrees", link.degrees())
    hub = max(link.FEW, int(link.HUB * accounts))
    engine.table("votes", link.votes(), hub=hub, most=link.KEYS_AN_ACCOUNT)
    engine.table("pairs", link.pairs())
    pairs = engine.fetch("SELECT * FROM pairs ORDER BY one, other")  # what Leiden finds goes by it
    found = link.edges(pairs, engine.fetch("SELECT * FROM votes"))
    keys = column(engine.fetch("SELECT DISTINCT key FROM uses_template ORDER BY key"), "key")
    keep(engine, "families", pa.table({"key": keys, "family": cohorts.families(keys, found)}))


def test(engine: Engine, layer: Layer) -> Families:
    """Marks, nulls and p-values of the families of one layer.

    Users who live by a family and those who do not are tested apart, each as a family of its own,
    so that the many who keep a common set-up do not hide the few who slip it in.
    """
    engine.table(f"hits_{layer}", marks.hits(layer))
    sums = engine.fetch(marks.sums(f"hits_{layer}"), least=LEAST)
    family, users = column(sums, "family"), numbers(sums, "users")
    unit = 2 * family + column(sums, "lives")
    z, members, mean, cv2, all_cv2 = _evenness(engine, layer, unit)
    calls = numbers(sums, "n")
    shares = {
        "hours": numbers(sums, "calm") / calls,
        "elicitation": numbers(sums, "eliciting") / calls,
    }
    repeated = np.zeros(len(family))
    if layer == "template":
        repeated = _repeated(engine, family)
        shares["client"] = _one_set_up(engine, family)
    for name in ("payment", "signup"):
        shares[name] = _kin(engine, layer, name, unit)
    against = {k: score.against_alike(v, users) for k, v in shares.items()}
    burst, counted = score.bursts(numbers(sums, "pairs"), numbers(sums, "room"))
    shares["bursts"] = burst
    against["bursts"] = score.below(burst, counted, score.PRIOR_BURSTS, users)
    z = score.above(z)
    z = np.where(repeated > REPEATED, -score.CAP, z)
    p, rest = score.verdict(score.Marks(z, against))
    best = np.lexsort((p, family))
    best = best[np.unique(family[best], return_index=True)[1]]
    return Families(
        layer, family[best], column(sums, "lives")[best], users[best].astype(int),
        members[best], mean[best],
        np.log(np.where(z >= score.EVEN, cv2, all_cv2))[best],
        {name: value[best] for name, value in shares.items()}, np.minimum(1, 2 * p[best]),
        z[best], rest[best], np.zeros(len(best), bool),
    )  # fmt: skip


def _evenness(engine: Engine, layer: Layer, unit: Ints) -> list[Floats]:
    """The fields of each unit's `even.Evenness`, in their order."""
    rows = engine.fetch(marks.histogram(f"hits_{layer}"))
    of = 2 * column(rows, "family") + column(rows, "lives")
    x, days, users = column(rows, "x"), numbers(rows, "days"), numbers(rows, "users")
    first, last = np.searchsorted(of, unit), np.searchsorted(of, unit, "right")
    found: list[even.Evenness] = []
    for low, high in zip(first.tolist(), last.tolist(), strict=True):
        at = slice(low, high)
        found.append(even.either(x[at], days[at], users[at]))
    return [
        np.array([getattr(one, field.name) for one in found], float)
        for field in fields(even.Evenness)
    ]


REPEATED = 0.5
"""Above this share of exact repeats a family is a public set of prompts, not a work-list."""


def _repeated(engine: Engine, family: Ints) -> Floats:
    rows = engine.fetch(marks.repeats())
    share = 1 - numbers(rows, "different") / np.maximum(numbers(rows, "seen"), 1)
    return looked_up(family, column(rows, "family"), share)


def _one_set_up(engine: Engine, family: Ints) -> Floats:
    rows = engine.fetch(marks.set_ups())
    share = numbers(rows, "squares") / np.maximum(numbers(rows, "calls"), 1) ** 2
    return looked_up(family, column(rows, "family"), share)


def _kin(engine: Engine, layer: Layer, name: str, unit: Ints) -> Floats:
    rows = engine.fetch(marks.kin(f"hits_{layer}", name))
    size = numbers(rows, "users")
    share = numbers(rows, "same") / np.maximum(size * (size - 1), 1)
    return looked_up(unit, 2 * column(rows, "family") + column(rows, "lives"), share)


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
    tested = judged(tested, rate)
    say("score")
    return _accounts(engine, tested, calls)


def judged(tested: list[Families], rate: float) -> list[Families]:
    """Which families of all layers are named, at a false discovery rate."""
    passed = score.named(np.concatenate([families.p for families in tested]), rate)
    named = np.split(passed, np.cumsum([len(f.p) for f in tested])[:-1])
    return [replace(f, named=n) for f, n in zip(tested, named, strict=True)]


def _accounts(engine: Engine, tested: list[Families], calls: Ints) -> Scan:
    """Firm members of each named family, families merged into campaigns, and who else belongs."""
    found: list[tuple[Layer, int, score.Membership]] = []
    divide: list[float] = []
    for families in tested:
        for place in np.flatnonzero(families.named).tolist():
            belongs = _members(engine, families, place, calls)
            if (belongs.firm >= FIRM).sum() >= LEAST // 2:
                found.append((families.layer, int(families.family[place]), belongs))
                divide.append(float(families.members[place]))
    evidence: dict[Layer, Floats] = {
        layer: np.min([belongs.p for of, _, belongs in found if of == layer], axis=0)
        for layer in SOURCES
        if any(of == layer for of, _, _ in found)
    }
    firm = [belongs.firm >= FIRM for _, _, belongs in found]
    number = cohorts.merged(firm)
    keys: dict[tuple[Layer, int], int] = {
        (layer, family): int(c) for (layer, family, _), c in zip(found, number, strict=True)
    }
    prompts = any(families.layer == "template" for families in tested)
    if found:
        engine.table("parts", profile.parts(engine))
        engine.table("background", profile.background(prompts=prompts))
    p = np.ones((max(1, len(set(keys.values()))), len(calls)))
    users = np.zeros(len(p))
    for campaign in sorted(set(keys.values())):
        mine = [one for (_, _, one), c in zip(found, number, strict=True) if c == campaign]
        core = np.any([one.firm >= FIRM for one in mine], axis=0)
        core &= ~np.any([one.beyond for one in mine], axis=0)
        families = [key for key, c in keys.items() if c == campaign]
        most = max(n for n, c in zip(divide, number, strict=True) if c == campaign)
        alike, users[campaign] = _alike(engine, core, most, families, calls, prompts=prompts)
        rarest = min(mine, key=lambda one: one.users)
        p[campaign] = np.minimum(1, 2 * np.minimum(alike, rarest.p))
    p = _together(engine, p)
    adjusted = score.over_all(p, users)
    campaign = np.where((adjusted <= FLAG) & bool(found), p.argmin(axis=0), -1)
    with_members = set(campaign.tolist())
    keys = {key: c for key, c in keys.items() if c in with_members}
    return Scan(tested, keys, campaign, adjusted, evidence)


def _members(engine: Engine, families: Families, place: int, calls: Ints) -> score.Membership:
    """All accounts as members of one named family.

    Where those were tested who do not live by it, nobody is a member who lives by its set-up.
    """
    family = int(families.family[place])
    hits = _hits(engine, families.layer, family, len(calls))
    begin = (float(families.members[place]), float(families.mean[place]), UNEVEN)
    found = score.membership(hits, calls, begin)
    if families.lives[place]:
        return found
    shape = families.layer == "shape"
    whole = _hits(engine, "client", family // features.LENGTHS, len(calls)) if shape else hits
    return replace(found, beyond=found.beyond | (whole > WHOLLY * calls))


def _hits(engine: Engine, layer: Layer, family: int, accounts: int) -> Ints:
    """Each account's calls within a family."""
    rows = engine.fetch(f"SELECT aid, n FROM hits_{layer} WHERE family = $family", family=family)
    hits = np.zeros(accounts, np.int64)
    hits[column(rows, "aid")] = column(rows, "n")
    return hits


def _alike(
    engine: Engine,
    core: NDArray[np.bool_],
    most: float,
    families: list[tuple[Layer, int]],
    calls: Ints,
    *,
    prompts: bool,
) -> tuple[Floats, float]:
    """Each account's p-value by what its calls look like, and the share of honest users.

    Learnt from the calls that firm members (`core`) made within the families, of which `most`
    divide one evenly. Judged twice where there are prompts, the second time without the set-up, as
    some of a campaign's accounts keep that of their cover; at twice the p. The laws never fit
    wholly, which costs another factor.
    """
    keep(engine, "core", pa.table({"aid": np.flatnonzero(core)}))
    engine.table("work", profile.work(families))
    made = engine.fetch("SELECT count(*) AS n FROM work")["n"][0].as_py()
    seen = engine.fetch(profile.seen(prompts=prompts))
    weights, others = profile.weights(seen, made, len(calls))
    keep(engine, "weights", weights)
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
            members = float(firm.sum()) + _others(reach[:, near & ~firm])
        if members <= firm.sum():
            continue
        held = np.vstack([calls[aid].astype(np.float64), reach])
        held[:-1] -= held[1:]
        found = bags.belonging(held.T, firm, len(calls), members / len(aid))
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
    return most.members if most and score.above(np.array([most.z]))[0] >= score.EVEN else 0.0


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


MISFIT = 2
"""By how much more honest accounts reached a p-value than it says, on simulated logs."""
LITTLE = 4
"""A member does a share of the work: no less than the firm members' by this factor."""
MORE = 1.25
"""Members are at most so many times those that a family's evenness tells."""
FAMILY = 10
"""A payment that more accounts share is an agency's or a firm's."""
WHOLLY = 0.8
"""Above this share of its calls a set-up is an account's own."""
UNEVEN = 0.1
"""CV² of members' calls within a family: their days differ."""
FIRM = 0.8
"""Accounts that belong to a family with so much probability are what a campaign is learnt from."""


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
