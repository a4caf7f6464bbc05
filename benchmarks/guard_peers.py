"""Detectors that judge one account at a time, written from their papers: what guard stands beside.

Each takes the calls of accounts and returns a score an account, higher for more suspect. Prompts
become hashed word counts, projected to 64 random directions, as cheap stand-ins for embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

Scores = dict[str, float]
WINDOW = 100  # prompts of an account that are looked at
_FEATURES = """
    SELECT account, count(*) calls, max(perday) most, avg(tokens_in) tin, stddev_pop(tokens_in) sin,
        avg(tokens_out) tout, stddev_pop(tokens_out) sout, count(DISTINCT network) nets,
        count(DISTINCT client) clients, count(DISTINCT model) models,
        avg(coalesce(temperature, -1)) temp, avg(coalesce(max_tokens, 0)) cap,
        avg(hour("time")) AS clock, stddev_pop(hour("time")) AS spread
    FROM (SELECT *, count(*) OVER (PARTITION BY account, "time"::DATE) perday FROM calls)
    GROUP BY account ORDER BY account
"""


def rate(calls: Path, accounts: list[str]) -> Scores:
    """The most calls on one day: what a rate limit sees."""
    names, table = _features(calls, accounts)
    return dict(zip(names, table[:, 1].tolist(), strict=True))


def isolation_forest(calls: Path, accounts: list[str]) -> Scores:
    """Isolation forest (Liu et al., 2008; scikit-learn's, which pyod wraps) on account features."""
    from sklearn.ensemble import IsolationForest  # pyright: ignore[reportMissingImports]

    names, table = _features(calls, accounts)
    table = np.log1p(np.abs(np.nan_to_num(table)))
    forest = IsolationForest(n_estimators=200, random_state=0).fit(table)
    return dict(zip(names, (-forest.score_samples(table)).tolist(), strict=True))


def prada(calls: Path, accounts: list[str]) -> Scores:
    """PRADA (Juuti et al., 2019): are the distances to the nearest earlier query normal?

    The score is 1 - W of Shapiro and Wilk's test over an account's first `WINDOW` prompts.
    """
    scores: Scores = {}
    for account, points in _points(calls, accounts).items():
        if len(points) < 20:
            continue
        far = np.linalg.norm(points[:, None] - points[None], axis=2)
        far[np.triu_indices(len(points))] = np.inf
        nearest = far[1:].min(1)
        scores[account] = 1 - float(stats.shapiro(nearest).statistic) if np.ptp(nearest) else 1.0
    return scores


def mmd(calls: Path, accounts: list[str]) -> Scores:
    """Maximum mean discrepancy of an account's window to all traffic (after arXiv 2606.05725).

    A Gaussian kernel by 256 random Fourier features at the median distance; the bias is taken off.
    """
    points = _points(calls, accounts)
    if not points:
        return {}
    every = np.concatenate(list(points.values()))
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, len(every), (2, 2_000))
    width = float(np.median(np.linalg.norm(every[pairs[0]] - every[pairs[1]], axis=1))) or 1.0
    turn = rng.standard_normal((every.shape[1], 256)) / width
    shift = rng.uniform(0, 2 * np.pi, 256)

    def features(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.cos(x @ turn + shift) * np.sqrt(2 / 256)

    mean = features(every[rng.integers(0, len(every), min(len(every), 50_000))]).mean(0)
    scores: Scores = {}
    for account, own in points.items():
        if len(own) >= 20:
            mapped = features(own)
            bias = mapped.var(0).sum() / len(own)
            scores[account] = float(((mapped.mean(0) - mean) ** 2).sum() - bias)
    return scores


PEERS: Mapping[str, Callable[[Path, list[str]], Scores]] = {
    "rate threshold": rate,
    "isolation forest": isolation_forest,
    "PRADA": prada,
    "MMD windows": mmd,
}


def _open(calls: Path, accounts: list[str]) -> duckdb.DuckDBPyConnection:
    base = duckdb.connect()
    base.register("wanted", pa.table({"account": accounts}))
    files = str(calls / "*" / "*.parquet").replace("'", "''")
    base.execute(f"CREATE VIEW calls AS SELECT * FROM '{files}' SEMI JOIN wanted USING (account)")  # noqa: S608
    return base


def _features(calls: Path, accounts: list[str]) -> tuple[list[str], NDArray[np.float64]]:
    rows = _open(calls, accounts).execute(_FEATURES).fetchall()
    return [r[0] for r in rows], np.array([r[1:] for r in rows], dtype=np.float64)


def _points(calls: Path, accounts: list[str]) -> dict[str, NDArray[np.float64]]:
    """An account's first prompts, (at most WINDOW, 64), each of length one."""
    from sklearn.feature_extraction.text import (  # pyright: ignore[reportMissingImports]
        HashingVectorizer,
    )

    words = HashingVectorizer(n_features=2_048, alternate_sign=False)
    spread = np.random.default_rng(0).standard_normal((2_048, 64)) / 8
    found = _open(calls, accounts).execute(
        'SELECT account, list(prompt ORDER BY "time")[1:?] FROM calls WHERE prompt IS NOT NULL '
        "GROUP BY account",
        [WINDOW],
    )
    points: dict[str, NDArray[np.float64]] = {}
    while rows := found.fetchmany(2_000):
        for account, prompts in rows:
            points[account] = np.asarray(words.transform(prompts) @ spread)
    return points
