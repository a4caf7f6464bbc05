"""One day's calls of a block of accounts, all columns at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limbeck.guard.arrow import Array, Table, pa
from limbeck.guard.simulate import shapes, world
from limbeck.guard.simulate.habits import DAY, SETS, Habits, subjects, topics_of
from limbeck.guard.simulate.keys import (
    Floats,
    Ints,
    Keys,
    below,
    fraction,
    joined,
    key_of,
    mix,
    spelt,
    stream,
)
from limbeck.guard.simulate.text import frame, grammar

CALLS = pa.schema(
    [
        pa.field("call_id", pa.string(), nullable=False),
        pa.field("time", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("account", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        ("network", pa.string()),
        ("asn", pa.int64()),
        ("client", pa.string()),
        ("session", pa.string()),
        pa.field("tokens_in", pa.int32(), nullable=False),
        pa.field("tokens_out", pa.int32(), nullable=False),
        ("prompt", pa.string()),
        ("temperature", pa.float64()),
        ("max_tokens", pa.int32()),
        ("logprobs", pa.bool_()),
        ("stream", pa.bool_()),
    ]
)
LETTERS_A_TOKEN = 4.2
LONGEST = 200_000  # tokens in, the model's window
# Whose prompts get pasted, and what customers of a reseller may be after.
PASTED = subjects("everything")
RESOLD = np.array([subjects(s) for s in SETS if s not in ("everything", "benchmark", "capability")])


@dataclass(frozen=True, slots=True)
class Clock:
    """When the simulation begins (microseconds since 1970) and the day of the release, from 0."""

    start: int
    release: int


@dataclass(frozen=True, slots=True, eq=False)
class _Sessions:
    """One row a session: its account's place, number of calls, first second, and key."""

    at: Ints
    calls: Ints
    first: Floats
    key: Keys


def draw(
    habits: Habits, day: int, clock: Clock, unit: tuple[object, ...], prompts: bool
) -> tuple[Table, Ints]:
    """All calls on `day` of these accounts, in the stream named by `unit`.

    Returns:
        The calls, in no order that means anything, and the place of each one's account (n,).
    """
    rng = stream(*unit, day)
    sessions = _sessions(habits, day, clock, rng)
    row = np.repeat(np.arange(len(sessions.at)), sessions.calls)
    at = sessions.at[row]
    second = _seconds(habits, sessions, row, rng)
    absolute = second + day * DAY
    alive = (absolute >= habits.created[at]) & (absolute <= habits.ended[at])
    row, at, second = row[alive], at[alive], second[alive]
    n, who = len(row), habits.rows(at)
    fresh = mix(np.full(n, key_of(*unit, day), dtype=np.uint64), np.arange(n))
    topic, prompt, letters = _prompts(who, sessions.key[row], fresh, at, day, rng, prompts)
    tokens_in, tokens_out = _tokens(who, topic, letters, rng)
    network = _networks(who, sessions.key[row], rng)
    since = day + second / DAY - clock.release
    moved = (since >= 0) & (since > who.adopts) & (rng.random(n, dtype=np.float32) < 0.9)
    client = np.where(fraction(mix(sessions.key[row], 3)) < 0.9, who.client, who.second)
    micros = clock.start + day * DAY * 1_000_000 + (second * 1e6).astype(np.int64)
    columns = {
        "call_id": spelt(mix(fresh, 17) | np.uint64(1), "call-"),
        "time": pa.array(micros).cast(pa.timestamp("us", "UTC")),
        "account": spelt(who.who, "acc-"),
        "model": _named(np.where(moved, world.NEW_MODEL, who.model), world.MODELS),
        "network": world.networks().take(pa.array(np.maximum(network, 0))),
        "asn": pa.array(world.asn(network)),
        "client": _named(client, world.CLIENTS),
        "session": spelt(np.where(who.sessions == 1, sessions.key[row], 0).astype(np.uint64), "s-"),
        "tokens_in": pa.array(tokens_in.astype(np.int32)),
        "tokens_out": pa.array(tokens_out.astype(np.int32)),
        "prompt": prompt,
        "temperature": pa.array(who.temperature, mask=np.isnan(who.temperature)),
        "max_tokens": pa.array(who.limit.astype(np.int32), mask=who.limit == 0),
        "logprobs": pa.array(who.logprobs == 1, mask=who.logprobs < 0),
        "stream": pa.array(who.stream == 1, mask=who.stream < 0),
    }
    return pa.table(columns, schema=CALLS), at


def _sessions(habits: Habits, day: int, clock: Clock, rng: np.random.Generator) -> _Sessions:
    n = len(habits)
    weekend = (clock.start // (DAY * 1_000_000) + day + 3) % 7 >= 5  # 1 January 1970: a Thursday
    active = rng.random(n) < (habits.weekend if weekend else habits.weekday)
    factor = np.exp(habits.day_sigma * rng.standard_normal(n) - habits.day_sigma**2 / 2)
    since = day - clock.release
    if 0 <= since < 3:
        factor *= 1 + (habits.rush - 1) * (1 - since / 3)
    living = (habits.created < (day + 1) * DAY) & (habits.ended >= day * DAY)
    number = rng.poisson(active * living * factor * habits.rate / habits.session)
    at = np.repeat(np.arange(n), number)
    calls = rng.geometric(1 / np.maximum(habits.session[at], 1.0))
    key = mix(mix(habits.who[at], day), rng.integers(0, 1 << 62, len(at))) | np.uint64(1)
    local = shapes.second_of_day(habits.rhythm[at], rng.random(len(at)))
    first = (local - habits.zone[at] * 3600) % DAY
    wave = mix(mix(habits.waves[at], day), rng.integers(0, 24, len(at)))  # two dozen a day
    shared = fraction(wave) * DAY + rng.exponential(240.0, len(at))
    together = rng.random(len(at)) < habits.together[at]
    return _Sessions(at, calls, np.where(together, shared % DAY, first), key)


def _seconds(habits: Habits, sessions: _Sessions, row: Ints, rng: np.random.Generator) -> Floats:
    """The second of the day of each call: log-normal gaps within its session."""
    at = sessions.at[row]
    gaps = habits.gap[at] * np.exp(habits.gap_sigma[at] * rng.standard_normal(len(row)))
    passed = np.cumsum(gaps)
    begins = np.cumsum(sessions.calls) - sessions.calls
    offset = passed - passed[begins[row]] if len(row) else passed
    second = sessions.first[row] + offset
    # What would run past midnight runs up to the session's start instead.
    return np.where(second < DAY, second, (sessions.first[row] - offset) % DAY)


def _prompts(
    who: Habits, session: Keys, fresh: Keys, at: Ints, day: int, rng: np.random.Generator,
    spell: bool,
) -> tuple[Ints, Array, Ints]:  # fmt: skip
    """Each call's topic, its text (null unless `spell`) and that text's letters."""
    n, lines = len(fresh), grammar()
    customer = (fraction(mix(session, 5)) ** 2 * who.customers).astype(np.int64) + 1
    resold = who.customers > 0
    identity = np.where(resold, mix(who.who, customer), np.uint64(0))
    subject = np.where(resold, RESOLD[below(mix(identity, 7), len(RESOLD))], who.subject)
    taste = np.where(resold, identity, who.taste)
    manner = np.where(resold, mix(identity, 11), who.wording)

    templated = rng.random(n, dtype=np.float32) < who.own
    which = (rng.random(n) * who.templates).astype(np.int64)
    content, task = _inputs(who, fresh, at, day, rng)
    liked = np.where(templated, which, (rng.random(n) ** 2 * who.breadth).astype(np.int64))
    liked = np.where(who.dealt == 1, below(mix(task, 53), who.breadth), liked % who.breadth)
    pick = mix(taste, liked)
    wording = np.where(templated, mix(manner, which), fresh)
    strength = np.where(templated, who.loose, 0.0)
    shape = np.where(templated & (fraction(mix(fresh, 23)) >= strength), wording, fresh)

    pasted = rng.random(n, dtype=np.float32) < who.popular
    famous = mix(np.full(n, key_of("popular"), dtype=np.uint64),
                 (world.POPULAR * rng.random(n) ** 3).astype(np.int64))  # fmt: skip
    subject = np.where(pasted & ~resold, PASTED, subject)
    pick, content, wording, shape = (
        np.where(pasted, famous, key) for key in (pick, content, wording, shape)
    )
    topic = _topic(subject, pick)
    form = lines.first[topic] + below(mix(shape, 29), lines.forms[topic])
    strength = np.where(pasted, 0.0, strength)
    codes = lines.codes(form, content, wording, fresh, strength)
    letters = lines.characters(codes)
    parts = [lines.render(codes)] if spell else []
    framed = np.flatnonzero(templated & ~pasted)
    for name in ("opening", "closing"):
        form = frame(name, shape[framed])
        rows, form = framed[form >= 0], form[form >= 0]
        codes = lines.codes(form, content[rows], wording[rows], fresh[rows], strength[rows])
        letters[rows] += lines.characters(codes)
        if spell:
            parts.append(_spread(lines.render(codes), rows, n))
    if not spell:
        return topic, pa.nulls(n, pa.string()), letters
    body, opening, closing = parts
    return topic, joined(opening, body, closing), letters


def _spread(texts: Array, rows: Ints, n: int) -> Array:
    """The texts at their rows of n, and nothing in the others."""
    place = np.zeros(n, dtype=np.int64)
    place[rows] = np.arange(1, len(rows) + 1)
    return pa.concat_arrays([pa.array([""], pa.string()), texts]).take(pa.array(place))


def _inputs(
    who: Habits, fresh: Keys, at: Ints, day: int, rng: np.random.Generator
) -> tuple[Keys, Keys]:
    """What each call is about, and the key of its task where tasks are dealt out."""
    n = len(fresh)
    first = np.flatnonzero(np.diff(at, prepend=-1))
    turn = np.arange(n) - np.repeat(first, np.diff(first, append=n))
    # Accounts take turns at the list: each day and turn is one round of all seats.
    turns = np.ceil(3 * who.rate + 20).astype(np.int64)
    dealt = (day * turns + turn % turns) * who.seats + who.seat
    drawn = (rng.random(n) * np.maximum(who.pool, 1)).astype(np.int64)
    place = np.where(who.dealt == 1, dealt % np.maximum(who.pool, 1), drawn)
    task = mix(who.inputs, place)
    return np.where(who.pool > 0, task, mix(fresh, 31)), task


def _topic(subject: Ints, pick: Keys) -> Ints:
    members = [topics_of(number) for number in range(len(SETS))]
    first = np.cumsum([0, *map(len, members)])
    count = np.array([len(m) for m in members])
    return np.concatenate(members)[first[subject] + below(mix(pick, 37), count[subject])]


def _tokens(
    who: Habits, topic: Ints, letters: Ints, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Tokens in and out."""
    lines = grammar()
    shape = np.array([shapes.SHAPES.index(name) for name in lines.shape])[topic]
    carried = shapes.tokens(shapes.TOKENS_IN, shape, rng)
    carried = np.where(rng.random(len(topic), dtype=np.float32) < who.history, carried, 0.0)
    tokens_in = np.ceil(letters / LETTERS_A_TOKEN + who.context + carried) + 3
    tokens_out = shapes.tokens(shapes.TOKENS_OUT, shape, rng) * lines.scale[topic]
    tokens_out = np.maximum(np.rint(tokens_out * np.exp(who.longer)), 1)
    limit = np.where(who.limit > 0, who.limit, 16_384)
    return np.minimum(tokens_in, LONGEST), np.minimum(tokens_out, limit)


def _networks(who: Habits, session: Keys, rng: np.random.Generator) -> Ints:
    """Where each session comes from: one of the account's networks, or a fresh residential one."""
    drawn = fraction(mix(session, 41))
    edges = np.cumsum(who.at, axis=1)
    choice = (drawn[:, None] >= edges).sum(1)
    rows = np.arange(len(session))
    known = who.networks[rows, np.minimum(choice, 2)]
    # A fresh one is the same all session long.
    return np.where(choice > 2, world.residence(mix(session, 43)), known)


def _named(place: Ints | NDArray[np.int64], names: tuple[str, ...]) -> Array:
    return pa.array(names).take(pa.array(place))
