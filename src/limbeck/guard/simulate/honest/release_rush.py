"""People who come on the day of a release to try what everyone tries."""

from __future__ import annotations

import numpy as np

from limbeck.guard.simulate.habits import Habits, ordinary

NAME = "release-rush"
SHARE = 0.03


def accounts(rng: np.random.Generator, n: int, days: int) -> Habits:
    """They move to the new model within hours, many at once, as a pivoting campaign does."""
    return ordinary(rng, n, days).but(
        weekday=0.3,
        weekend=0.3,
        rush=rng.uniform(5, 40, n),
        adopts=rng.exponential(0.3, n),
        popular=rng.beta(3, 5, n),
    )
