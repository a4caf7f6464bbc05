"""The shapes of tokens, gaps and days; fitted by `benchmarks/traces.py`, or assumed, as said.

Log-normal mixtures as (weight, mu, sigma) of natural logarithms. Sources: `conversation` and `code`
are the Azure LLM inference traces of 2023 (Patel et al., Splitwise, ISCA 2024; CC BY 4.0); `long`
is Mooncake's conversation trace (Qin et al., FAST 2025; Apache-2.0).
"""

from __future__ import annotations

import numpy as np

from limbeck.guard.simulate.keys import Floats, Ints

SHAPES = ("conversation", "code", "long")
TOKENS_IN = {
    "conversation": ((0.014, 2.993, 0.697), (0.986, 6.685, 0.888)),
    "code": ((0.305, 5.518, 1.307), (0.695, 7.650, 0.724)),
    "long": ((0.128, 6.856, 0.100), (0.872, 9.013, 1.026)),
}
TOKENS_OUT = {
    "conversation": ((0.695, 4.577, 0.648), (0.305, 6.024, 0.100)),
    "code": ((0.659, 2.365, 0.383), (0.341, 3.605, 0.899)),
    "long": ((0.338, 4.024, 1.617), (0.662, 6.008, 0.346)),
}
# The sigma at which log-normal gaps have the trace's coefficient of variation.
GAP_SIGMA = {"conversation": 0.887, "code": 2.271, "long": 1.524}

# Assumed: the weight of each hour of the local day.
HOURS = {
    "office": (1, 1, 1, 1, 1, 1, 3, 10, 30, 46, 50, 46, 34, 40, 48, 46, 40, 26, 14, 10, 9, 7, 4, 2),
    "evening": (6, 3, 2, 1, 1, 1, 3, 6, 9, 11, 12, 13, 14, 13, 13, 14, 17, 21, 26, 31, 34, 32, 24,
                13),
    "student": (14, 9, 5, 3, 1, 1, 1, 3, 8, 14, 18, 18, 15, 19, 21, 20, 19, 18, 19, 23, 27, 28,
                26, 21),
    "flat": (1,) * 24,
    "visitors": (9, 6, 5, 4, 4, 5, 8, 12, 17, 21, 23, 24, 24, 23, 23, 22, 22, 23, 25, 26, 25, 22,
                 17, 12),
    "nightly": (20, 30, 40, 40, 24, 10, 4, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4, 6, 12),
}  # fmt: skip
RHYTHMS = tuple(HOURS)
_FINE = 1 << 10


def _quantiles(weights: tuple[int, ...]) -> Floats:
    share = np.concatenate([[0.0], np.cumsum(weights) / sum(weights)])
    return np.interp(np.arange(_FINE + 1) / _FINE, share, np.arange(25) * 3600.0)


_DAY = np.array([_quantiles(weights) for weights in HOURS.values()])


def second_of_day(rhythm: Ints, drawn: Floats) -> Floats:
    """The local second at which the share `drawn` of a day's sessions has begun."""
    place = drawn * _FINE
    cell = place.astype(np.int64)
    left = _DAY[rhythm, cell]
    return left + (place - cell) * (_DAY[rhythm, cell + 1] - left)


def tokens(table: dict[str, tuple[tuple[float, float, float], ...]], shape: Ints,
           rng: np.random.Generator) -> Floats:  # fmt: skip
    """A draw from the mixture of each row's shape, in tokens, (n,)."""
    parts = np.array([table[name] for name in SHAPES])  # (shape, part, 3)
    part = (rng.random(len(shape), dtype=np.float32) >= parts[shape, 0, 0]).astype(np.int64)
    normal = rng.standard_normal(len(shape), dtype=np.float32)
    return np.exp(parts[shape, part, 1] + parts[shape, part, 2] * normal)
