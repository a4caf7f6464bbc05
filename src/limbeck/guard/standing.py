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

STEPS = {"age": 2, "calls": 3, "an_hour": 4, "networks": 2}
"""Steps an octave of the traits that are measured."""


def _steps(trait: str, sql: str) -> str:
    return f"cast(floor({STEPS[trait]} * log2({sql})) AS bigint)"


KNOWN = {
    # In days before the log's first hour.
    "age": "CASE WHEN k.signup IS NOT NULL THEN "
    + _steps("age", "1 + greatest(0, (SELECT min(hour) FROM events) / 24e0 - 3 * k.signup)")
    + " END",
    "email_domain": "k.email_domain",
    "channel": "k.channel",
    "tier": "k.tier",
    "payment": "CASE WHEN k.payment IS NULL THEN 0 ELSE 1 END",
    "organisation": "CASE WHEN k.organisation IS NULL THEN 0 ELSE 1 END",
}
"""Traits that the table of accounts tells."""
SEEN = {
    "calls": _steps("calls", "p.calls"),
    "an_hour": _steps("an_hour", "p.calls / cast(p.hours AS double)"),
    "days": "p.days",
}
"""Traits of an account's calls, all of them."""
PLACES = {"networks": _steps("networks", "h.networks"), "home": "h.home"}
"""Traits of where they come from."""
TRAITS = (*KNOWN, *SEEN, *PLACES)
STRANGE = 0.1
"""The campaign's accounts that may be like everybody's in any one trait."""
SEEN_BY = 3
"""A value counts as the campaign's when so many firm members have it."""
PRIOR = 10.0
"""Accounts like everybody's that each estimate begins with."""


def paces(engine: Engine) -> str:
    """Of each account: its calls, and in how many hours and days it made any."""
    day = engine.div("hour", "24")
    return f"""SELECT aid, sum(n) AS calls, count(*) AS hours, count(DISTINCT {day}) AS days
        FROM (SELECT aid, hour, count(*) AS n FROM events GROUP BY aid, hour) GROUP BY aid"""


def visits() -> str:
    """How many calls came from where: account, network, system."""
    return """SELECT i.aid, s.network, s.asn, count(*) AS n FROM sketched s
        JOIN account_ids i ON i.account = s.account GROUP BY i.aid, s.network, s.asn"""


def homes() -> str:
    """Of each account: its networks, and the one that most of its calls come from."""
    return """SELECT aid, count(*) AS networks, max(CASE WHEN place = 1 THEN network END) AS home
        FROM (SELECT aid, network, row_number() OVER (
                PARTITION BY aid ORDER BY n DESC, network) AS place
            FROM (SELECT aid, network, sum(n) AS n FROM visits
                WHERE network IS NOT NULL GROUP BY aid, network))
        GROUP BY aid"""


def stood() -> str:
    """A row an account and trait, where anything is known."""
    each = [
        f"SELECT {table[-1]}.aid, '{name}' AS trait, cast({sql} AS string) AS value FROM {table}"
        for table, traits in (("known k", KNOWN), ("paces p", SEEN), ("homes h", PLACES))
        for name, sql in traits.items()
    ]
    return f"SELECT * FROM ({' UNION ALL '.join(each)}) WHERE value IS NOT NULL"


def common() -> str:
    """The values that three in ten `members` of a campaign have, twice as many as of all."""
    return """SELECT c.campaign, c.trait, c.value, c.members, v.users FROM (
            SELECT m.campaign, s.trait, s.value, count(*) AS members FROM stood s
            JOIN members m ON m.aid = s.aid GROUP BY m.campaign, s.trait, s.value) c
        JOIN (SELECT campaign, count(*) AS size FROM members GROUP BY campaign) z
            ON z.campaign = c.campaign
        JOIN (SELECT trait, value, count(*) AS users FROM stood GROUP BY trait, value) v
            ON v.trait = c.trait AND v.value = c.value
        WHERE c.members >= 0.3e0 * z.size AND
            c.members * (SELECT count(*) FROM account_ids) >= 2 * v.users * z.size
        ORDER BY c.campaign, c.members DESC, c.trait, c.value"""


def said(trait: str, value: str) -> str:
    """A value of a trait, as a person reads it."""
    words = {
        "email_domain": f"mail at {value}",
        "channel": f"signed up through {value}",
        "tier": f"tier {value}",
        "payment": "no payment known" if value == "0" else "a payment known",
        "organisation": "no organisation" if value == "0" else "an organisation",
        "home": f"most calls from {value}",
        "days": f"calls on {value} days",
    }
    if trait in words:
        return words[trait]
    low, high = (2 ** (step / STEPS[trait]) for step in (int(value), int(value) + 1))
    return {
        "age": f"signed up {low - 1:.0f} to {high - 1:.0f} days before the log begins",
        "calls": f"{low:,.0f} to {high:,.0f} calls in all",
        "an_hour": f"{low:.1f} to {high:.1f} calls in an hour with any",
        "networks": f"{low:,.0f} to {high:,.0f} networks",
    }[trait]


def odds(engine: Engine, core: NDArray[np.bool_]) -> Floats:
    """The log-likelihood ratio of each account, (accounts,), learnt from firm ones (`core`, same).

    A trait of which nothing is known, of an account or in the whole log, adds nothing.
    """
    engine.keep("learnt_from", pa.table({"aid": np.flatnonzero(core)}))
    rows = engine.fetch(
        """SELECT s.trait, s.value, count(*) AS n, count(c.aid) AS firm FROM stood s
            LEFT JOIN learnt_from c ON c.aid = s.aid GROUP BY s.trait, s.value
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
    found = np.zeros(len(core))
    found[column(sums, "aid")] = numbers(sums, "weight") / 1000
    return found


_TOLD = pa.schema([("trait", pa.string()), ("value", pa.string()), ("weight", pa.int64())])
