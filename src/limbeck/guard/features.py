"""SQL that turns sketched calls into who-uses-what: one integer key a call in each layer.

Every function returns the SQL of one step; `scan.py` runs it and keeps the result. A layer is a
way in which calls can be alike:

- `template`: the same skeleton, or a shared MinHash band where the skeleton is nobody else's;
- `shape`: what a call carries besides its prompt (a system prompt, documents) through one client
  set-up; without prompts, its length;
- `client`: the set-up itself: client, settings, model, whether sessions are told.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from limbeck.guard.engine import Engine
from limbeck.guard.schema import BANDS

Layer: TypeAlias = Literal["template", "shape", "client"]
KEYS: dict[Layer, str] = {"template": "template", "shape": "shape", "client": "stack"}
"""The column of `events` that has each layer's key."""
PLAIN = 30
"""Three points of the lexicon: a prompt that plainly asks for reasoning, a rubric or a trace."""
STACK = ("client", "temperature", "max_tokens", "logprobs", "stream", "model", "session")
LENGTHS = 1024
"""Bins of length, eight an octave; a bin is `shape % LENGTHS`."""
ELICITS = ("reasoning", "rubric", "trace")
"""What a prompt may ask for: a bit each, from 1 on."""
SKILLS = 256
WAYS = SKILLS << len(ELICITS)
"""A way of asking, `method % WAYS`: elicitation · `SKILLS` + capability + 1, 0 where unknown."""
SAME = 1 << 31
"""Prompts of one family are the same when the hashes of their words are, by this modulus."""
FAMILIES = 1 << 32
"""A set-up and a family of templates together: `stack * FAMILIES + family`."""


def accounts() -> str:
    """Accounts under dense numbers, in the order of their names."""
    return """SELECT account, cast(row_number() OVER (ORDER BY account) - 1 AS int) AS aid
        FROM (SELECT DISTINCT account FROM sketched)"""


def stacks(engine: Engine) -> str:
    """Client set-ups under dense numbers, each with a hash (`mark`) that calls find it by."""
    plain = ", ".join(f"{_set_up(name, '')} AS {name}" for name in STACK)
    any_session = "CASE WHEN session IS NULL THEN NULL ELSE '' END AS session"
    told = ", ".join(any_session if name == "session" else name for name in STACK)
    return f"""SELECT *, cast(row_number() OVER (ORDER BY {", ".join(STACK)}) AS bigint) AS stack,
            {engine.hash(STACK)} AS mark
        FROM (SELECT DISTINCT {plain} FROM (SELECT DISTINCT {told} FROM sketched))"""


def events(engine: Engine, *, prompts: bool) -> str:
    """A row a call, integers only: who, when, alike to what.

    Its template is its skeleton, or else the band that most accounts share.
    """
    mark = engine.hash([_set_up(name, "c.") for name in STACK])
    # Of the tokens in, those that the prompt's characters do not explain; 16 are within its error.
    besides = "greatest(0, coalesce(c.tokens_in, 0) - cast(coalesce(c.chars, 0) AS double) / 4)"
    size = f"cast(floor(8 * log2(16 + {besides})) AS bigint)"
    elicits = " + ".join(
        f"CASE WHEN c.{name} >= {PLAIN} THEN {1 << i} ELSE 0 END" for i, name in enumerate(ELICITS)
    )
    skill = "coalesce(c.capability, -1) + 1"
    template, joins = "cast(NULL AS bigint)", ""
    if prompts:
        template = "coalesce(t.template, l.template)"
        joins = """LEFT JOIN templates t ON t.kind = 0 AND t.raw = c.skeleton
            LEFT JOIN banded l ON l.call = c.call"""
    return f"""SELECT c.call, a.aid, c.hour, s.stack, {template} AS template,
            c.tokens_in, c.tokens_out, c.topic, cast(c.exact % {SAME} AS int) AS prompt,
            cast({elicits} AS int) AS elicits,
            s.stack * {WAYS} + ({elicits}) * {SKILLS} + {skill} AS method,
            s.stack * {LENGTHS} + {size} AS shape
        FROM sketched c JOIN account_ids a ON a.account = c.account JOIN stacks s ON s.mark = {mark}
        {joins}"""


def volumes(engine: Engine) -> str:
    """Each account's calls, and the days from its first to its last."""
    days = engine.div("max(hour) - min(hour)", "24") + " + 1"
    return f"SELECT aid, count(*) AS calls, {days} AS days FROM events GROUP BY aid"


def hours() -> str:
    """Calls of all accounts by hour of the day (UTC)."""
    return "SELECT hour % 24 AS hour, count(*) AS calls FROM events GROUP BY hour % 24"


def shared_skeletons() -> str:
    """Skeletons that three accounts or more share."""
    return """SELECT 0 AS kind, raw, count(*) AS users
        FROM (SELECT DISTINCT c.skeleton AS raw, a.aid FROM sketched c
            JOIN account_ids a ON a.account = c.account WHERE c.skeleton IS NOT NULL)
        GROUP BY raw HAVING count(*) >= 3"""


def loose() -> str:
    """Calls whose skeleton is not shared, with their bands."""
    bands = ", ".join("c." + band for band in BANDS)
    return f"""SELECT c.call, a.aid, {bands} FROM (SELECT * FROM sketched o
            WHERE NOT EXISTS (SELECT 1 FROM shared_skeletons k WHERE k.raw = o.skeleton)) c
        JOIN account_ids a ON a.account = c.account WHERE c.{BANDS[0]} IS NOT NULL"""


def shared_bands() -> str:
    """Bands that several accounts share, among loose calls."""
    return " UNION ALL ".join(
        f"""SELECT {i + 1} AS kind, raw, count(*) AS users
        FROM (SELECT DISTINCT {band} AS raw, aid FROM loose)
        GROUP BY raw HAVING count(*) >= 3"""
        for i, band in enumerate(BANDS)
    )


def templates() -> str:
    """Shared skeletons and bands under dense numbers."""
    return """SELECT kind, raw, users,
            cast(row_number() OVER (ORDER BY kind, raw) AS bigint) AS template
        FROM (SELECT * FROM shared_skeletons UNION ALL SELECT * FROM shared_bands)"""


def banded() -> str:
    """The loose calls that have a template: of their shared bands, the one of most accounts."""
    joins = " ".join(
        f"LEFT JOIN templates b{i} ON b{i}.kind = {i + 1} AND b{i}.raw = e.{band}"
        for i, band in enumerate(BANDS)
    )
    users = ", ".join(f"coalesce(b{i}.users, 0)" for i in range(len(BANDS)))
    pick = " ".join(
        f"WHEN b{i}.users = greatest({users}) THEN b{i}.template" for i in range(len(BANDS))
    )
    shared = ", ".join(f"b{i}.users" for i in range(len(BANDS)))
    return f"""SELECT e.call, CASE {pick} END AS template FROM loose e {joins}
        WHERE coalesce({shared}) IS NOT NULL"""


def uses(layer: Layer, quiet: list[int], *, prompts: bool) -> str:
    """Who uses which key how often: calls, of these those in quiet hours, and those that elicit."""
    calm = f"hour % 24 IN ({', '.join(map(str, quiet))})"
    elicits = "count(*) FILTER (WHERE elicits > 0)" if prompts else "cast(0 AS bigint)"
    key = KEYS[layer]
    return f"""SELECT {key} AS key, aid, count(*) AS n,
            count(*) FILTER (WHERE {calm}) AS calm, {elicits} AS eliciting
        FROM events WHERE {key} IS NOT NULL GROUP BY {key}, aid"""


def _set_up(name: str, table: str) -> str:
    """A column of the client set-up, without nulls and floats, which engines spell apart."""
    column = table + name
    if name in ("client", "model"):
        return f"coalesce({column}, '')"
    if name == "session":
        return f"CASE WHEN {column} IS NULL THEN 0 ELSE 1 END"
    if name == "temperature":
        return f"coalesce(cast(round({column} * 100) AS bigint), -1)"
    return f"coalesce(cast({column} AS bigint), -1)"
