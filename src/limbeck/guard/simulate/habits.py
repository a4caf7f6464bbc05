"""Accounts and their habits: one row an account, from which all of its calls are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from limbeck.guard.simulate import world
from limbeck.guard.simulate.keys import Floats, Ints, Keys
from limbeck.guard.simulate.shapes import GAP_SIGMA, RHYTHMS
from limbeck.guard.simulate.text import grammar

DAY = 86_400
NEVER = np.inf

# Who asks for what: sets of the grammar's groups, by name.
LANGUAGES = ("german", "french", "spanish", "portuguese", "japanese", "chinese")
SETS: dict[str, tuple[str, ...]] = {
    "everything": ("business", "personal", "study", "develop", "reasoning"),
    "business": ("business",),
    "personal": ("personal",),
    "leisure": ("personal", "study"),
    "study": ("study", "reasoning"),
    "develop": ("develop",),
    "reasoning": ("reasoning",),
    "rubric": ("rubric",),
    "benchmark": ("reasoning", "study", "develop"),
    "capability": ("reasoning", "develop"),
    **{language: (language,) for language in LANGUAGES},
}
SET_NAMES = tuple(SETS)
MIXED = ("everything", "leisure", "develop", "business", "study", "capability")

# A client and its settings, as a vendor's first example has them.
QUICK_START = {
    "client": 0, "second": 0, "temperature": 1.0, "limit": 4096, "logprobs": -1, "stream": 0,
    "sessions": 0,
}  # fmt: skip


def subjects(name: str) -> int:
    """The number of a set of groups."""
    return SET_NAMES.index(name)


def topics_of(subject: int) -> Ints:
    """The grammar's topics in a set."""
    return np.concatenate([grammar().groups[group] for group in SETS[SET_NAMES[subject]]])


@dataclass(frozen=True, slots=True, eq=False)
class Habits:
    """Columns of length n, one row an account. Times are seconds since the simulation's start.

    Attributes:
        who: The account's key; `payment`, `organisation` likewise, 0 where there is none.
        domain: Of the mail address: below 8 a webmail provider, 0 for none, else a key of its own.
        created: When it signed up; `ended`: when it was last used.
        rate: Calls on a day on which it is active.
        weekday: Probability of being active on one; `weekend` likewise.
        day_sigma: Log-normal sigma of the volume from day to day.
        session: Mean calls a session; `gap`: median seconds between them; `gap_sigma`: log-normal.
        zone: Hours east of UTC; `rhythm`: a row of shapes.HOURS.
        networks: Three (n, 3), with their probabilities `at` (n, 3); what is left goes to fresh
            residential networks.
        client: A row of world.CLIENTS; `second` is used in a tenth of the sessions.
        sessions: Whether a session id is sent.
        temperature: NaN where none is sent; `limit`: max_tokens, 0 for none; `logprobs` and
            `stream`: -1 for none.
        model: A row of world.MODELS; `adopts`: days from the release until the new one is used.
        rush: By how much the volume grows on the day of the release, fading in three days.
        subject: A row of SETS; `breadth`: topics in use; `taste`: key that picks them.
        own: Probability that a call follows one of `templates` own templates, worded by `wording`.
        loose: Probability that a slot of wording departs from the template all the same.
        popular: Probability of a prompt that many people paste.
        pool: Size of the list that inputs come from, 0 for no list; `inputs`: the list's key.
        dealt: Whether the list is worked through once, in turns, by the accounts that share it;
            `seat` and `seats` say who of how many.
        customers: End customers with subjects and wordings of their own, 0 for none.
        context: Tokens that every call carries before the prompt (a system prompt).
        history: Probability that a call carries a conversation or document besides.
        longer: Log of the factor on the tokens out.
        together: Probability that a session starts in one of the `waves` of the day, a key.
    """

    who: Keys
    payment: Keys
    organisation: Keys
    domain: Keys
    created: Floats
    ended: Floats
    channel: Ints
    tier: Ints
    rate: Floats
    weekday: Floats
    weekend: Floats
    day_sigma: Floats
    session: Floats
    gap: Floats
    gap_sigma: Floats
    zone: Floats
    rhythm: Ints
    networks: Ints
    at: Floats
    client: Ints
    second: Ints
    sessions: Ints
    temperature: Floats
    limit: Ints
    logprobs: Ints
    stream: Ints
    model: Ints
    adopts: Floats
    rush: Floats
    subject: Ints
    breadth: Ints
    taste: Keys
    own: Floats
    templates: Ints
    wording: Keys
    loose: Floats
    popular: Floats
    pool: Ints
    inputs: Keys
    dealt: Ints
    seat: Ints
    seats: Ints
    customers: Ints
    context: Floats
    history: Floats
    longer: Floats
    together: Floats
    waves: Keys

    def __len__(self) -> int:
        return len(self.who)

    def rows(self, where: Any) -> Habits:
        """The accounts at `where`: a slice, a mask or their places."""
        return Habits(**{f.name: getattr(self, f.name)[where] for f in fields(self)})

    def but(self, **columns: Any) -> Habits:
        """The same with these columns; a single value stands for all rows."""
        return replace(self, **{name: self._column(name, value) for name, value in columns.items()})

    def _column(self, name: str, value: Any) -> Any:
        old = getattr(self, name)
        return np.ascontiguousarray(np.broadcast_to(np.asarray(value), old.shape)).astype(old.dtype)

    @staticmethod
    def concat(parts: Sequence[Habits]) -> Habits:
        """All rows of the parts, in order."""
        return Habits(
            **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Habits)}
        )


def fresh_keys(rng: np.random.Generator, n: int) -> Keys:
    """As many as n keys, none of them 0."""
    return rng.integers(1 << 20, 1 << 63, n, dtype=np.int64).astype(np.uint64)


def clients(rng: np.random.Generator, n: int) -> Ints:
    """Common clients, the first ones the most common."""
    return (world.PLAIN_CLIENTS * rng.random(n) ** 2.2).astype(np.int64)


def zones(rng: np.random.Generator, n: int) -> Floats:
    """Hours east of UTC, in three regions."""
    region = rng.choice(3, n, p=[0.35, 0.4, 0.25])
    return np.array([-6.0, 1.0, 8.0])[region] + rng.integers(-2, 3, n).astype(np.float64)


def signups(rng: np.random.Generator, n: int, days: int) -> Floats:
    """When n accounts signed up: in the two years before the simulation, and during it.

    Every tenth comes in one of the waves that a launch, a course or the news brings.
    """
    when = 0.9 * days - 730 * rng.random(n) ** 1.7  # a provider that grows
    waves = rng.uniform(-730, 0.9 * days, 25)
    rides = rng.random(n) < 0.1
    return np.where(rides, rng.choice(waves, n) + rng.exponential(1.5, n), when) * DAY


def teams(rng: np.random.Generator, n: int, median: float, sigma: float) -> tuple[Ints, Keys]:
    """Who belongs together: the number of each account's team, and a key of that team.

    Sizes are log-normal, at least 2; the last team may be cut short.
    """
    sizes = np.exp(rng.normal(np.log(median), sigma, 1 + n // 2))
    number = np.repeat(np.arange(len(sizes)), np.maximum(sizes, 2).astype(np.int64))[:n]
    return number, fresh_keys(rng, len(sizes))[number]


def ordinary(rng: np.random.Generator, n: int, days: int) -> Habits:
    """Accounts of people with a program or a chat window: what every generator starts from."""
    keys = fresh_keys(rng, n)
    webmail = rng.integers(1, len(world.WEBMAIL) + 1, n).astype(np.uint64)
    office = rng.random(n) * 0.5 * (rng.random(n) < 0.4)
    mobile = rng.random(n) * 0.4 * (rng.random(n) < 0.5)
    tier = rng.choice(3, n, p=[0.45, 0.5, 0.05])
    language = rng.random(n) < 0.22
    breadth = rng.integers(1, 9, n)
    plain = Habits(
        who=keys,
        payment=np.where((tier == 0) | (rng.random(n) < 0.05), 0, fresh_keys(rng, n)),
        organisation=np.zeros(n, dtype=np.uint64),
        domain=np.where(rng.random(n) < 0.2, fresh_keys(rng, n), webmail),
        created=signups(rng, n, days),
        ended=np.full(n, NEVER),
        channel=rng.choice(len(world.CHANNELS), n, p=[0.8, 0.02, 0.06, 0.04, 0.04, 0.02, 0.02]),
        tier=tier,
        rate=np.minimum(np.exp(rng.normal(1.6, 1.1, n)), 2_000.0),
        weekday=rng.beta(1.6, 2.2, n),
        weekend=rng.beta(1.2, 3.0, n),
        day_sigma=rng.uniform(0.2, 0.9, n),
        session=1 + rng.exponential(4.0, n),
        gap=np.exp(rng.normal(4.0, 0.8, n)),
        gap_sigma=np.full(n, GAP_SIGMA["conversation"]),
        zone=zones(rng, n),
        rhythm=rng.choice(
            [RHYTHMS.index(r) for r in ("office", "evening", "student", "flat")],
            n, p=[0.4, 0.4, 0.12, 0.08],
        ),
        networks=np.stack([world.home(rng, n), world.office(rng, n), world.mobile(rng, n)], 1),
        at=np.stack([1 - office - mobile, office, mobile], 1) * (1 - 0.04 * rng.random((n, 1))),
        client=clients(rng, n),
        second=clients(rng, n),
        sessions=(rng.random(n) < 0.7).astype(np.int64),
        temperature=rng.choice([np.nan, 0.0, 0.2, 0.7, 1.0], n, p=[0.5, 0.14, 0.1, 0.18, 0.08]),
        limit=rng.choice([0, 256, 512, 1024, 2048, 4096, 8192], n,
                         p=[0.48, 0.06, 0.09, 0.14, 0.09, 0.11, 0.03]),
        logprobs=rng.choice([-1, 0, 1], n, p=[0.84, 0.13, 0.03]),
        stream=rng.choice([-1, 0, 1], n, p=[0.4, 0.2, 0.4]),
        model=rng.choice(3, n, p=[0.4, 0.45, 0.15]),
        adopts=np.where(rng.random(n) < 0.7, rng.exponential(12.0, n), NEVER),
        rush=np.ones(n),
        subject=np.where(
            language,
            subjects("german") + rng.integers(0, len(LANGUAGES), n),
            rng.choice([subjects(s) for s in MIXED], n, p=[0.4, 0.2, 0.18, 0.08, 0.08, 0.06]),
        ),
        breadth=breadth,
        taste=fresh_keys(rng, n),
        own=np.where(rng.random(n) < 0.3, rng.beta(1, 2, n), 0.0),
        templates=rng.integers(1, 6, n),
        wording=fresh_keys(rng, n),
        loose=rng.uniform(0, 0.3, n),
        popular=rng.beta(1, 12, n),
        pool=np.zeros(n, dtype=np.int64),
        inputs=fresh_keys(rng, n),
        dealt=np.zeros(n, dtype=np.int64),
        seat=np.zeros(n, dtype=np.int64),
        seats=np.ones(n, dtype=np.int64),
        customers=np.zeros(n, dtype=np.int64),
        context=np.where(rng.random(n) < 0.5, np.exp(rng.normal(4.5, 1.0, n)), 0.0),
        history=np.where(rng.random(n) < 0.3, rng.beta(1, 12, n), rng.beta(2, 1.5, n)),
        longer=rng.normal(0, 0.3, n),
        together=np.zeros(n),
        waves=np.zeros(n, dtype=np.uint64),
    )  # fmt: skip
    # Many programs keep what the vendor's quick start shows.
    copied = rng.random(n) < 0.2
    return plain.but(**{k: np.where(copied, v, getattr(plain, k)) for k, v in QUICK_START.items()})
