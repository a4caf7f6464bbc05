"""Divergences straight from their definitions, row by row in numpy, and cases to hold them to."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray


class Case(NamedTuple):
    teacher: NDArray[np.float64]  # (N, V) logits
    student: NDArray[np.float64]
    k: int
    temperature: float
    beta: float
    skew: float

    def options(self) -> dict[str, Any]:
        return {"beta": self.beta, "skew": self.skew, "temperature": self.temperature}


@st.composite
def cases(draw: st.DrawFn, scales: tuple[float, ...] = (0.1, 3.0, 20.0)) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, v = draw(st.integers(1, 4)), draw(st.integers(2, 40))

    def logits() -> NDArray[np.float64]:
        drawn = rng.normal(0, draw(st.sampled_from(scales)), (n, v)).clip(-50, 50)
        if draw(st.booleans()):  # a near one-hot row
            drawn[0, rng.integers(v)] += 50
        return drawn

    return Case(
        teacher=logits(),
        student=logits(),
        k=draw(st.sampled_from([1, v, draw(st.integers(1, v))])),
        temperature=draw(st.sampled_from([0.5, 1.0, 2.0, 7.0])),
        beta=draw(st.floats(0.05, 0.95)),
        skew=draw(st.just(0.0) | st.floats(1e-6, 0.95)),
    )


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def bucketed(row: NDArray[np.float64], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """One full distribution (V,) summed over the K kept tokens and everything else."""
    others = np.ones(len(row), bool)
    others[ids] = False
    return np.append(row[ids], row[others].sum())


def kl(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return sum(float(x * (math.log(x) - math.log(y))) for x, y in zip(a, b, strict=True) if x > 0)


def plain(
    p: NDArray[Any], q: NDArray[Any], kind: str, beta: float, skew: float, bucket: bool = True
) -> float:
    """The divergence of two explicit distributions, straight from its definition."""
    if kind == "forward_kl":
        return kl(p, q)
    if kind == "reverse_kl":
        return kl(q, p)
    if kind == "jsd":
        m = beta * p + (1 - beta) * q
        return beta * kl(p, m) + (1 - beta) * kl(q, m)
    if kind == "skew_kl":
        return kl(p, skew * p + (1 - skew) * q)
    if kind == "skew_reverse_kl":
        return kl(q, (1 - skew) * p + skew * q)
    gap = np.abs(p - q)
    if kind == "tvd":
        return float(gap.sum()) / 2
    tokens = p[:-1] if bucket else p
    order = -np.sort(-tokens)
    needed = np.flatnonzero(np.cumsum(order) >= 0.5)
    head = np.flatnonzero(tokens >= order[needed[0] if len(needed) else -1])
    w = float(gap[head].sum() / max(gap.sum(), 1e-300))
    return w * kl(p, q) + (1 - w) * kl(q, p)


def oracle(case: Case, ids: NDArray[np.int64], kind: str) -> NDArray[np.float64]:
    rows: list[float] = []
    for i, kept in enumerate(ids):
        p = bucketed(softmax(case.teacher[i] / case.temperature), kept)
        q = bucketed(softmax(case.student[i] / case.temperature), kept)
        bucket = len(kept) < case.teacher.shape[1]
        if not bucket:
            p, q = p[:-1], q[:-1]
        rows.append(plain(p, q, kind, case.beta, case.skew, bucket))
    return np.array(rows) * (case.temperature if kind == "tvd" else case.temperature**2)
