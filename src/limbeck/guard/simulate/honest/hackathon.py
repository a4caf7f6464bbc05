"""Hackathons: dozens of accounts of one day, from one sponsor, on one task."""

from __future__ import annotations

import numpy as np

from limbeck.guard.simulate import world
from limbeck.guard.simulate.habits import DAY, Habits, ordinary, subjects, teams
from limbeck.guard.simulate.keys import mix
from limbeck.guard.simulate.shapes import RHYTHMS

NAME = "hackathon"
SHARE = 0.02


def accounts(rng: np.random.Generator, n: int, days: int) -> Habits:
    """They share a venue, a coupon, a starter kit with its prompts and client, and examples."""
    habits = ordinary(rng, n, days)
    event, key = teams(rng, n, 60.0, 0.7)
    count = 1 + int(event.max(initial=0))
    begins = rng.uniform(-4, max(days - 1.0, 0.5), count)[event] * DAY
    venue = world.office(rng, count)[event]
    task = rng.choice([subjects("develop"), subjects("capability"), subjects("business")], count)
    kit = (mix(key, 5) % np.uint64(8)).astype(np.int64)
    return habits.but(
        payment=np.where(mix(key, 7) % np.uint64(2) == 0, mix(key, 6), 0),
        channel=world.CHANNELS.index("sponsor"),
        tier=1,
        created=begins + rng.exponential(7_000.0, n),
        ended=begins + rng.uniform(1.5, 4.0, n) * DAY,
        rate=np.minimum(np.exp(rng.normal(3.4, 0.8, n)), 600.0),
        weekday=0.95,
        weekend=0.95,
        networks=np.stack([venue, habits.networks[:, 0], habits.networks[:, 2]], 1),
        at=[0.75, 0.1, 0.14],
        zone=habits.zone[np.searchsorted(event, event)],
        rhythm=RHYTHMS.index("student"),
        client=np.where(rng.random(n) < 0.6, kit, habits.client),
        adopts=np.where(rng.random(n) < 0.5, 0.0, habits.adopts),
        subject=task[event],
        breadth=3,
        taste=mix(key, 4),
        own=0.6,
        templates=4,
        wording=mix(key, 3),
        loose=0.25,
        pool=np.where(mix(key, 2) % np.uint64(2) == 0, 400, 0),
        inputs=mix(key, 1),
        history=0.3,
    )
