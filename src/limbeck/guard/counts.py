"""Gamma functions of counts: these take few values, and a look-up costs a thirtieth of one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limbeck.guard.arrow import special

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Counts (n,) by the values that occur: `values[at]` are the counts."""

    values: Floats
    at: NDArray[np.int64]

    @staticmethod
    def of(counts: Floats) -> Counts:
        """Sort out what occurs."""
        values, at = np.unique(counts, return_inverse=True)
        return Counts(values, at.astype(np.int64))

    def gammaln(self, plus: float) -> Floats:
        """Log Γ(count + plus), (n,)."""
        told: Floats = special.gammaln(self.values + plus)[self.at]
        return told
