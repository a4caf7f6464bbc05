"""People with a program or a chat window of their own: many topics, small volumes, half of all."""

from __future__ import annotations

import numpy as np

from limbeck.guard.simulate.habits import Habits, ordinary

NAME = "people"
SHARE = 0.52


def accounts(rng: np.random.Generator, n: int, days: int) -> Habits:
    """Some browse through a proxy service, so that their network changes all the time."""
    habits = ordinary(rng, n, days)
    wanders = rng.random((n, 1)) < 0.04
    return habits.but(at=np.where(wanders, habits.at * rng.uniform(0, 0.8, (n, 1)), habits.at))
