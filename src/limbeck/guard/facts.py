"""What a scan's campaigns did, in numbers: what findings, page and indicators are written from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from limbeck.guard import standing, taken
from limbeck.guard.arrow import Array, Table, pa, pc
from limbeck.guard.engine import Engine
from limbeck.guard.families import Ints
from limbeck.guard.features import Layer
from limbeck.guard.scan import Scan
from limbeck.guard.taken import Kind

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shared:
    """Something that members share: how many do, and how many accounts have it in all."""

    kind: Kind
    name: str
    members: int
    users: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where calls of a campaign came from; `first` and `last` are hours since 1970."""

    kind: Literal["network", "asn"]
    name: str
    members: int
    users: int
    first: int
    last: int


@dataclass(frozen=True, slots=True, eq=False)
class Campaign:
    """One campaign.

    `totals` has calls, of these those that lie in no family but look alike (`alike`), tokens_in,
    tokens_out, first and last (hours since 1970); `hours` and `days` are rows of its calls and
    tokens_out; `ways` counts its calls by capability.
    `within` is how many members made a call within its families of each layer, and `firm` the
    numbers of those who belong to one beyond doubt.
    `largest` is the share of members with the commonest organisation, payment and network.
    `standing` says what members are oftener than others: rows of trait, value, members, users.
    `links` are pairs of an account drawn and its place in `shared`; `lookalikes` are those of no
    campaign.
    """

    number: int
    aids: Ints
    members: list[str]
    totals: Row
    calls_with_cover: int
    hours: list[Row]
    days: list[Row]
    ways: list[Row]
    within: dict[str, int]
    firm: dict[str, Ints]
    largest: dict[str, float]
    standing: list[Row]
    shared: list[Shared]
    links: list[tuple[str, int]]
    lookalikes: set[str]
    places: list[Place]
    samples: list[Row]


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """The whole log: accounts in the order of their numbers, calls, traffic by hour, campaigns."""

    names: Array
    calls: int
    traffic: list[Row]
    campaigns: list[Campaign]


def gather(engine: Engine, scan: Scan) -> Facts:
    """The facts of a finished scan, from its tables and `texts`."""
    names = engine.fetch("SELECT account FROM account_ids ORDER BY aid")["account"]
    traffic = engine.fetch(taken.traffic()).to_pylist()
    calls = sum(row["calls"] for row in traffic)
    numbers = np.unique(scan.members.campaign[scan.members.campaign >= 0]).tolist()
    if not numbers:
        return Facts(names, calls, traffic, [])
    _prepare(engine, scan)
    read = _Read(engine, {layer for keys in scan.members.families.values() for layer, _ in keys})
    return Facts(names, calls, traffic, [_campaign(n, scan, names, read) for n in numbers])


def _prepare(engine: Engine, scan: Scan) -> None:
    aid = np.flatnonzero(scan.members.campaign >= 0)
    of = scan.members.campaign[aid].astype(np.int32)
    engine.keep("members", pa.table({"aid": aid.astype(np.int32), "campaign": of}))
    chosen = [(*key, n) for n, families in scan.members.families.items() for key in families]
    layers, families, campaigns = zip(*chosen, strict=True)
    columns = {"layer": pa.array(layers), "family": pa.array(families, pa.int64())}
    columns["campaign"] = pa.array(campaigns, pa.int32())
    engine.keep("chosen_families", pa.table(columns))
    templated = any(one.layer == "template" for one in scan.layers)
    engine.table("theirs", taken.theirs())
    engine.table("taken", taken.taken(layers, prompts=templated))
    engine.table("places", taken.places())
    engine.table("shared_by", taken.shared(engine, templated))
    engine.table("links", taken.links(engine, templated))
    engine.table("shown", taken.shown())
    if not templated:
        engine.keep("templates", pa.table({n: pa.array([], pa.int64()) for n in TEMPLATES}))


TEMPLATES = ("kind", "raw", "users", "template")
"""Columns of `templates`, for a log without prompts."""


class _Read:
    """The answers to all queries, to be had campaign by campaign."""

    def __init__(self, engine: Engine, layers: set[Layer]) -> None:
        asked = {
            "totals": taken.totals(),
            "covers": taken.covers(),
            "hours": taken.hours(),
            "days": taken.days(engine),
            "ways": taken.ways(),
            "within": taken.within(layers),
            "firm": taken.firm(),
            "largest": taken.largest(),
            "standing": standing.common(),
            "used": taken.used(),
            "drawn": taken.drawn(),
            "crowds": taken.crowds(),
            "samples": taken.samples(),
        }
        self._tables: dict[str, Table] = {name: engine.fetch(sql) for name, sql in asked.items()}
        wordings = engine.fetch(taken.wordings()).to_pylist()
        self._texts: dict[str, str] = {row["value"]: row["text"] for row in wordings}
        set_ups = engine.fetch(taken.set_ups()).to_pylist()
        self._set_ups: dict[str, str] = {row["value"]: _set_up(row) for row in set_ups}

    def of(self, name: str, number: int) -> list[Row]:
        """The rows of one campaign."""
        table = self._tables[name]
        return table.filter(pc.equal(table["campaign"], number)).to_pylist()

    def named(self, kind: Kind, value: str) -> str:
        """What is shared, as a person reads it."""
        if kind == "set-up":
            return self._set_ups.get(value, value)
        if kind == "template":
            return self._texts.get(value, "much the same words (paraphrases)")
        if kind == "sign-up":
            first = np.datetime64(int(value) * taken.SPAN, "D")
            return f"{first} to {first + np.timedelta64(taken.SPAN - 1, 'D')}"
        return value


def _set_up(row: Row) -> str:
    """All that tells one set-up from another; what the log does not say is -1, or empty."""
    said = [row["client"] or "no client named"]
    if row["model"]:
        said.append(row["model"])
    if row["temperature"] >= 0:
        said.append(f"temperature {row['temperature'] / 100:g}")
    if row["max_tokens"] >= 0:
        said.append(f"at most {row['max_tokens']:,} tokens")
    for name, no in (("stream", "no stream"), ("logprobs", "no logprobs")):
        if row[name] >= 0:
            said.append(name if row[name] else no)
    if row["session"]:
        said.append("sessions told")
    return ", ".join(said)


def _campaign(number: int, scan: Scan, names: Array, read: _Read) -> Campaign:
    aids = np.flatnonzero(scan.members.campaign == number)
    drawn = read.of("drawn", number)
    firm = read.of("firm", number)
    spelt = {row["aid"]: names[row["aid"]].as_py() for row in drawn}
    return Campaign(
        number=number,
        aids=aids,
        members=names.take(pa.array(aids)).to_pylist(),
        totals=read.of("totals", number)[0],
        calls_with_cover=int(read.of("covers", number)[0]["calls"]),
        hours=read.of("hours", number),
        days=read.of("days", number),
        ways=read.of("ways", number),
        within={row["layer"]: row["members"] for row in read.of("within", number)},
        firm={
            layer: np.array([row["aid"] for row in firm if row["layer"] == layer])
            for layer in {row["layer"] for row in firm}
        },
        largest={row["what"]: row["n"] / len(aids) for row in read.of("largest", number)},
        standing=read.of("standing", number),
        shared=[
            Shared(r["kind"], read.named(r["kind"], r["value"]), r["members"], r["users"])
            for r in read.of("used", number)
        ],
        links=[(spelt[row["aid"]], row["place"]) for row in drawn],
        lookalikes={spelt[row["aid"]] for row in drawn if not row["named"]},
        places=[
            Place(*(row[name] for name in ("kind", "name", "members", "users", "first", "last")))
            for row in read.of("crowds", number)
        ],
        samples=read.of("samples", number),
    )
