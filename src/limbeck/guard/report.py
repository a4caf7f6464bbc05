"""A finished scan as one page that a person reads before signing anything.

One HTML file without scripts, which opens without a network, in light and in dark; it needs nothing
but the standard library. Every text from the log goes through `page.el`, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

from limbeck.guard import drawing
from limbeck.guard.facts import Campaign, Facts
from limbeck.guard.findings import COUNTED
from limbeck.guard.page import el, quoted, written
from limbeck.progress import counted

PICTURED = 30
"""Campaigns with a section of their own: the largest."""
NAMES = 400
"""Members listed of each; all are in campaigns.json."""
LAYERS = {
    "template": "Templates",
    "shape": "Lengths",
    "client": "Client set-up",
}
MARKS = {
    "hours": "calls in the quietest eight hours",
    "elicitation": "calls that ask for reasoning, a rubric or a trace",
    "client": "chance that two calls have one set-up",
    "payment": "chance that two members pay alike",
    "signup": "chance that two members signed up within three days",
    "bursts": "calls that share an hour, at most times those of an even spread",
}


def page(document: Mapping[str, Any], campaigns: Mapping[str, Campaign], log: Facts) -> str:
    """The page of a scan: what campaigns.json says, with pictures of the facts beneath it."""
    told = document["campaigns"]
    sections = [_campaign(one, campaigns[one["id"]], log) for one in told[:PICTURED]]
    if len(told) > PICTURED:
        rest = f"{len(told) - PICTURED} smaller campaigns are in the table and in campaigns.json."
        sections.append(el("p", rest, class_="note"))
    return written(
        "Campaigns – Limbeck guard",
        _header(document),
        _unseen(document["warnings"]),
        _overview(document),
        *sections,
        _aside(document["set_aside"]),
        _glossary(),
    )


def _header(document: Mapping[str, Any]) -> Element:
    told = document["campaigns"]
    days = f"{document['first_call'][:10]} to {document['last_call'][:10]}"
    log = f"{document['calls']:,} calls of {document['accounts']:,} accounts"
    if told:
        calls, value = sum(one["calls"] for one in told), sum(one["value"] for one in told)
        head = el(
            "h1",
            el("b", counted(len(told), "campaign"), class_="hostile"),
            f": {document['flagged']:,} accounts took {calls:,} answers.",
        )
        lede = f"Found in {log}. What was taken is worth {value:,.2f}{_prices(document)}."
    else:
        head = el("h1", "No campaign was found.")
        lede = f"Searched: {log}. Accounts that hide among more cover than a scan sees through, or "
        lede += "too few to tell from chance, would not be found either."
    return el(
        "header",
        el("p", f"Limbeck guard / {days}", class_="kicker"),
        head,
        el("p", lede, class_="lede"),
        _signs(document),
    )


def _prices(document: Mapping[str, Any]) -> str:
    told = document.get("prices")
    if told is None:
        return " at the prices given to the scan"
    return (
        f", at {told['tokens_in']:.2f} per million tokens read and {told['tokens_out']:.2f} written"
    )


def _signs(document: Mapping[str, Any]) -> Element:
    rate, accounts = document["account_false_positive_rate"], document["accounts"]
    return el(
        "div",
        el("p", el("strong", "This page accuses nobody; a person who has read it may.")),
        el(
            "p",
            f"An account is flagged inside a named campaign, where an honest account would look "
            f"like it with a chance below {_odds(rate)}; of {accounts:,} accounts "
            f"that is {rate * accounts:,.2f} by mistake. This is a calibrated figure, taken from "
            "how the honest part of this log behaves; it is no count of mistakes made. To count "
            "them on traffic whose truth is known: limbeck guard simulate.",
            class_="small",
        ),
        el(
            "p",
            "Nothing is enforced. A person signs, by name, what is done about a campaign, "
            "and every account can appeal.",
            class_="small",
        ),
        class_="signs",
    )


def _odds(rate: float) -> str:
    return f"1 in {round(1 / rate):,}"


def _unseen(warnings: list[str]) -> Element:
    said = [el("p", line, class_="note") for line in warnings]
    nothing = el("p", "Every column was there, and no row was refused.", class_="missing")
    return _section("What could not be seen", *(said or [nothing]))


def _overview(document: Mapping[str, Any]) -> Element:
    told = document["campaigns"]
    if not told:
        return _section("Campaigns", el("p", "None.", class_="missing"))
    heads = (
        "Campaign", "Accounts", "Answers taken", "Tokens written", "Value", "Seeks", "Score"
    )  # fmt: skip
    rows = [
        [
            el("a", one["id"], href=f"#{one['id']}"),
            f"{one['accounts']:,}",
            f"{one['calls']:,}",
            f"{one['tokens_out']:,}",
            f"{one['value']:,.2f}",
            ", ".join(list(one["capabilities"]["calls"])[:3]),
            str(one["confidence"]["score"]),
        ]
        for one in told
    ]
    return _section("Campaigns", _table(heads, rows, left=(5,)))


def _campaign(one: Mapping[str, Any], facts: Campaign, log: Facts) -> Element:
    asked = one["capabilities"]["share_that_elicits"]
    tiles = {
        "Accounts": f"{one['accounts']:,}",
        "Answers taken": f"{one['calls']:,}",
        "Of these by likeness alone": f"{one['calls_alike']:,}",
        "Share of their calls": f"{one['calls'] / max(1, one['calls_with_cover']):.0%}",
        "Tokens read": f"{one['tokens_in']:,}",
        "Tokens written": f"{one['tokens_out']:,}",
        "Ask for reasoning": _share(asked["reasoning"]),
        "Ask for a rubric": _share(asked["rubric"]),
        "Score": f"{one['confidence']['score']} of 100",
    }
    return _section(
        f"{one['id']}: {one['accounts']:,} accounts divide one work-list",
        el("dl", (el("div", el("dt", k), el("dd", v)) for k, v in tiles.items()), class_="tiles"),
        *_timeline(one, facts, log),
        *_network(facts),
        *_samples(facts),
        *_evidence(one),
        *_standing(one),
        *_honest(one),
        _members(one),
        id=one["id"],
    )


def _share(value: float | None) -> str:
    return "not seen" if value is None else f"{value:.0%}"


def _timeline(one: Mapping[str, Any], facts: Campaign, log: Facts) -> list[Element]:
    drawn = drawing.both(lambda width: drawing.timeline(facts.hours, log.traffic, width))
    caption = (
        f"From {one['first_call'][:10]} to {one['last_call'][:10]}, in UTC. Each row has its own "
        "scale: what a campaign takes is often too little to be seen in all traffic."
    )
    return [
        el("h3", "When it called"),
        el("figure", drawn, el("figcaption", caption)),
    ]


def _network(facts: Campaign) -> list[Element]:
    head = el("h3", "What its accounts share")
    if not facts.links:
        return [
            head,
            el("p", "Nothing that can be drawn: no two share anything.", class_="missing"),
        ]
    drawn = drawing.both(lambda width: drawing.network(facts, width))
    shown = len({account for account, _ in facts.links}) - len(facts.lookalikes)
    caption = (
        f"{shown:,} of {len(facts.members):,} members, and the {len(facts.lookalikes):,} accounts "
        "most like them that were not named. A line is a call with it, or an entry in the table of "
        "accounts. Look-alikes share things too, but their calls do not show that they divide the "
        "work. What nearly everyone has, such as a common client, links nobody by itself."
    )
    return [head, el("figure", drawn, el("figcaption", caption))]


def _samples(facts: Campaign) -> list[Element]:
    items = [
        el(
            "li",
            quoted(row["text"]),
            el("small", f"{row['calls']:,} of its calls, {row['accounts']:,} members"),
        )
        for row in facts.samples
    ]
    nothing = el("p", "None was kept: no three accounts share one, or there are no prompts.",
                 class_="missing")  # fmt: skip
    caption = "Only common and instructing words are kept as text; … stands for all others."
    return [
        el("h3", "Templates of its prompts, masked"),
        el("ul", items, class_="samples") if items else nothing,
        el("p", caption, class_="caption"),
    ]


def _evidence(one: Mapping[str, Any]) -> list[Element]:
    without = one["linked_without"]
    rows: list[list[Element | str]] = []
    for layer, seen in one["evidence"].items():
        marks = [_mark(name, value) for name, value in seen["marks"].items() if value]
        rows.append(
            [
                el("span", LAYERS.get(str(layer), str(layer)), el("small", seen["shares"])),
                f"{seen['members']:,}",
                f"{seen['firm']:,}",
                f"{seen['p_value']:.1g}",
                f"{seen['cv2_of_even_users']:.2g}",
                "; ".join(marks),
                _left(without[layer]),
            ]
        )
    heads = (
        "Layer", "Members", "Firm", "p-value", "CV² of even users", "Marks",
        "Still named without it",
    )  # fmt: skip
    return [el("h3", "Evidence, layer by layer"), _table(heads, rows, left=(5, 6))]


def _mark(name: str, value: float) -> str:
    shown = math.exp(value) if name == "bursts" else value  # which is a logarithm
    return f"{MARKS.get(name, name)}: {shown:.2g}"


def _standing(one: Mapping[str, Any]) -> list[Element]:
    rows: list[list[Element | str]] = [
        [
            el("span", quoted(row["what"])),
            f"{row['share_of_members']:.0%}",
            f"{row['share_of_all']:.1%}",
        ]
        for row in one["standing"]
    ]
    caption = (
        "It accuses nobody by itself: it tilts the scale on which an account's calls are weighed."
    )
    if not rows:
        return []
    return [
        el("h3", "What its accounts are oftener than others"),
        _table(("What", "Of members", "Of all accounts"), rows),
        el("p", caption, class_="caption"),
    ]


def _honest(one: Mapping[str, Any]) -> list[Element]:
    lines: list[list[Element | str]] = [
        [name[0].upper() + name[1:], _weighed(weighed)]
        for name, weighed in one["honest_explanations"].items()
    ]
    expected = one["confidence"]["account_false_positives_expected"]
    text = f"Honest accounts among the members: {expected:g} expected."
    return [
        el("h3", "Honest explanations that were weighed"),
        _table(("Explanation", "What speaks for or against it"), lines, left=(1,)),
        el("p", text, class_="caption"),
    ]


def _weighed(found: Mapping[str, Any]) -> str:
    if "share" not in found:
        known = {k: v for k, v in found["cv2_of_honest_use"].items() if v is not None}
        usual = ", ".join(f"{str(LAYERS.get(k, k)).lower()} {v:g}" for k, v in known.items())
        return (
            f"its even users divide it with a CV² of {found['cv2_of_even_users']:g} at most, where "
            "less is more even than people are; others of this log use theirs with "
            + (usual or "one that is not known")
        )
    if found["share"] is None:
        return "the log does not tell"
    return f"the largest is shared by {found['share']:.0%} of members"


def _left(found: Mapping[str, Any]) -> str:
    return f"yes, {found['share']:.0%} of members" if found["links"] else "no"


def lines(one: Mapping[str, Any]) -> list[str]:
    """What the page says of a campaign beyond `findings.lines`, for a terminal."""
    weighed = one["honest_explanations"].items()
    said = [f"  {name}: {_weighed(one)}" for name, one in weighed if one.get("share") is None]
    without = one["linked_without"].items()
    left = [f"  {LAYERS.get(layer, layer)}: {_left(one)}" for layer, one in without]
    return [*said, "Still named without", *left]


def _members(one: Mapping[str, Any]) -> Element:
    names = one["members"]
    head = f"{counted(len(names), 'member')}"
    if len(names) > NAMES:
        head += f", the first {NAMES}; all are in campaigns.json"
    return el(
        "details",
        el("summary", head),
        el("div", (quoted(name) for name in names[:NAMES]), class_="names"),
    )


def _aside(told: list[Mapping[str, Any]]) -> Element:
    said = [
        el("p", f"{one['accounts']:,} accounts of one organisation took {one['calls']:,} answers.",
           class_="note")
        for one in told
    ]  # fmt: skip
    why = "Groups that divide work, but say openly that they are one customer's seats: not flagged."
    body = [el("p", why), *said] if said else [el("p", "No group was.", class_="missing")]
    return _section("Set aside", *body)


def _glossary() -> Element:
    words = {
        "Answers taken": COUNTED,
        "Share of their calls": "Answers taken, of all calls of the members. The rest is cover, or "
        "work like everybody's.",
        "Value": "What the tokens read and written would have sold for, in the currency of the "
        "prices given to the scan.",
        "Look-alike": "An account that shares something with members and was not named.",
        "Layer": "A way in which calls can be alike.",
        "p-value": "How often an honest group of this log would look as the layer's clearest group "
        "does. Named groups are false in at most one of twenty cases, on average.",
        "CV² of even users": "How unevenly those divide the work who are the layer's clearest even "
        "group, be they of this campaign or of another in the same group: a dispatcher's share is "
        "near 0, people's use of one thing is above 1.",
        "Marks": "What else is odd about the layer's clearest group. Each is held against the "
        "other groups of this log. Calls that share an hour: people work in sessions, and are far "
        "above 1; a dispatcher spreads an account's turns over the day.",
        "Score": "100 × (1 − p-value over all groups tested), at most 95, as one scan in twenty "
        "may name what is none: how sure it is that this is a campaign, and not how large it is.",
        "Firm": "Members who belong to one of the layer's groups with a probability of 80 % or "
        "more, by their number of calls within it; others are members by what their calls look "
        "like and what accounts they are.",
        "Still named without it": "Whether a group of another layer passed the same test, and how "
        "many of the members are firm in such groups, or flagged by them alone. Lengths are told "
        "apart by set-up, which so speaks in two layers.",
    }
    items = (el("div", el("dt", name), el("dd", text)) for name, text in words.items())
    return _section("How to read this", el("dl", items, class_="glossary"))


def _section(title: str, *body: Element, id: str | None = None) -> Element:  # noqa: A002
    return el("section", el("h2", title), body, id=id)


def _table(
    heads: tuple[str, ...], rows: list[list[Element | str]], left: tuple[int, ...] = ()
) -> Element:
    """The first cell of each row heads it; columns of words, not numbers, are in `left`."""
    body: list[Element] = []
    for first, *rest in rows:
        cells = [
            el("td", cell, data_label=head, class_="left" if place in left else None)
            for place, (head, cell) in enumerate(zip(heads[1:], rest, strict=True), 1)
        ]
        body.append(el("tr", el("th", first, scope="row"), cells))
    head = [
        el("th", name, class_="left" if place in left else None) for place, name in enumerate(heads)
    ]
    return el("table", el("thead", el("tr", head)), el("tbody", body), class_="rows")
