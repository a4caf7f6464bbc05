"""Which templates are used by the same accounts, more than chance would have it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limbeck.guard.arrow import Table, stats

HUB = 0.05
"""A template that more than this share of accounts use links nothing: it is tested by itself."""
FEW = 50
"""A template of fewer accounts is no hub, however small the log."""
KEYS_AN_ACCOUNT = 40
"""An account votes with so many of its rarest templates, so that pairs stay linear in calls."""


def votes() -> str:
    """What each account used, without hubs: its rarest templates only."""
    return """SELECT aid, key FROM (
            SELECT u.aid, u.key, row_number() OVER (PARTITION BY u.aid ORDER BY d.users, u.key) AS n
            FROM uses_template u JOIN degrees d ON d.key = u.key
            WHERE d.users BETWEEN 3 AND $hub)
        WHERE n <= $most"""


def degrees() -> str:
    """How many accounts used a template."""
    return "SELECT key, count(*) AS users FROM uses_template GROUP BY key"


def pairs() -> str:
    """Pairs of templates with how many accounts voted for both."""
    return """SELECT a.key AS one, b.key AS other, count(*) AS both
        FROM votes a JOIN votes b ON a.aid = b.aid AND a.key < b.key
        GROUP BY a.key, b.key HAVING count(*) >= 2"""


@dataclass(frozen=True, slots=True)
class Edges:
    """Pairs of keys that are linked, each with the log of observed over expected co-use."""

    one: NDArray[np.int64]
    other: NDArray[np.int64]
    weight: NDArray[np.float64]


def edges(pairs: Table, votes: Table, rate: float = 0.01) -> Edges:
    """The pairs whose co-use beats the null that keeps popularity, at a false discovery rate.

    Under the configuration model, which keeps how many accounts use a template and how many
    templates an account uses, the accounts common to templates i and j are Poisson with mean
    d_i·d_j·Σ_a w_a(w_a − 1) ÷ (Σ_a w_a)². Benjamini–Hochberg (1995) runs over the pairs seen; those
    with fewer than two common accounts count as tests that did not reject.
    """
    key = _ints(votes, "key")
    keys, degree = np.unique(key, return_counts=True)
    _, width = np.unique(_ints(votes, "aid"), return_counts=True)
    one, other, both = (_ints(pairs, name) for name in ("one", "other", "both"))
    if not len(one):
        return Edges(one, other, np.zeros(0))
    first, second = (degree[np.searchsorted(keys, end)].astype(float) for end in (one, other))
    mean = first * second * float((width * (width - 1)).sum()) / float(width.sum()) ** 2
    tail = np.asarray(stats.poisson.sf(both - 1, mean))
    kept = benjamini_hochberg(tail, rate, tests=len(keys) * (len(keys) - 1) // 2)
    return Edges(one[kept], other[kept], np.log(both[kept] / mean[kept]))


def benjamini_hochberg(
    p: NDArray[np.float64], rate: float, tests: int | None = None
) -> NDArray[np.bool_]:
    """Which p-values to reject so that at most `rate` of the rejections are false (BH 1995)."""
    tests = len(p) if tests is None else tests
    order = np.argsort(p, kind="stable")
    passed = np.flatnonzero(p[order] <= rate * np.arange(1, len(p) + 1) / max(tests, 1))
    kept = np.zeros(len(p), bool)
    if len(passed):
        kept[order[: passed[-1] + 1]] = True
    return kept


def _ints(table: Table, name: str) -> NDArray[np.int64]:
    return table[name].to_numpy().astype(np.int64)
