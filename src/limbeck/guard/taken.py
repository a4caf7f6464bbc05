"""SQL of what campaigns took and what their members share: all that reads a scan's tables.

Read are `events`, `visits`, `templates`, `families`, `stacks`, `volumes`, `account_ids`, the
`hits_…` of each layer and `firm` (layer, family, aid) as the scan keeps them, `sketched` and
`accounts` as the state folder has them, `texts` (the masked texts of `templates.parquet`), and,
kept by `facts.py`, `members` (aid, campaign), `chosen_families` (layer, family, campaign) and
`taken`. Every query runs once for all campaigns, so that a hundred cost what one does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from limbeck.guard import profile
from limbeck.guard.engine import Engine
from limbeck.guard.features import ELICITS, KEYS, SKILLS, STACK, WAYS, Layer

Kind: TypeAlias = Literal["payment", "sign-up", "network", "template", "set-up"]
MOST: dict[Kind, int] = {"payment": 3, "sign-up": 2, "network": 4, "template": 5, "set-up": 2}
"""What members share, as drawn: so many of each kind, those of most members first."""
SHOWN = 110
"""Members drawn of a campaign, and as many look-alikes."""
SPAN = 3
"""Days that count as one sign-up span."""
SUMS = "count(*) AS calls, cast(sum(tokens_out) AS bigint) AS tokens_out"
BY_ACCOUNT = "FROM accounts a JOIN account_ids i ON i.account = a.account"


def traffic() -> str:
    """All calls, hour by hour."""
    return f"SELECT hour, {SUMS} FROM events GROUP BY hour ORDER BY hour"


def theirs() -> str:
    """All calls of members. By itself, as DuckDB takes the join's rows for few and plans for it."""
    return """SELECT e.call, e.aid, m.campaign, e.hour, e.stack, e.shape, e.template, e.method,
            e.topic, e.tokens_in, e.tokens_out
        FROM events e JOIN members m ON m.aid = e.aid"""


def taken(layers: Iterable[Layer], *, prompts: bool) -> str:
    """A campaign's calls: what is told of them, and whether they are only alike (`alike` 1).

    One of a member's calls (`theirs`) is the campaign's when it lies within one of its families or
    looks as much like its calls as one must for an account to be suspected.
    """
    names = sorted(set(layers))
    families = {layer: f"e.{KEYS[layer]}" for layer in names} | {"template": "g.family"}
    joins = " ".join(
        f"""LEFT JOIN chosen_families f_{layer} ON f_{layer}.layer = '{layer}'
            AND f_{layer}.campaign = e.campaign AND f_{layer}.family = {families[layer]}"""
        for layer in names
    )
    if "template" in names:
        joins = f"LEFT JOIN families g ON g.key = e.template {joins}"
    within = " OR ".join(f"f_{layer}.family IS NOT NULL" for layer in names)
    like, weighs = profile.alike(prompts=prompts)
    return f"""SELECT e.call, e.aid, e.campaign, e.hour, e.stack, e.template, e.method, e.tokens_in,
            e.tokens_out, CASE WHEN {within} THEN 0 ELSE 1 END AS alike
        FROM theirs e {joins} {weighs} WHERE {within} OR {like}"""


def totals() -> str:
    """A row a campaign: what it took, and from when to when; of none counted, of members' calls."""
    sums = ("calls", "tokens_in", "tokens_out", "alike")
    counted = ", ".join(f"coalesce(t.{name}, 0) AS {name}" for name in sums)
    return f"""SELECT h.campaign, {counted}, coalesce(t.first, h.first) AS first,
            coalesce(t.last, h.last) AS last
        FROM (SELECT campaign, min(hour) AS first, max(hour) AS last FROM theirs
            GROUP BY campaign) h
        LEFT JOIN (SELECT campaign, {SUMS}, cast(sum(tokens_in) AS bigint) AS tokens_in,
                cast(sum(alike) AS bigint) AS alike, min(hour) AS first, max(hour) AS last
            FROM taken GROUP BY campaign) t ON t.campaign = h.campaign"""


def covers() -> str:
    """All calls of a campaign's members, cover included."""
    return """SELECT m.campaign, cast(sum(v.calls) AS bigint) AS calls FROM volumes v
        JOIN members m ON m.aid = v.aid GROUP BY m.campaign"""


def hours() -> str:
    """A campaign's calls, hour by hour."""
    return f"SELECT campaign, hour, {SUMS} FROM taken GROUP BY campaign, hour ORDER BY hour"


def within(layers: Iterable[str]) -> str:
    """How many members made a call within their campaign's families, by layer."""
    every = " UNION ALL ".join(
        f"SELECT '{layer}' AS layer, family, aid FROM hits_{layer}" for layer in sorted(set(layers))
    )
    return f"""SELECT m.campaign, f.layer, count(DISTINCT m.aid) AS members FROM ({every}) h
        JOIN members m ON m.aid = h.aid {_THEIRS.format("h")} GROUP BY m.campaign, f.layer"""


def firm() -> str:
    """The members who belong to a family of their campaign beyond doubt, by layer."""
    return f"""SELECT DISTINCT m.campaign, f.layer, m.aid FROM firm h
        JOIN members m ON m.aid = h.aid {_THEIRS.format("h")}"""


_THEIRS = """JOIN chosen_families f
            ON f.campaign = m.campaign AND f.layer = {0}.layer AND f.family = {0}.family"""


def days(engine: Engine) -> str:
    """The same by days, with the accounts at work."""
    return f"""SELECT campaign, day, {SUMS}, count(DISTINCT aid) AS accounts
        FROM (SELECT *, {engine.div("hour", "24")} AS day FROM taken)
        GROUP BY campaign, day ORDER BY day"""


def ways() -> str:
    """What a campaign's calls seek and ask for: capability (−1 unknown), and their elicitation."""
    asks = {
        name: f"cast(sum(CASE WHEN (asks & {1 << i}) > 0 THEN 1 ELSE 0 END) AS bigint) AS {name}"
        for i, name in enumerate(ELICITS)
    }
    way = f"method % {WAYS}"
    return f"""SELECT campaign, skill, count(*) AS n, {", ".join(asks.values())}
        FROM (SELECT campaign, {way} % {SKILLS} - 1 AS skill,
            cast(floor({way} / {SKILLS}) AS int) AS asks FROM taken)
        GROUP BY campaign, skill"""


def places() -> str:
    """Networks and systems that a campaign's calls came from."""
    each = " UNION ALL ".join(
        f"""SELECT campaign, '{name}' AS kind, {name} AS name,
            count(DISTINCT aid) AS members, min(hour) AS first, max(hour) AS last
        FROM placed WHERE {name} IS NOT NULL GROUP BY campaign, {name}"""
        for name in ("network", "asn")
    )
    return f"""WITH placed AS (SELECT t.campaign, t.aid, t.hour, c.network, c.asn
            FROM taken t JOIN sketched c ON c.call = t.call) {each}"""


def crowds() -> str:
    """How many accounts call from each place that several members share, in all."""
    return " UNION ALL ".join(
        f"""SELECT p.campaign, p.kind, p.name, p.members, p.first, p.last,
            count(DISTINCT c.aid) AS users
        FROM places p JOIN visits c ON c.{name} = p.name
        WHERE p.kind = '{name}' AND p.members > 1
        GROUP BY p.campaign, p.kind, p.name, p.members, p.first, p.last"""
        for name in ("network", "asn")
    )


def largest() -> str:
    """How many members share the commonest organisation, payment and network of a campaign."""
    known = " UNION ALL ".join(
        f"""SELECT m.campaign, '{name}' AS what, count(*) AS n {BY_ACCOUNT}
        JOIN members m ON m.aid = i.aid WHERE a.{name} IS NOT NULL GROUP BY m.campaign, a.{name}"""
        for name in ("organisation", "payment")
    )
    return f"""SELECT campaign, what, max(n) AS n FROM ({known} UNION ALL
            SELECT campaign, kind AS what, members AS n FROM places WHERE kind = 'network')
        GROUP BY campaign, what"""


def having(engine: Engine, templated: bool) -> dict[Kind, tuple[str, str]]:
    """Of each kind: who has what (aid, value), and how many members of a campaign have it."""
    span = engine.div(engine.epoch_us("a.created"), str(SPAN * 86_400_000_000))
    known: dict[Kind, str] = {
        "payment": f"SELECT i.aid, a.payment AS value {BY_ACCOUNT} WHERE a.payment IS NOT NULL",
        "sign-up": f"""SELECT i.aid, cast({span} AS string) AS value {BY_ACCOUNT}
            WHERE a.created IS NOT NULL""",
    }
    grouped = """SELECT m.campaign, h.value, count(*) AS members FROM ({}) h
        JOIN members m ON m.aid = h.aid GROUP BY m.campaign, h.value"""
    every: dict[Kind, tuple[str, str]] = {
        kind: (sql, grouped.format(sql)) for kind, sql in known.items()
    }
    every["network"] = (
        "SELECT aid, network AS value FROM visits WHERE network IS NOT NULL",
        "SELECT campaign, name AS value, members FROM places WHERE kind = 'network'",
    )
    every["set-up"] = (
        "SELECT aid, cast(stack AS string) AS value FROM events",
        """SELECT campaign, cast(stack AS string) AS value, count(DISTINCT aid) AS members
        FROM taken GROUP BY campaign, stack""",
    )
    if templated:
        every["template"] = (
            """SELECT aid, cast(template AS string) AS value FROM events
            WHERE template IS NOT NULL""",
            """SELECT campaign, cast(template AS string) AS value, count(DISTINCT aid) AS members
            FROM taken WHERE template IS NOT NULL GROUP BY campaign, template""",
        )
    return every


def shared(engine: Engine, templated: bool) -> str:
    """What most members of a campaign share, so many of each kind, numbered by `place`."""
    most = " ".join(f"WHEN '{kind}' THEN {n}" for kind, n in MOST.items())
    every = " UNION ALL ".join(
        f"SELECT campaign, '{kind}' AS kind, value, members FROM ({counted}) c WHERE members > 1"
        for kind, (_, counted) in having(engine, templated).items()
    )
    return f"""SELECT campaign, kind, value, members, cast(row_number() OVER (
                PARTITION BY campaign ORDER BY kind, members DESC, value) - 1 AS int) AS place
        FROM (SELECT *, row_number() OVER (
                PARTITION BY campaign, kind ORDER BY members DESC, value) AS n FROM ({every}) e) r
        WHERE n <= CASE kind {most} END"""


def links(engine: Engine, templated: bool) -> str:
    """Every account that has any of it: campaign, place, aid."""
    return " UNION ALL ".join(
        f"""SELECT DISTINCT s.campaign, s.place, h.aid FROM shared_by s
        JOIN ({who}) h ON h.value = s.value WHERE s.kind = '{kind}'"""
        for kind, (who, _) in having(engine, templated).items()
    )


def shown() -> str:
    """The accounts to draw: members, and accounts of no campaign that share most of it."""
    return f"""SELECT campaign, aid, named FROM (
            SELECT *, row_number() OVER (PARTITION BY campaign, named ORDER BY n DESC, aid) AS place
            FROM (SELECT l.campaign, l.aid, count(*) AS n,
                    CASE WHEN m.aid IS NULL THEN 0 ELSE 1 END AS named
                FROM links l LEFT JOIN members m ON m.aid = l.aid
                WHERE m.aid IS NULL OR m.campaign = l.campaign
                GROUP BY l.campaign, l.aid, m.aid) g) r
        WHERE place <= {SHOWN}"""


def drawn() -> str:
    """The links of these accounts."""
    return """SELECT l.campaign, l.place, l.aid, w.named FROM links l
        JOIN shown w ON w.campaign = l.campaign AND w.aid = l.aid"""


def used() -> str:
    """What members share, with how many accounts have it in all."""
    return """SELECT s.campaign, s.kind, s.value, s.place, s.members, u.users FROM shared_by s
        JOIN (SELECT campaign, place, count(*) AS users FROM links GROUP BY campaign, place) u
            ON u.campaign = s.campaign AND u.place = s.place ORDER BY s.place"""


def wordings() -> str:
    """The masked texts of the templates that members share."""
    return """SELECT DISTINCT s.value, x.text FROM shared_by s
        JOIN templates t ON cast(t.template AS string) = s.value AND t.kind = 0
        JOIN texts x ON x.skeleton = t.raw WHERE s.kind = 'template'"""


def set_ups() -> str:
    """The client set-ups that members share."""
    return f"""SELECT DISTINCT s.value, {", ".join(f"k.{name}" for name in STACK)}
        FROM shared_by s JOIN stacks k ON cast(k.stack AS string) = s.value
        WHERE s.kind = 'set-up'"""


def samples() -> str:
    """Masked templates of a campaign's calls, as far as a text was kept."""
    return """SELECT campaign, text, calls, accounts FROM (
            SELECT *, row_number() OVER (PARTITION BY campaign ORDER BY calls DESC, text) AS n
            FROM (SELECT k.campaign, x.text, count(*) AS calls, count(DISTINCT k.aid) AS accounts
                FROM taken k JOIN templates t ON t.template = k.template AND t.kind = 0
                JOIN texts x ON x.skeleton = t.raw
                GROUP BY k.campaign, x.text) g) r
        WHERE n <= 8 ORDER BY n"""
