"""SQL that turns sketched calls into who-uses-what: one integer key a call in each layer.

Every function returns the SQL of one step; `scan.py` runs it and keeps the result. A layer is a
way in which calls can be alike:

- `template`: the same skeleton, or a shared MinHash band where the skeleton is nobody else's;
- `recipe`: a template through one client set-up;
- `method`: elicitation and capability through one client set-up;
- `shape`: prompt length through one client set-up, which needs no prompts;
- `client`: the set-up itself, which needs none either.

Calls fall into two folds by the hash of their id: fold 0 forms cohorts, fold 1 tests them.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from limbeck.guard.engine import Engine

Layer: TypeAlias = Literal["template", "recipe", "method", "shape", "client"]
BANDS = tuple(f"band_{i}" for i in range(8))
PLAIN = 30
"""Three points of the lexicon: a prompt that plainly asks for reasoning, a rubric or a trace."""
STACK = ("client", "temperature", "max_tokens", "logprobs", "stream")


def accounts() -> str:
    """Accounts under dense numbers, in the order of their names."""
    return """SELECT account, cast(row_number() OVER (ORDER BY account) - 1 AS int) AS aid
        FROM (SELECT DISTINCT account FROM sketched)"""


def stacks() -> str:
    """Client set-ups under dense numbers."""
    plain = ", ".join(_plain(name) for name in STACK)
    return f"""SELECT *, cast(row_number() OVER (ORDER BY {", ".join(STACK)}) AS bigint) AS stack
        FROM (SELECT DISTINCT {plain} FROM sketched)"""


def events() -> str:
    """A row a call, integers only: who, when, in which fold, alike to what."""
    same = " AND ".join(f"s.{name} = {_set_up(name, 'c.')}" for name in STACK)
    size = "cast(floor(8 * log2(1 + greatest(0, coalesce(c.tokens_in, 0)))) AS bigint)"
    elicits = " + ".join(
        f"CASE WHEN c.{name} >= {PLAIN} THEN {1 << i} ELSE 0 END"
        for i, name in enumerate(("reasoning", "rubric", "trace"))
    )
    skill = "coalesce(c.capability, -1) + 1"
    return f"""SELECT c.call, a.aid, cast(abs(c.call % 2) AS int) AS fold, c.hour, s.stack,
            c.tokens_in, c.tokens_out, c.skeleton, c.exact, {", ".join("c." + b for b in BANDS)},
            cast({elicits} AS int) AS elicits,
            (s.stack * 8 + ({elicits})) * 256 + {skill} AS method,
            s.stack * 1024 + {size} AS shape
        FROM sketched c JOIN account_ids a ON a.account = c.account JOIN stacks s ON {same}"""


def volumes(engine: Engine) -> str:
    """Each account's calls, and the days from its first to its last."""
    days = engine.div("max(hour) - min(hour)", "24") + " + 1"
    return f"SELECT aid, count(*) AS calls, {days} AS days FROM events GROUP BY aid"


def hours() -> str:
    """Calls of all accounts by hour of the day (UTC)."""
    return "SELECT hour % 24 AS hour, count(*) AS calls FROM events GROUP BY hour % 24"


def shared_bands(skeletons: str) -> str:
    """Bands that several accounts share, among calls whose skeleton is not in `skeletons`."""
    each = " UNION ALL ".join(
        f"""SELECT {i + 1} AS kind, raw, count(*) AS users
        FROM (SELECT DISTINCT {band} AS raw, aid FROM loose WHERE {band} IS NOT NULL)
        GROUP BY raw HAVING count(*) >= 3"""
        for i, band in enumerate(BANDS)
    )
    return f"""WITH loose AS ({_loose(("aid", *BANDS), skeletons)}) {each}"""


def shared_skeletons() -> str:
    """Skeletons that three accounts or more share."""
    return """SELECT 0 AS kind, raw, count(*) AS users
        FROM (SELECT DISTINCT skeleton AS raw, aid FROM events WHERE skeleton IS NOT NULL)
        GROUP BY raw HAVING count(*) >= 3"""


def templates() -> str:
    """Shared skeletons and bands under dense numbers."""
    return """SELECT kind, raw, users,
            cast(row_number() OVER (ORDER BY kind, raw) AS bigint) AS template
        FROM (SELECT * FROM shared_skeletons UNION ALL SELECT * FROM shared_bands)"""


def templated() -> str:
    """The calls that have a template: their skeleton, or else the band that most accounts share."""
    kept = ("call", "aid", "fold", "hour", "stack", "exact", "elicits")
    named = ", ".join("e." + name for name in kept)
    joins = " ".join(
        f"LEFT JOIN templates b{i} ON b{i}.kind = {i + 1} AND b{i}.raw = e.{band}"
        for i, band in enumerate(BANDS)
    )
    users = ", ".join(f"coalesce(b{i}.users, 0)" for i in range(len(BANDS)))
    pick = " ".join(
        f"WHEN b{i}.users = greatest({users}) THEN b{i}.template" for i in range(len(BANDS))
    )
    shared = ", ".join(f"b{i}.users" for i in range(len(BANDS)))
    return f"""SELECT {named}, t.template
            FROM events e JOIN templates t ON t.kind = 0 AND t.raw = e.skeleton
        UNION ALL
        SELECT {named}, CASE {pick} END AS template
            FROM ({_loose((*kept, *BANDS), "shared_skeletons")}) e {joins}
            WHERE coalesce({shared}) IS NOT NULL"""


def _loose(columns: tuple[str, ...], skeletons: str) -> str:
    """Calls whose skeleton is not in `skeletons`; set apart before they meet any other join."""
    return f"""SELECT {", ".join("o." + name for name in columns)} FROM events o
        WHERE NOT EXISTS (SELECT 1 FROM {skeletons} k WHERE k.raw = o.skeleton)"""


def uses(source: str, key: str, quiet: list[int], *, prompts: bool) -> str:
    """Who uses which key how often.

    Calls in fold 0 (h0), in fold 1 (h1), and of the latter those in quiet hours (calm),
    those that elicit, and the ordered pairs within one clock hour.
    """
    calm = f"hour % 24 IN ({', '.join(map(str, quiet))})"
    flagged = "sum(CASE WHEN elicits > 0 THEN 1 ELSE 0 END)" if prompts else "0"
    return f"""SELECT key, aid, sum(CASE WHEN fold = 0 THEN n ELSE 0 END) AS h0,
            sum(CASE WHEN fold = 1 THEN n ELSE 0 END) AS h1,
            sum(CASE WHEN fold = 1 AND {calm} THEN n ELSE 0 END) AS calm,
            sum(CASE WHEN fold = 1 THEN flagged ELSE 0 END) AS eliciting,
            sum(CASE WHEN fold = 1 THEN n * (n - 1) ELSE 0 END) AS pairs
        FROM (SELECT {key} AS key, aid, fold, hour, count(*) AS n, {flagged} AS flagged
            FROM {source} GROUP BY {key}, aid, fold, hour)
        GROUP BY key, aid"""


def _plain(name: str) -> str:
    return f"{_set_up(name, '')} AS {name}"


def _set_up(name: str, table: str) -> str:
    """A column of the client set-up, without nulls and floats, which engines spell apart."""
    column = table + name
    if name == "client":
        return f"coalesce({column}, '')"
    if name == "temperature":
        return f"coalesce(cast(round({column} * 100) AS bigint), -1)"
    return f"coalesce(cast({column} AS bigint), -1)"
