"""Universities: hundreds of students behind one network, on the same homework."""

from __future__ import annotations

import numpy as np

from limbeck.guard.simulate import world
from limbeck.guard.simulate.habits import DAY, Habits, ordinary, subjects, teams
from limbeck.guard.simulate.keys import mix
from limbeck.guard.simulate.shapes import RHYTHMS

NAME = "campus"
SHARE = 0.06


def accounts(rng: np.random.Generator, n: int, days: int) -> Habits:
    """One mail domain, an education programme; half the accounts are made as the course begins."""
    habits = ordinary(rng, n, days)
    school, key = teams(rng, n, 120.0, 0.8)
    course = mix(key, rng.integers(0, 4, n))
    count = 1 + int(school.max(initial=0))
    term = rng.uniform(-60, 0.7 * days, count)[school] * DAY
    nat = world.office(rng, count)[school]
    homework = rng.random(n) < 0.5
    campus = rng.beta(4, 2, n) * 0.8
    asks = [subjects(s) for s in ("study", "leisure", "develop")]
    return habits.but(
        domain=mix(key, 9),
        organisation=np.where(mix(key, 8) % np.uint64(3) == 0, mix(key, 9), 0),
        channel=np.where(rng.random(n) < 0.8, world.CHANNELS.index("education"), habits.channel),
        payment=np.where(rng.random(n) < 0.8, 0, habits.payment),
        created=np.where(rng.random(n) < 0.5, term + rng.exponential(DAY, n), habits.created),
        networks=np.stack([nat, habits.networks[:, 0], habits.networks[:, 2]], 1),
        at=np.stack([campus, 0.8 * (1 - campus), 0.18 * (1 - campus)], 1),
        zone=habits.zone[np.searchsorted(school, school)],
        rhythm=RHYTHMS.index("student"),
        subject=rng.choice(asks, n, p=[0.6, 0.2, 0.2]),
        breadth=rng.integers(1, 5, n),
        taste=np.where(homework, course, habits.taste),
        pool=np.where(homework, 60, 0),
        inputs=course,
    )
