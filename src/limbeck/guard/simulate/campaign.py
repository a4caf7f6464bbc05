"""From an attack's knobs to accounts: what each does as cover, and what for the campaign."""

from __future__ import annotations

import math

import numpy as np

from limbeck.guard.simulate import honest, world
from limbeck.guard.simulate.attack import Attack
from limbeck.guard.simulate.habits import DAY, QUICK_START, Habits, subjects
from limbeck.guard.simulate.honest.reseller import agency
from limbeck.guard.simulate.keys import Ints, key_of, mix, stream
from limbeck.guard.simulate.shapes import RHYTHMS

COVER = ("people", "apps")  # whose traffic a campaign copies or resells


def enlist(attack: Attack, seed: int, days: int, victims: Habits | None) -> tuple[Habits, Habits]:
    """The campaign's accounts, first with their cover's habits, then with their work's."""
    rng = stream(seed, "attack", attack.name)
    seats = np.arange(attack.accounts)
    generations = 1 + (0 if math.isinf(attack.life) else math.ceil(days / attack.life))
    seat = np.tile(seats, generations)
    cover = _identities(attack, _personas(rng, len(seat), days), rng, seed, days, seat)
    work = _work(attack, cover, rng, seed, seat)
    active = (5 * cover.weekday + 2 * cover.weekend) / 7
    rate = attack.cover * attack.per_day / active
    own = attack.customers > 0
    cover = cover.but(
        rate=rate,
        session=np.clip(cover.session, 1.0, np.maximum(rate / 2, 1.0)),
        customers=attack.customers,
        own=np.maximum(cover.own, 0.3) if own else cover.own,
    )
    return cover, work if victims is None else _framed(attack, work, victims)


def _personas(rng: np.random.Generator, n: int, days: int) -> Habits:
    """Honest accounts of the kinds in `COVER`, whose traffic will be the cover."""
    kinds = {kind.NAME: kind for kind in honest.kinds() if kind.NAME in COVER}
    shares = np.array([kinds[name].SHARE for name in COVER])
    counts = rng.multinomial(n, shares / shares.sum())
    parts = [
        kinds[name].accounts(rng, int(count), days)
        for name, count in zip(COVER, counts, strict=True)
    ]
    personas = Habits.concat(parts).rows(rng.permutation(n))
    return personas.but(
        weekday=np.maximum(personas.weekday, 0.3), weekend=np.maximum(personas.weekend, 0.15)
    )


def _identities(
    attack: Attack, personas: Habits, rng: np.random.Generator, seed: int, days: int, seat: Ints
) -> Habits:
    """Sign-up, payment and networks: what holds for cover and work alike."""
    n = len(seat)
    generation = np.arange(n) // attack.accounts
    key = np.uint64(key_of(seed, attack.name))
    created = attack.begins * DAY - rng.uniform(0.02, 1, n) * attack.signup * DAY
    ended = np.full(n, np.inf)
    if not math.isinf(attack.life):
        offset = np.tile(rng.uniform(0, attack.life, attack.accounts), n // attack.accounts)
        begins = (attack.begins - offset + generation * attack.life) * DAY
        ended = begins + attack.life * DAY
        created = np.where(begins < attack.begins * DAY, created, begins)
        created = np.minimum(created, ended - 60)
    hosts = world.cloud(stream(seed, attack.name, "hosts"), attack.networks)
    proxied = rng.random(n) < attack.residential
    networks, at = personas.networks.copy(), personas.at.copy()
    networks[~proxied] = hosts[rng.integers(0, len(hosts), (n, 3))][~proxied]
    at[~proxied] = 1 / 3
    at[proxied] = personas.at[proxied] * attack.sticky
    payment = mix(np.full(n, key), np.arange(n) // attack.payment)
    if attack.agencies:
        through = rng.integers(0, attack.agencies, n)
        payment, lines = agency(through)
        networks, at = np.repeat(lines[:, None], 3, 1), np.full((n, 3), 1 / 3)
    webmail = rng.integers(1, len(world.WEBMAIL) + 1, n).astype(np.uint64)
    return personas.but(
        who=mix(np.full(n, key), np.arange(n) + (1 << 32)),
        payment=payment,
        created=created,
        ended=ended,
        tier=np.maximum(personas.tier, 1),
        domain=np.where(rng.random(n) < attack.webmail, webmail, key),
        channel=np.where(
            rng.random(n) < attack.programmes, rng.integers(2, 5, n), personas.channel
        ),
        networks=networks,
        at=at,
    )


def _work(attack: Attack, cover: Habits, rng: np.random.Generator, seed: int, seat: Ints) -> Habits:
    """The campaign's own calls."""
    n = len(cover)
    key = np.uint64(key_of(seed, attack.name, "work"))
    stacked = rng.random(n) < attack.stack
    daylight = rng.random(n) < attack.daylight
    moves = rng.random(n) < attack.pivot
    settings = {**QUICK_START, "model": world.MODELS.index("orin-1-max")}
    return cover.but(
        **{
            name: np.where(stacked, value, getattr(cover, name)) for name, value in settings.items()
        },
        rate=(1 - attack.cover) * attack.per_day,
        weekday=1.0,
        weekend=1.0,
        day_sigma=attack.wobble,
        session=1.0,
        rhythm=np.where(daylight, cover.rhythm, RHYTHMS.index("flat")),
        together=np.where(daylight, 0.0, attack.sync),
        waves=key,
        adopts=np.where(moves, rng.uniform(0, 1, n), cover.adopts),
        rush=1.0,
        subject=subjects(attack.subject),
        breadth=attack.focus,
        taste=key,
        own=float(attack.wordings > 0),
        templates=max(attack.wordings, 1),
        wording=key,
        loose=attack.strength,
        popular=0.0,
        pool=attack.tasks,
        inputs=key,
        dealt=1,
        seat=seat,
        seats=attack.accounts,
        customers=0,
        context=attack.context,
        history=attack.history,
        longer=0.2,
    )


def _framed(attack: Attack, work: Habits, victims: Habits) -> Habits:
    """Work that repeats what the victims ask, at their hours and through their clients.

    An outsider sees a bot's template and settings; its payment and mail address he cannot take.
    """
    like = victims.rows(np.arange(len(work)) % len(victims))
    copied = (
        "subject", "breadth", "taste", "own", "templates", "wording", "loose", "inputs", "pool",
        "client", "second", "temperature", "limit", "logprobs", "stream", "model", "context",
        "history", "longer", "rhythm", "zone", "gap",
    )  # fmt: skip
    return work.but(**{name: getattr(like, name) for name in copied}, dealt=0, together=0.0)
