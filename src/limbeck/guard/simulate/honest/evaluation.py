"""Evaluation harnesses: public benchmarks, item by item, again for every model."""

from __future__ import annotations

import numpy as np

from limbeck.guard.simulate import world
from limbeck.guard.simulate.habits import Habits, subjects
from limbeck.guard.simulate.honest import apps
from limbeck.guard.simulate.keys import key_of, mix
from limbeck.guard.simulate.shapes import GAP_SIGMA

NAME = "evaluation"
SHARE = 0.02


def accounts(rng: np.random.Generator, n: int, days: int) -> Habits:
    """Unrelated teams share harness, templates and lists: whole prompts are the same."""
    habits = apps.accounts(rng, n, days)
    benchmark = rng.integers(0, 12, n)
    public = mix(np.full(n, key_of("benchmark"), dtype=np.uint64), benchmark)
    return habits.but(
        channel=np.where(rng.random(n) < 0.3, world.CHANNELS.index("research"), habits.channel),
        rate=np.minimum(np.exp(rng.normal(5.3, 1.0, n)), 20_000.0),
        weekday=rng.uniform(0.05, 0.5, n),
        weekend=rng.uniform(0.05, 0.3, n),
        session=np.exp(rng.normal(5.0, 0.8, n)),
        gap=np.exp(rng.normal(0.0, 0.7, n)),
        gap_sigma=GAP_SIGMA["long"],
        client=world.CLIENTS.index("evalkit/0.14") + rng.integers(0, 2, n),
        temperature=rng.choice([0.0, 0.7, 1.0], n, p=[0.7, 0.15, 0.15]),
        limit=rng.choice([256, 1024, 4096], n),
        logprobs=rng.choice([-1, 1], n, p=[0.6, 0.4]),
        stream=rng.choice([-1, 0], n),
        adopts=np.where(rng.random(n) < 0.6, rng.uniform(0, 2, n), habits.adopts),
        rush=rng.uniform(1, 6, n),
        subject=np.array([subjects("benchmark"), subjects("reasoning")])[benchmark % 2],
        breadth=1 + benchmark % 3,
        taste=public,
        own=1.0,
        templates=1 + benchmark % 2,
        wording=mix(public, 1),
        loose=0.0,
        popular=0.0,
        pool=500 + 400 * benchmark,
        inputs=mix(public, 2),
        dealt=1,
        context=0.0,
        history=0.0,
    )
