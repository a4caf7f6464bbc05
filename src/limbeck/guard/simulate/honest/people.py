"""People with a program or a chat window of their own: many topics, small volumes, half of all."""

from __future__ import annotations

import numpy as np

from limbeck.guard.simulate.habits import Habits, ordinary, teams
from limbeck.guard.simulate.keys import mix

NAME = "people"
SHARE = 0.50


def accounts(rng: np.random.Generator, n: int, days: int) -> Habits:
    """Some browse through a proxy service; some keep several accounts, or share a household's."""
    habits = ordinary(rng, n, days)
    wanders = rng.random((n, 1)) < 0.04
    team, key = teams(rng, n, 2.0, 0.3)
    shared, first = mix(key, 1) % np.uint64(12) == 0, np.searchsorted(team, team)
    lead = np.where(shared, first, np.arange(n))
    return habits.but(
        at=np.where(wanders, habits.at * rng.uniform(0, 0.8, (n, 1)), habits.at),
        payment=habits.payment[lead],
        networks=habits.networks[lead],
        zone=habits.zone[lead],
        wording=habits.wording[lead],
        taste=habits.taste[lead],
    )
