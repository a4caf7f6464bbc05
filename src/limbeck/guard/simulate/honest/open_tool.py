"""Users of open-source tools: thousands of strangers who send the same template."""

from __future__ import annotations

import numpy as np

from limbeck.guard.simulate import world
from limbeck.guard.simulate.habits import Habits, ordinary, subjects
from limbeck.guard.simulate.keys import key_of, mix

NAME = "open-tool"
SHARE = 0.06


def accounts(rng: np.random.Generator, n: int, days: int) -> Habits:
    """The tool sets client, temperature, limit and stream; the inputs are each user's own."""
    habits = ordinary(rng, n, days)
    tool = rng.choice(4, n, p=[0.45, 0.3, 0.15, 0.1])
    asks = [subjects(s) for s in ("develop", "develop", "capability", "business")]
    public = mix(np.full(n, key_of("tool"), dtype=np.uint64), tool)
    return habits.but(
        client=world.CLIENTS.index("ide-plugin/3.4") + tool,
        temperature=np.array([0.2, 0.7, 0.0, np.nan])[tool],
        limit=np.array([1024, 256, 4096, 2048])[tool],
        stream=np.array([1, 0, 0, 1])[tool],
        subject=np.array(asks)[tool],
        breadth=np.array([4, 1, 2, 3])[tool],
        taste=public,
        own=rng.uniform(0.7, 1.0, n),
        templates=np.array([4, 1, 2, 3])[tool],
        wording=mix(public, 1),
        loose=0.0,
        context=np.array([300.0, 120.0, 800.0, 450.0])[tool],
        history=np.array([0.8, 0.1, 0.4, 0.5])[tool],
    )
