"""What a provider knows of accounts, and how much oftener a campaign's accounts are so.

Accounts that were made for one purpose were made within weeks of each other, through the same
programme, under the same kind of address. None of it accuses anybody; it tilts the scale on which
an account's calls are weighed, by the log of how much oftener firm members have it than everybody.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from limbeck.guard.arrow import column, numbers, pa
from limbeck.guard.engine import Engine

Floats = NDArray[np.float64]

TRAITS = {
    # An account as old as another within two fifths, in days before the log's first hour.
    "age": """cast(floor(2 * log2(1 + greatest(0, (SELECT min(hour) FROM events) / 24e0
        - 3 * k.signup))) AS bigint)""",
    "email_domain": "k.email_domain",
    "channel": "k.channel",
    "tier": "k.tier",
    "organisation": "CASE WHEN k.organisation IS NULL THEN 0 ELSE 1 END",
}
STRANGE = 0.1
"""The campaign's accounts that may be like everybody's in any one trait."""
SEEN_BY = 3
"""A value counts as the campaign's when so many firm members have it."""
PRIOR = 10.0
"""Accounts like everybody's that each estimate begins with."""


def stood() -> str:
    """A row an account and trait, where anything is known."""
    each = [
        f"SELECT k.aid, '{name}' AS trait, cast({sql} AS varchar) AS value FROM known k"
        for name, sql in TRAITS.items()
    ]
    return f"SELECT * FROM ({' UNION ALL '.join(each)}) WHERE value IS NOT NULL"


def odds(engine: Engine, accounts: int) -> Floats:
    """The log-likelihood ratio of each account, (accounts,), learnt from firm ones (`core`).

    0 where nothing is known of an account, or the log has no table of accounts.
    """
    rows = engine.fetch(
        """SELECT s.trait, s.value, count(*) AS n, count(c.aid) AS firm FROM stood s
            LEFT JOIN core c ON c.aid = s.aid GROUP BY s.trait, s.value
            ORDER BY s.trait, s.value"""
    )
    trait, value = (np.array(rows[name].to_pylist(), object) for name in ("trait", "value"))
    n, firm = numbers(rows, "n"), numbers(rows, "firm")
    told = np.zeros(len(n))
    for name in TRAITS:
        mine = trait == name
        if not firm[mine].sum():
            continue
        seen = mine & (firm >= SEEN_BY)
        rest = np.flatnonzero(mine & ~seen)
        for at in [*np.flatnonzero(seen)[:, None], *([rest] if len(rest) else [])]:
            usual = n[at].sum() / n[mine].sum()
            share = (firm[at].sum() + PRIOR * usual) / (firm[mine].sum() + PRIOR)
            told[at] = np.log(STRANGE + (1 - STRANGE) * share / usual)
    milli = np.rint(1000 * told).astype(np.int64)
    table = {"trait": trait.tolist(), "value": value.tolist(), "weight": milli}
    engine.keep("told", pa.table(table, schema=_TOLD))
    sums = engine.fetch(
        """SELECT s.aid, cast(sum(w.weight) AS bigint) AS weight FROM stood s
            JOIN told w ON w.trait = s.trait AND w.value = s.value GROUP BY s.aid"""
    )
    found = np.zeros(accounts)
    found[column(sums, "aid")] = numbers(sums, "weight") / 1000
    return found


_TOLD = pa.schema([("trait", pa.string()), ("value", pa.string()), ("weight", pa.int64())])
