"""Services with prompts of their own and many visitors: several templates each."""

from __future__ import annotations

import numpy as np

from limbeck.guard.simulate import world
from limbeck.guard.simulate.habits import Habits, fresh_keys, ordinary, subjects
from limbeck.guard.simulate.shapes import RHYTHMS

NAME = "apps"
SHARE = 0.14


def accounts(rng: np.random.Generator, n: int, days: int) -> Habits:
    """Run from hosting networks, day and night; volumes over four orders of magnitude."""
    habits = ordinary(rng, n, days)
    own = rng.random(n) < 0.6
    places = [subjects(s) for s in ("business", "study", "develop", "everything", "capability")]
    return habits.but(
        payment=np.where(rng.random(n) < 0.9, fresh_keys(rng, n), 0),
        domain=np.where(own, fresh_keys(rng, n), habits.domain),
        organisation=np.where(own & (rng.random(n) < 0.6), fresh_keys(rng, n), 0),
        tier=rng.choice(4, n, p=[0.1, 0.6, 0.25, 0.05]),
        rate=np.minimum(np.exp(rng.normal(2.8, 1.4, n)), 20_000.0),
        weekday=rng.uniform(0.6, 1.0, n),
        weekend=rng.uniform(0.3, 1.0, n),
        session=1 + rng.exponential(3.0, n),
        gap=np.exp(rng.normal(3.0, 1.0, n)),
        rhythm=rng.choice([RHYTHMS.index(r) for r in ("visitors", "office", "flat")], n,
                          p=[0.6, 0.25, 0.15]),
        networks=np.stack([world.cloud(rng, n), world.cloud(rng, n), world.office(rng, n)], 1),
        at=np.tile([0.7, 0.22, 0.08], (n, 1)),
        subject=rng.choice(places, n, p=[0.5, 0.15, 0.15, 0.12, 0.08]),
        breadth=rng.integers(1, 5, n),
        own=rng.uniform(0.8, 1.0, n),
        templates=rng.integers(1, 9, n),
        loose=rng.choice([0.0, 0.1, 0.4], n, p=[0.7, 0.2, 0.1]),
        popular=0.005,
        pool=np.where(rng.random(n) < 0.2, rng.integers(200, 20_000, n), 0),
        context=np.exp(rng.normal(5.5, 1.0, n)),
        history=rng.beta(1, 2, n),
    )  # fmt: skip
