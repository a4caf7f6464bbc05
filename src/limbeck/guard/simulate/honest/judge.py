"""Judges: a rubric, two answers, a score, in the words of one who collects reward data."""

from __future__ import annotations

import numpy as np

from limbeck.guard.simulate.habits import Habits, subjects
from limbeck.guard.simulate.honest import apps
from limbeck.guard.simulate.keys import key_of, mix

NAME = "judge"
SHARE = 0.02


def accounts(rng: np.random.Generator, n: int, days: int) -> Habits:
    """Half follow one of a dozen published rubrics, word for word; most ask for the reasoning."""
    habits = apps.accounts(rng, n, days)
    rubric = mix(np.full(n, key_of("rubric"), dtype=np.uint64), rng.integers(0, 12, n))
    published = rng.random(n) < 0.5
    return habits.but(
        rate=np.minimum(np.exp(rng.normal(4.2, 1.2, n)), 10_000.0),
        weekday=rng.uniform(0.2, 0.9, n),
        session=1 + rng.exponential(60.0, n),
        gap=np.exp(rng.normal(1.0, 0.8, n)),
        temperature=rng.choice([0.0, np.nan, 1.0], n, p=[0.7, 0.2, 0.1]),
        limit=rng.choice([0, 256, 1024, 4096], n),
        logprobs=rng.choice([-1, 1], n, p=[0.7, 0.3]),
        stream=0,
        subject=subjects("rubric"),
        breadth=1,
        own=1.0,
        templates=rng.integers(1, 4, n),
        wording=np.where(published, rubric, habits.wording),
        loose=np.where(rng.random(n) < 0.2, 0.15, 0.0),
        popular=0.0,
        history=rng.beta(1, 4, n),
    )
