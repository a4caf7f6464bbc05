"""The page's pictures as inline SVG, in the colours of the style sheet.

Each is drawn twice, wide and narrow; one unit is one CSS pixel at the width it is drawn for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal
from xml.etree.ElementTree import Element

import numpy as np

from limbeck.guard.facts import Campaign, Row, Shared
from limbeck.guard.page import el

WIDE, NARROW = 960, 340
HOURLY = 8 * 24
"""A timeline of so many hours is drawn by the hour; a longer one by the day."""
ORDER = ("template", "set-up", "payment", "network", "sign-up")
KINDS = {
    "template": "Template",
    "set-up": "Client set-up",
    "payment": "Payment",
    "network": "Network",
    "sign-up": "Signed up within three days",
}


def both(draw: Callable[[int], Element]) -> list[Element]:
    """A picture wide and narrow; the style sheet shows the one that fits."""
    return [
        el("div", draw(width), class_=f"chart {name}")
        for width, name in ((WIDE, "wide"), (NARROW, "narrow"))
    ]


def timeline(own: Sequence[Row], every: Sequence[Row], width: int) -> Element:
    """A campaign's calls and tokens over all traffic's, each on its own scale, on one time axis.

    Args:
        own: Rows of hour (since 1970), calls and tokens_out.
        every: The same of all traffic; its span is the axis.
        width: In CSS pixels.
    """
    first, last = every[0]["hour"], every[-1]["hour"]
    step, unit = (1, "hour") if last - first < HOURLY else (24, "day")
    count = last // step - first // step + 1
    panels = [
        ("Campaign: calls", own, "calls", "hostile"),
        ("Campaign: tokens written", own, "tokens_out", "hostile"),
        ("All traffic: calls", every, "calls", "all"),
    ]
    narrow = width < 500
    left, top, tall = (0, 40, 46) if narrow else (206, 6, 62)
    each = top + tall + 14
    height = each * len(panels) + 22
    parts: list[Element] = []
    for place, (title, rows, key, colour) in enumerate(panels):
        values = np.zeros(count)
        at = np.array([row["hour"] // step - first // step for row in rows])
        np.add.at(values, at, [row[key] for row in rows])
        peak = f"most in {'an' if unit == 'hour' else 'a'} {unit}: {values.max():,.0f}"
        y = place * each + top
        head = y - 24 if narrow else y + 22
        parts += [
            el("text", title, x=0, y=head, class_="title"),
            el("text", peak, x=0, y=head + 17, class_="muted"),
            el("path", d=_steps(values, left, width, y, tall), class_=colour),
            el("line", x1=left, x2=width, y1=y + tall, y2=y + tall),
        ]
    parts += _axis(first // step * step, count * step, left, width, height)
    return _svg(parts, width, height, f"Calls and tokens by the {unit}")


def _steps(values: Any, left: int, width: int, y: int, tall: int) -> str:
    """Bars as one outline; an empty time stays empty, and anything at all is half a pixel."""
    unit, high = (width - left) / len(values), max(1.0, float(values.max()))
    d = [f"M{left} {y + tall}"]
    for place, value in enumerate(values.tolist()):
        up = y + tall - (max(0.5, tall * value / high) if value else 0)
        d.append(f"V{up:.1f}H{left + (place + 1) * unit:.1f}")
    return "".join(d) + f"V{y + tall}Z"


def _axis(first: int, hours: int, left: int, width: int, height: int) -> list[Element]:
    """Days below, as many as there is room for."""
    room = max(1, (width - left) // 76)
    days = range(-(-first // 24), (first + hours - 1) // 24 + 1)
    apart = max(1, -(-len(days) // room))
    marks: list[Element] = []
    for day in days[::apart]:
        x = left + (width - left) * (day * 24 - first) / hours
        if x <= width - 60:
            said = np.datetime64(day, "D").item().strftime("%d %b").lstrip("0")
            marks += [
                el("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=height - 36, y2=height - 28),
                el("text", said, x=f"{x:.1f}", y=height - 12, class_="muted"),
            ]
    return marks


def network(campaign: Campaign, width: int) -> Element:
    """Members left, look-alikes that were not named right, and between them what they share."""
    narrow = width < 500
    low, high = (64, width - 64) if narrow else (270, width - 270)
    letters = int((high - low - 20) / 7)
    middle: list[Element] = []
    centre: dict[int, float] = {}
    y = 44.0
    for kind in ORDER:
        ours = [p for p, shared in enumerate(campaign.shared) if shared.kind == kind]
        if ours:
            middle.append(el("text", KINDS[kind], x=low, y=f"{y + 10:.0f}", class_="muted"))
            y += 17
        for place in ours:
            middle += _thing(campaign.shared[place], low, high, y, letters)
            centre[place] = y + 19
            y += 44
        y += 10 if ours else 0
    sides: tuple[tuple[Literal["hostile", "alike"], int, int], ...] = (
        ("hostile", 8, low),
        ("alike", width - 8, high),
    )
    parts: list[Element] = []
    for side, x, edge in sides:
        parts += _accounts(campaign, side, x, edge, centre, (44, y - 10))
    heads = [
        el("text", "Members", x=0, y=16, class_="title hostile"),
        el("text", "Look-alikes, not named", x=width, y=16, text_anchor="end",
           class_="title alike"),
    ]  # fmt: skip
    return _svg(heads + parts + middle, width, y, "Accounts and what they share")


def _thing(shared: Shared, low: int, high: int, y: float, letters: int) -> list[Element]:
    name = shared.name if len(shared.name) <= letters else shared.name[: letters - 1] + "…"
    others = shared.users - shared.members
    counted = f"{shared.members:,} members, {others:,} other{'s' if others != 1 else ''}"
    return [
        el("rect", x=low, y=f"{y:.0f}", width=high - low, height=38, rx=3, class_="box"),
        el("text", el("title", shared.name), name, x=low + 10, y=f"{y + 16:.0f}"),
        el("text", counted, x=low + 10, y=f"{y + 31:.0f}", class_="muted"),
    ]


def _accounts(
    campaign: Campaign,
    side: Literal["hostile", "alike"],
    x: int,
    edge: int,
    centre: dict[int, float],
    span: tuple[float, float],
) -> list[Element]:
    """One side's accounts as dots, near what they share, each with its lines."""
    of: dict[str, list[int]] = {}
    for account, place in campaign.links:
        if (account in campaign.lookalikes) == (side == "alike"):
            of.setdefault(account, []).append(place)
    mean = {account: sum(centre[p] for p in places) / len(places) for account, places in of.items()}
    ordered = sorted(of, key=lambda account: (mean[account], account))
    gap = (span[1] - span[0]) / max(1, len(ordered))
    bend = (x + edge) // 2
    opacity = f"{min(0.6, 8 / max(1, len(ordered))) + 0.12:.2f}"
    dots: list[Element] = []
    lines: list[Element] = []
    for n, account in enumerate(ordered):
        y = span[0] + (n + 0.5) * gap
        d = "".join(f"M{x} {y:.0f}C{bend} {y:.0f} {bend} {centre[p]:.0f} {edge} {centre[p]:.0f}"
                    for p in of[account])  # fmt: skip
        lines.append(el("path", d=d, class_=f"link {side}", stroke_opacity=opacity))
        radius = f"{min(3.5, max(1.6, gap / 2)):.1f}"
        dots.append(el("circle", el("title", account), cx=x, cy=f"{y:.0f}", r=radius, class_=side))
    return lines + dots


def _svg(parts: list[Element], width: int, height: float, label: str) -> Element:
    box = f"0 0 {width} {height:.0f}"
    return el("svg", parts, viewBox=box, role="img", aria_label=label)
