"""Batch labellers: one template over a long list, hundreds of calls in a run."""

from __future__ import annotations

import numpy as np

from limbeck.guard.simulate.habits import Habits, fresh_keys, subjects, teams
from limbeck.guard.simulate.honest import apps
from limbeck.guard.simulate.keys import mix
from limbeck.guard.simulate.shapes import GAP_SIGMA, RHYTHMS

NAME = "labeller"
SHARE = 0.03


def accounts(rng: np.random.Generator, n: int, days: int) -> Habits:
    """Three in ten are firms that deal one list out to several keys, as a campaign does."""
    habits = apps.accounts(rng, n, days)
    team, key = teams(rng, n, 5.0, 0.5)
    first = np.searchsorted(team, team)
    size = np.searchsorted(team, team, side="right") - first
    split = (mix(key, 1) % np.uint64(10)) < 3
    lead = np.where(split, first, np.arange(n))
    owner = np.where(split, key, habits.who)
    return habits.rows(lead).but(
        who=habits.who,
        payment=np.where(split, mix(key, 2), habits.payment),
        organisation=np.where(split, mix(key, 3), habits.organisation),
        domain=np.where(split, mix(key, 3), habits.domain),
        rate=np.minimum(np.exp(rng.normal(5.0, 1.1, n)), 20_000.0)[lead],
        weekday=rng.uniform(0.1, 0.6, n),
        weekend=rng.uniform(0.05, 0.4, n),
        session=np.exp(rng.normal(4.6, 0.8, n)),
        gap=np.exp(rng.normal(0.5, 0.7, n)),
        gap_sigma=GAP_SIGMA["long"],
        rhythm=rng.choice([RHYTHMS.index("nightly"), RHYTHMS.index("office")], n),
        temperature=rng.choice([0.0, np.nan], n, p=[0.75, 0.25]),
        limit=rng.choice([0, 64, 256, 1024], n, p=[0.25, 0.25, 0.3, 0.2])[lead],
        logprobs=rng.choice([-1, 1], n, p=[0.8, 0.2])[lead],
        stream=0,
        subject=subjects("business"),
        breadth=1,
        taste=mix(owner, 4),
        own=1.0,
        templates=1,
        wording=mix(owner, 5),
        loose=0.0,
        popular=0.0,
        pool=rng.integers(5_000, 500_000, n)[lead],
        inputs=np.where(split, mix(key, 6), fresh_keys(rng, n)),
        dealt=1,
        seat=np.where(split, np.arange(n) - first, 0),
        seats=np.where(split, size, 1),
        history=0.0,
    )
