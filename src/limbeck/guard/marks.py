"""How a family of calls is divided among the accounts that make them: counts of fold 1, in SQL."""

from __future__ import annotations

from limbeck.guard.engine import Engine


def hits(layer: str) -> str:
    """Who called within which family how often, in both folds."""
    if layer != "template":
        return f"""SELECT key AS family, aid, h0, h1, calm, eliciting, pairs,
            h1 * (h1 - 1) AS room FROM uses_{layer}"""
    return """SELECT f.family, u.aid, sum(h0) AS h0, sum(h1) AS h1, sum(calm) AS calm,
            sum(eliciting) AS eliciting, sum(pairs) AS pairs,
            sum(h1 * (h1 - 1)) AS room
        FROM uses_template u JOIN families f ON f.key = u.key GROUP BY f.family, u.aid"""


def sums(hits: str) -> str:
    """What the tests need of each family: members by fold 0, their calls in fold 1.

    x is a member's calls within the family, n the days from its first call to its last.
    """
    terms = {
        "x": "h.h1",
        "xx": "h.h1 * h.h1",
        "n": "v.days",
        "xn": "h.h1 * v.days",
        "nn": "v.days * v.days",
        "calm": "h.calm",
        "eliciting": "h.eliciting",
        "pairs": "h.pairs",
        "room": "h.room / (24e0 * v.days)",
    }
    summed = ", ".join(f"cast(sum({term}) AS double) AS {name}" for name, term in terms.items())
    return f"""SELECT h.family, count(*) AS members, {summed}
        FROM {hits} h JOIN volumes v ON v.aid = h.aid WHERE h.h0 > 0
        GROUP BY h.family HAVING count(*) >= $least ORDER BY h.family"""


def repeats() -> str:
    """Calls of fold 1 in each family of templates, and how many different prompts they bring."""
    return """SELECT f.family, count(*) AS seen, count(DISTINCT t.exact) AS different
        FROM templated t JOIN families f ON f.key = t.template WHERE t.fold = 1 GROUP BY f.family"""


def set_ups() -> str:
    """How alike the client set-ups of a family are: Σ p² over its accounts' calls of fold 1."""
    return """SELECT family, cast(sum(calls * calls) AS double) AS squares,
            cast(sum(calls) AS double) AS calls FROM (
            SELECT f.family, t.stack, count(*) AS calls FROM templated t
            JOIN families f ON f.key = t.template WHERE t.fold = 1 GROUP BY f.family, t.stack)
        GROUP BY family"""


def shares(hits: str) -> str:
    """Mean and mean square of a user's share of its calls within a family, over tested families."""
    return f"""SELECT avg(mean) AS mean, avg(square) AS square FROM (
            SELECT avg(share) AS mean, avg(share * share) AS square FROM (
                SELECT h.family, cast(h.h0 + h.h1 AS double) / v.calls AS share
                FROM {hits} h JOIN volumes v ON v.aid = h.aid)
            GROUP BY family HAVING count(*) >= $least)"""


def calm(hits: str) -> str:
    """Accounts' calls of fold 1 within a family, in pairs of one hour and by chance; a sample."""
    return f"""SELECT h.family, h.h1, h.pairs, h.room / (24e0 * v.days) AS room
        FROM {hits} h JOIN volumes v ON v.aid = h.aid
        WHERE h.room >= 24e0 * v.days * $told AND h.aid % $part = 0"""


def known(engine: Engine) -> str:
    """What the table of accounts says, under the accounts' numbers; `signup` in spans of 3 days."""
    day = engine.div(engine.epoch_us("a.created"), str(3 * 86_400_000_000))
    return f"""SELECT i.aid, a.payment, {day} AS signup
        FROM accounts a JOIN account_ids i ON i.account = a.account"""


def kin(hits: str, column: str) -> str:
    """How many pairs of a family's members have the same entry in the table of accounts."""
    return f"""SELECT family, cast(sum(n * (n - 1)) AS double) AS same,
            cast(sum(n) AS double) AS members
        FROM (SELECT h.family, k.{column}, count(*) AS n FROM {hits} h JOIN known k ON k.aid = h.aid
            WHERE h.h0 > 0 AND k.{column} IS NOT NULL GROUP BY h.family, k.{column})
        GROUP BY family"""
