"""Services with one narrow template and many visitors: a support bot, a caption writer, a tutor."""

from __future__ import annotations

import numpy as np

from limbeck.guard.simulate.habits import Habits, subjects
from limbeck.guard.simulate.honest import apps

NAME = "single-bot"
SHARE = 0.05


def accounts(rng: np.random.Generator, n: int, days: int) -> Habits:
    """One template, one topic; some ask for reasoning or write code, as a campaign does."""
    places = [subjects(s) for s in ("business", "study", "develop", "reasoning", "personal")]
    return apps.accounts(rng, n, days).but(
        subject=rng.choice(places, n, p=[0.5, 0.2, 0.12, 0.1, 0.08]),
        breadth=1,
        templates=1,
        own=1.0,
        loose=0.0,
        popular=0.0,
        history=np.where(rng.random(n) < 0.6, 0.0, 0.3),
    )
