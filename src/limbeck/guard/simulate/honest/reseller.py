"""Resellers and agencies: many unrelated customers behind an account, or a payment."""

from __future__ import annotations

import numpy as np

from limbeck.guard.simulate import world
from limbeck.guard.simulate.habits import Habits
from limbeck.guard.simulate.honest import apps
from limbeck.guard.simulate.keys import Ints, Keys, key_of, mix, stream

NAME = "reseller"
SHARE = 0.02
AGENCIES = 6


def agency(number: Ints) -> tuple[Keys, Ints]:
    """The payment method and the gateway's network of agencies, the same for all who use one."""
    gateways = world.cloud(stream("agencies"), AGENCIES)
    key = np.full(len(number), key_of("agency"), dtype=np.uint64)
    return mix(key, number % AGENCIES), gateways[number % AGENCIES]


def accounts(rng: np.random.Generator, n: int, days: int) -> Habits:
    """Half serve all customers from one account; half are an agency's, one account a customer."""
    habits = apps.accounts(rng, n, days)
    alone = rng.random(n) < 0.5
    payment, gateway = agency(rng.integers(0, AGENCIES, n))
    return habits.but(
        customers=np.where(alone, np.exp(rng.normal(3.5, 1.0, n)).astype(np.int64) + 2, 0),
        payment=np.where(alone, habits.payment, payment),
        networks=np.where(alone[:, None], habits.networks, gateway[:, None]),
        channel=world.CHANNELS.index("partner"),
    )
