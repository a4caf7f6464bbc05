"""Honest accounts, a kind a file: each has a NAME, the SHARE of accounts, and `accounts`."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, cast

import numpy as np

from limbeck.guard.simulate.habits import Habits


class Kind(Protocol):
    """A kind of honest account."""

    NAME: str
    SHARE: float

    def accounts(self, rng: np.random.Generator, n: int, days: int) -> Habits:
        """As many as n, for a simulation of that many days."""
        ...


def kinds() -> tuple[Kind, ...]:
    """Every kind, by name."""
    names = sorted(module.name for module in iter_modules(__path__))
    return tuple(cast(Kind, import_module(f"{__name__}.{name}")) for name in names)
