"""How a family of calls is divided among the accounts that make them: counts in SQL."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.guard.engine import Engine
from limbeck.guard.features import FAMILIES, KEYS, LENGTHS, WAYS, Layer

LIVES = 0.6
"""Above this share of its calls an account lives by a family, and is tested with its like."""


def hits(layer: Layer) -> str:
    """Who called within which family how often, and whether it lives by it (`lives`, 0 or 1)."""
    source, family = _families(layer, f"uses_{layer}")
    return f"""SELECT h.*, v.days, CASE WHEN h.n > {LIVES} * v.calls THEN 1 ELSE 0 END AS lives
        FROM (SELECT {family} AS family, u.aid, sum(n) AS n, sum(calm) AS calm,
                sum(eliciting) AS eliciting
            FROM {source} GROUP BY {family}, u.aid) h
        JOIN volumes v ON v.aid = h.aid"""


def _families(layer: Layer, table: str) -> tuple[str, str]:
    """Rows `u` with a layer's keys, as SQL, and the families of these keys."""
    if layer == "template":
        return f"{table} u JOIN families f ON f.key = u.key", "f.family"
    return f"{table} u", "u.key"


def sums(hits: str) -> str:
    """What the tests need of each family's users: calls and their marks."""
    terms = ("n", "calm", "eliciting")
    summed = ", ".join(f"cast(sum({term}) AS double) AS {term}" for term in terms)
    return f"""SELECT family, lives, count(*) AS users, {summed} FROM {hits}
        GROUP BY family, lives HAVING count(*) >= $least ORDER BY family, lives"""


def bursts(layer: Layer) -> str:
    """Ordered pairs of an account's calls with one key in one hour, and the room for them.

    Of one account in `part`.
    """
    source, family = _families(
        layer,
        f"""(SELECT {KEYS[layer]} AS key, aid, hour, count(*) AS n FROM events
                WHERE {KEYS[layer]} IS NOT NULL AND aid % $part = 0
                GROUP BY {KEYS[layer]}, aid, hour)""",
    )
    return f"""SELECT h.family, h.lives, cast(sum(coalesce(p.pairs, 0)) AS double) AS pairs,
            sum(h.n * (h.n - 1) / (24e0 * h.days)) AS room
        FROM hits_{layer} h LEFT JOIN (
            SELECT {family} AS family, u.aid, sum(u.n * (u.n - 1)) AS pairs
            FROM {source} WHERE u.n > 1 GROUP BY {family}, u.aid) p
            ON p.family = h.family AND p.aid = h.aid
        WHERE h.aid % $part = 0 GROUP BY h.family, h.lives"""


def histogram(hits: str) -> str:
    """How many users of each family made how many calls in how many days."""
    return f"""SELECT family, lives, n AS x, days, count(*) AS users FROM {hits}
        GROUP BY family, lives, n, days ORDER BY family, lives, x, days"""


def repeats() -> str:
    """Calls in the families `even` of templates, and how many different prompts they bring.

    Of one prompt in `part`, with all its calls.
    """
    return """SELECT f.family, count(*) AS seen, count(DISTINCT t.prompt) AS different
        FROM events t JOIN (SELECT f.key, f.family, e.part FROM families f
            JOIN even e ON e.family = f.family) f ON f.key = t.template
        WHERE t.prompt % f.part = 0 GROUP BY f.family"""


def set_ups() -> str:
    """How alike a family's client set-ups are: Σ p² over the calls of one account in `part`."""
    return """SELECT family, cast(sum(calls * calls) AS double) AS squares,
            cast(sum(calls) AS double) AS calls FROM (
            SELECT f.family, t.stack, count(*) AS calls FROM events t
            JOIN families f ON f.key = t.template WHERE t.aid % $part = 0
            GROUP BY f.family, t.stack)
        GROUP BY family"""


def known(engine: Engine) -> str:
    """What the table of accounts says, under the accounts' numbers; `signup` in spans of 3 days."""
    day = engine.div(engine.epoch_us("a.created"), str(3 * 86_400_000_000))
    return f"""SELECT i.aid, a.payment, {day} AS signup,
            a.email_domain, a.channel, a.tier, a.organisation
        FROM accounts a JOIN account_ids i ON i.account = a.account"""


def kin(hits: str, column: str) -> str:
    """How many pairs of a family's members have the same entry in the table of accounts."""
    return f"""SELECT family, lives, cast(sum(n * (n - 1)) AS double) AS same,
            cast(sum(n) AS double) AS users
        FROM (SELECT h.family, h.lives, k.{column}, count(*) AS n
            FROM {hits} h JOIN known k ON k.aid = h.aid
            WHERE k.{column} IS NOT NULL GROUP BY h.family, h.lives, k.{column})
        GROUP BY family, lives"""


def payments() -> str:
    """The accounts that share a payment with a few others, and a number for it."""
    return """SELECT k.aid, cast(g.payment AS bigint) AS payment FROM known k JOIN (
            SELECT payment AS name, row_number() OVER (ORDER BY payment) - 1 AS payment
            FROM known WHERE payment IS NOT NULL
            GROUP BY payment HAVING count(*) BETWEEN 2 AND $most) g
        ON g.name = k.payment"""


def cells(stacks: Sequence[int], templates: Sequence[int]) -> str:
    """Who called how often in each cell: a family of templates (kind 1), or a way of asking (2).

    Through the set-ups `stacks`; of the families `templates`, through any.
    """
    through = " OR ".join(
        f"{name} IN ({', '.join(map(str, keys))})"
        for name, keys in (("t.stack", stacks), ("f.family", templates))
        if keys
    )
    ways = ", ".join(map(str, stacks)) or "-1"
    return f"""SELECT c.kind, c.key, c.aid, c.n, v.days FROM (
            SELECT 1 AS kind, t.stack * {FAMILIES} + f.family AS key, t.aid, count(*) AS n
            FROM events t JOIN families f ON f.key = t.template WHERE {through}
            GROUP BY t.stack * {FAMILIES} + f.family, t.aid
            UNION ALL
            SELECT 2 AS kind, method AS key, aid, count(*) AS n FROM events
            WHERE stack IN ({ways}) GROUP BY method, aid) c
        JOIN volumes v ON v.aid = c.aid"""


def large_cells() -> str:
    """The cells that enough accounts use."""
    return """SELECT c.* FROM cells c JOIN (
            SELECT kind, key FROM cells GROUP BY kind, key HAVING count(*) >= $least) k
            ON k.kind = c.kind AND k.key = c.key
        ORDER BY c.kind, c.key, c.aid"""


def divided(by: str, stacks: Sequence[int]) -> str:
    """Each account's calls through some set-ups, by what they ask for or by their length."""
    parts = {"method": WAYS, "shape": LENGTHS}[by]
    return f"""SELECT {by} % {parts} AS key, aid, count(*) AS n FROM events
        WHERE stack IN ({", ".join(map(str, stacks))}) GROUP BY {by} % {parts}, aid
        ORDER BY aid, key"""
