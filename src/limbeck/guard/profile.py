"""What a campaign's calls look like, learnt from its firm members; who makes such calls.

Fellegi and Sunter's weights, a call at a time: each trait of a call (its set-up, what it carries,
what it asks for, its topic, its template, the length of the answer) weighs the log of how much
oftener the campaign's calls have it than everybody's. An account is then judged by how many of its
calls reach a weight. Integers throughout, so that no order of rows or engine changes a sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from limbeck.guard.arrow import Table, pa
from limbeck.guard.engine import Engine
from limbeck.guard.features import FAMILIES, KEYS, LENGTHS, WAYS, Layer

PARTS = 1_000_000_000
"""An account is so many parts of the background, shared among its calls, of which it may have
millions."""
MILLI = 1000
"""Weights are kept in thousandths of a nat."""
LEVELS = (1, 2, 3, 4, 5, 6, 8, 10)
"""Weights at which calls are counted, in nats."""
SUSPECT = 2
"""A member's call of this level, a place in `LEVELS`, counts as taken by the campaign."""
VIEWS = {"weight": SUSPECT, "besides": 0}
"""A call's whole weight, and that of all traits besides the set-up, as some accounts of a campaign
work through the set-up of their cover. With each the level, a place in `LEVELS`, that a member has
calls of: without the set-up every call says less."""
STRANGE = 0.3
"""The campaign's calls that may be like everybody's in any one trait: what firm members, found by
a set-up or a template, do not show of the others."""
SEEN_BY = 3
"""A value counts as the campaign's when so many firm members use it."""
PRIOR = 50.0
"""Calls like everybody's that each estimate begins with."""
TRAITS = {
    "client": "e.stack",
    "length": f"e.shape % {LENGTHS}",
    "out": "cast(floor(2 * log2(1 + e.tokens_out)) AS bigint)",
    "way": f"e.method % {WAYS}",
    "topic": "e.topic",
    "template": "e.template",
}
COUNTED: dict[str, Layer] = {"client": "client", "length": "shape", "template": "template"}
"""Traits that go by a layer's key alone, which `uses_…` counts by account: fewer rows."""
PROMPTED = ("way", "topic", "template")


def traits(*, prompts: bool) -> dict[str, str]:
    """The traits that the log allows, as SQL over `events e` and their templates `t`."""
    return {k: v for k, v in TRAITS.items() if prompts or k not in PROMPTED}


def background(*, prompts: bool) -> str:
    """How common each value of each trait is, an account weighing as much as another."""
    each: list[str] = []
    for name, sql in traits(prompts=prompts).items():
        table, n = "events", "1"
        if layer := COUNTED.get(name):
            table, n, sql = f"uses_{layer}", "e.n", sql.replace(f"e.{KEYS[layer]}", "e.key")
        each.append(
            f"""SELECT '{name}' AS trait, {sql} AS value, cast(sum({n} * v.part) AS bigint) AS mass
            FROM {table} e JOIN parts v ON v.aid = e.aid WHERE {sql} IS NOT NULL GROUP BY {sql}"""
        )
    return " UNION ALL ".join(each)


def parts(engine: Engine) -> str:
    """The parts of the background that each call of an account is."""
    return f"SELECT aid, {engine.div(str(PARTS), 'calls')} AS part FROM volumes"


def work(groups: Sequence[tuple[str, int]]) -> str:
    """The calls that firm members (`core`) made within these families and cells."""
    within = {
        "shape": "e.shape IN ({})",
        "client": "e.stack IN ({})",
        "method": "e.method IN ({})",
        "template": "f.family IN ({})",
        "recipe": f"e.stack * {FAMILIES} + f.family IN ({{}})",
    }
    wanted = [
        sql.format(", ".join(keys))
        for layer, sql in within.items()
        if (keys := [str(key) for of, key in groups if of == layer])
    ]
    named = any(layer in ("template", "recipe") for layer, _ in groups)
    return f"""SELECT e.aid, e.stack, e.shape, e.method, e.topic, e.template, e.tokens_out, e.prompt
        FROM events e JOIN core c ON c.aid = e.aid
        {"LEFT JOIN families f ON f.key = e.template" if named else ""}
        WHERE {" OR ".join(wanted)}"""


def in_common() -> str:
    """By how many firm members a prompt of the campaign's calls (`work`) is used, on average."""
    return """SELECT coalesce(sum(users * users) / cast(sum(users) AS double), 0e0) AS users FROM (
            SELECT prompt, count(DISTINCT aid) AS users FROM work
            WHERE prompt IS NOT NULL GROUP BY prompt)"""


def seen(*, prompts: bool) -> str:
    """How often the campaign's calls (`work`) have each value of each trait."""
    each = [
        f"""SELECT '{name}' AS trait, {sql} AS value, count(*) AS n, count(DISTINCT e.aid) AS users
        FROM work e WHERE {sql} IS NOT NULL GROUP BY {sql}"""
        for name, sql in traits(prompts=prompts).items()
    ]
    return f"""SELECT s.trait, s.value, s.n, s.users, b.mass FROM ({" UNION ALL ".join(each)}) s
        JOIN background b ON b.trait = s.trait AND b.value = s.value
        WHERE s.users >= {SEEN_BY} ORDER BY s.trait, s.value"""


def weights(rows: Table, calls: int, accounts: int) -> tuple[Table, dict[str, int]]:
    """The weight of each value, and of each trait's other values, in thousandths of a nat.

    Args:
        rows: What `seen` gives.
        calls: The campaign's calls.
        accounts: All accounts of the log.
    """
    trait = np.array(rows["trait"].to_pylist(), object)
    n, mass = (rows[name].to_numpy().astype(float) for name in ("n", "mass"))
    usual = np.maximum(mass, 1) / (float(PARTS) * accounts)
    share = (n + PRIOR * usual) / (calls + PRIOR)
    weight = np.rint(MILLI * np.log(STRANGE + (1 - STRANGE) * share / usual)).astype(int)
    others: dict[str, int] = {}
    for name in TRAITS:
        mine = trait == name
        left = max(1 - float(n[mine].sum()) / max(calls, 1), 0.0)
        rest = max(1 - float(usual[mine].sum()), 1e-3)
        others[name] = int(np.rint(MILLI * np.log(STRANGE + (1 - STRANGE) * min(left / rest, 1))))
    value = rows["value"].to_numpy().astype(np.int64)
    return pa.table({"trait": trait.tolist(), "value": value, "weight": weight}), others


def weighed(others: dict[str, int], *, prompts: bool) -> str:
    """Each call's weight, in both views."""
    allowed = traits(prompts=prompts)
    joins = " ".join(
        f"LEFT JOIN weights w_{name} ON w_{name}.trait = '{name}' AND w_{name}.value = {sql}"
        for name, sql in allowed.items()
    )
    each = {name: f"coalesce(w_{name}.weight, {others[name]})" for name in allowed}
    besides = " + ".join(sql for name, sql in each.items() if name != "client")
    return f"""SELECT *, besides + client_weight AS weight FROM (
            SELECT e.aid, {besides} AS besides, {each["client"]} AS client_weight
            FROM events e {joins})"""


def learnt(found: Mapping[int, tuple[Table, dict[str, int]]]) -> Table:
    """What `weights` gave of each campaign, as one table; where `value` is null, of all others."""
    parts: list[Table] = []
    for campaign, (rows, others) in found.items():
        nulls = pa.nulls(len(others), pa.int64())
        rest = pa.table({"trait": list(others), "value": nulls, "weight": list(others.values())})
        both = pa.concat_tables([rows, rest], promote_options="default")
        parts.append(both.append_column("campaign", pa.array([campaign] * len(both), pa.int64())))
    return pa.concat_tables(parts)


def alike(*, prompts: bool) -> tuple[str, str]:
    """Whether a member's call `e` has the weight of `SUSPECT` for its `campaign`.

    Its set-up counts for it, never against it. Gives the condition and the joins that it takes;
    campaigns' weights are in the table `learnt`.
    """
    allowed = traits(prompts=prompts)
    rest = ", ".join(
        f"max(CASE WHEN trait = '{name}' THEN weight END) AS other_{name}" for name in allowed
    )
    joins = f"""JOIN (SELECT campaign, {rest} FROM learnt WHERE value IS NULL GROUP BY campaign) o
            ON o.campaign = e.campaign """
    joins += " ".join(
        f"""LEFT JOIN learnt w_{name} ON w_{name}.campaign = e.campaign
            AND w_{name}.trait = '{name}' AND w_{name}.value = {sql}"""
        for name, sql in allowed.items()
    )
    each = {name: f"coalesce(w_{name}.weight, o.other_{name})" for name in allowed}
    besides = " + ".join(sql for name, sql in each.items() if name != "client")
    return f"{besides} + greatest({each['client']}, 0) >= {MILLI * LEVELS[SUSPECT]}", joins


def counts(weighed: str) -> str:
    """How many of each account's calls reach each level of weight, in both views."""
    reach = ", ".join(
        f"sum(CASE WHEN {view} >= {MILLI * level} THEN 1 ELSE 0 END) AS {view}_{i}"
        for view in VIEWS
        for i, level in enumerate(LEVELS)
    )
    least = " OR ".join(f"{view} >= {MILLI * LEVELS[0]}" for view in VIEWS)
    return f"""SELECT aid, {reach} FROM ({weighed}) WHERE {least} GROUP BY aid ORDER BY aid"""
