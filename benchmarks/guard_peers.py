"""Detectors that judge one account at a time, from their papers or packages: guard stands beside.

Each takes the calls of accounts and returns a score an account, higher for more suspect, or raises
ImportError without its package. Prompts become hashed word counts, for PRADA and MMD projected to
64 random directions, as cheap stand-ins for embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

Scores = dict[str, float]
WINDOW = 100  # prompts of an account that are looked at
FEW = 30  # prompts that unmimic looks at, as it judges sentence by sentence
USUAL = 2_000  # prompts of the log that unmimic learns normal traffic from
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


def unmimic(calls: Path, accounts: list[str]) -> Scores:
    """The mean of what unmimic 0.1.0's input check gives an account's first `FEW` prompts.

    Its own sentences, first stage, attacks and hard negatives; hashed words instead of its 470 MB
    of embeddings, and prompts of this log instead of WildChat's. It judges requests, by whether
    they would extract hidden reasoning; its watch over accounts is announced and not there.
    """
    from unmimic.corpus import (  # pyright: ignore[reportMissingImports]
        load_families,
        load_prompts,
    )
    from unmimic.guards.input.extraction import chunks  # pyright: ignore[reportMissingImports]
    from unmimic.guards.input.stage1 import Stage1  # pyright: ignore[reportMissingImports]
    from unmimic.resources import bundled  # pyright: ignore[reportMissingImports]

    words = _words()
    families = load_families(bundled("attacks/public"))
    normal = load_prompts(bundled("benign/hard_negatives.yaml"))
    drawn = _open(calls, accounts).execute(
        'SELECT prompt FROM calls WHERE prompt IS NOT NULL ORDER BY hash(account, "time") LIMIT ?',
        [USUAL],
    )
    normal += [prompt for (prompt,) in drawn.fetchall()]
    attacks = words.transform([one for family in families for one in family.examples])
    benign = words.transform([piece for prompt in normal for piece in chunks(prompt)])
    stage = Stage1().fit(attacks.toarray(), benign.toarray())
    scores: Scores = {}
    for rows in _prompts(calls, accounts, FEW):
        pieces = [
            (account, place, piece)
            for account, prompts in rows
            for place, prompt in enumerate(prompts)
            for piece in chunks(prompt)
        ]
        worst: dict[tuple[str, int], float] = {}
        found = stage.score(words.transform([piece for _, _, piece in pieces])) if pieces else []
        for (account, place, _), score in zip(pieces, found, strict=True):
            worst[account, place] = max(worst.get((account, place), 0.0), float(score))
        for account, prompts in rows:
            each = [worst.get((account, place), 0.0) for place in range(len(prompts))]
            scores[account] = sum(each) / len(each)
    return scores


PEERS: Mapping[str, Callable[[Path, list[str]], Scores]] = {
    "rate threshold": rate,
    "isolation forest": isolation_forest,
    "PRADA": prada,
    "MMD windows": mmd,
    "unmimic input check": unmimic,
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
    words, spread = _words(), np.random.default_rng(0).standard_normal((2_048, 64)) / 8
    return {
        account: np.asarray(words.transform(prompts) @ spread)
        for rows in _prompts(calls, accounts, WINDOW)
        for account, prompts in rows
    }


def _words() -> Any:
    from sklearn.feature_extraction.text import (  # pyright: ignore[reportMissingImports]
        HashingVectorizer,
    )

    return HashingVectorizer(n_features=2_048, alternate_sign=False)


def _prompts(calls: Path, accounts: list[str], most: int) -> Iterator[list[tuple[str, list[str]]]]:
    """Accounts with their first prompts, some thousands at a time."""
    found = _open(calls, accounts).execute(
        'SELECT account, list(prompt ORDER BY "time")[1:?] FROM calls WHERE prompt IS NOT NULL '
        "GROUP BY account",
        [most],
    )
    while rows := found.fetchmany(2_000):
        yield rows
