"""Firms with many seats: one payment, one family of templates; coordinated, by right."""

from __future__ import annotations

import numpy as np

from limbeck.guard.simulate import world
from limbeck.guard.simulate.habits import DAY, Habits, ordinary, subjects, teams
from limbeck.guard.simulate.keys import mix
from limbeck.guard.simulate.shapes import RHYTHMS

NAME = "company"
SHARE = 0.08


def accounts(rng: np.random.Generator, n: int, days: int) -> Habits:
    """Seats are opened in batches, sit behind one gateway, and keep the hours of their office."""
    habits = ordinary(rng, n, days)
    firm, key = teams(rng, n, 30.0, 1.1)
    first, count = np.searchsorted(firm, firm), 1 + int(firm.max(initial=0))
    opened = habits.created[first] + rng.integers(0, 4, n) * rng.uniform(2, 60, count)[firm] * DAY
    gateway = world.office(rng, count)[firm]
    asks = [subjects(s) for s in ("business", "develop", "capability", "everything")]
    return habits.but(
        payment=mix(key, 1),
        organisation=mix(key, 2),
        domain=mix(key, 2),
        channel=np.where(mix(key, 3) % np.uint64(2) == 0, world.CHANNELS.index("sales"), 0),
        tier=2 + (mix(key, 4) % np.uint64(2)).astype(np.int64),
        created=np.minimum(opened + rng.exponential(3_600.0, n), 0.9 * days * DAY),
        rate=np.minimum(np.exp(rng.normal(2.4, 0.9, n)), 1_000.0),
        weekday=rng.uniform(0.5, 0.95, n),
        weekend=rng.uniform(0.0, 0.1, n),
        zone=habits.zone[first],
        rhythm=RHYTHMS.index("office"),
        networks=np.stack([gateway, habits.networks[:, 0], habits.networks[:, 2]], 1),
        at=[0.78, 0.18, 0.03],
        client=np.where(rng.random(n) < 0.8, habits.client[first], habits.client),
        temperature=habits.temperature[first],
        limit=habits.limit[first],
        model=habits.model[first],
        adopts=np.where(rng.random(n) < 0.7, habits.adopts[first], habits.adopts),
        subject=rng.choice(asks, count, p=[0.5, 0.25, 0.1, 0.15])[firm],
        breadth=rng.integers(2, 8, n),
        taste=np.where(rng.random(n) < 0.7, mix(key, 5), habits.taste),
        own=rng.uniform(0.3, 0.95, n),
        templates=2 + (mix(key, 6) % np.uint64(10)).astype(np.int64),
        wording=mix(key, 7),
        loose=rng.uniform(0, 0.2, count)[firm],
        context=np.exp(rng.normal(5.5, 0.8, count))[firm],
    )
