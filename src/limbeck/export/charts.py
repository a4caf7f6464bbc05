"""The report's two charts as inline SVG, whose colours are the page's own CSS variables.

Text stays text, in the page's font. Each chart is drawn twice, wide and narrow; one SVG unit is one
CSS pixel at the width it is drawn for.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal
from xml.sax.saxutils import quoteattr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = 960, 340
NAMES = 134
"""Room right of a panel for its lines' names, in the widest of the usual fonts (DejaVu Sans)."""

# Drawn in the light palette; every one becomes var(--name), which the style sheet sets for dark.
INK, MUTED, FAINT, ZONE, FAIL = "#1f2328", "#646c76", "#d3d6da", "#eef0ec", "#b3261e"
ROLES: Mapping[str, str] = {"teacher": "#b0622b", "student": "#0d7a74", "control": "#7d7f95"}
PALETTE: Mapping[str, str] = {
    **{colour: f"var(--{role})" for role, colour in ROLES.items()},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    FAINT: "var(--faint)",
    ZONE: "var(--zone)",
    FAIL: "var(--fail)",
}

_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 13,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "lines.solid_capstyle": "round",
    "figure.dpi": 72,
}


@dataclass(frozen=True, slots=True)
class Contrast:
    """One row of the forest: `low`, `delta`, `high` signed so that right of 0 is better.

    `allowed` is how far left of 0 the interval may reach and still pass, in the same unit, or None
    where nothing is tested. `numbers` and `result` are printed as they are.
    """

    label: str
    group: str
    delta: float
    low: float
    high: float
    allowed: float | None
    margin: str
    numbers: str
    result: str
    passed: bool | None


@dataclass(slots=True)
class Curve:
    """One line over optimizer steps: `role` gives the colour, `held_out` the stroke."""

    role: str
    held_out: bool
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def forest(rows: Sequence[Contrast], width: int) -> str:
    """The contrasts with their intervals, grouped, each row on its own scale around one zero line.

    Returns an `<svg>` element, `width` units wide.
    """
    with _style():
        plot = _Forest(rows, narrow=width < 500, width=width)
        return _svg(plot.draw(), f"forest-{width}", "Differences with their intervals")


def curves(panels: Mapping[str, Sequence[Curve]], width: int) -> str:
    """One panel a title, side by side or, where narrow, stacked; log y over a range of 8 and more.

    Returns an `<svg>` element, `width` units wide.
    """
    from matplotlib.figure import Figure

    narrow = width < 500
    across, down = (1, len(panels)) if narrow else (len(panels), 1)
    height = 280 * down if narrow else 330
    with _style():
        figure = Figure(figsize=(width / 72, height / 72))
        # Room on the right of each panel for the names at the line ends.
        left, gap = (44, 0) if narrow else (44, 150 + 44)
        panel = (width - left - NAMES - gap * (across - 1)) / across
        for index, (title, lines) in enumerate(panels.items()):
            x = left + (0 if narrow else index * (panel + gap))
            y = height - 280 * (index + 1) + 46 if narrow else 46
            box = (x / width, y / height, panel / width, (280 - 92 if narrow else 238) / height)
            _panel(figure.add_axes(box), title, lines)
        return _svg(figure, f"curves-{width}", ", ".join(panels))


def smooth(values: Sequence[float]) -> list[float]:
    """A centred running mean over a tenth of the points, which leaves the length as it is."""
    reach = len(values) // 20
    means: list[float] = []
    for i in range(len(values)):
        window = values[max(0, i - reach) : i + reach + 1]
        means.append(sum(window) / len(window))
    return means


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions near the wanted ones, in the same order, no two closer than `gap`."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[float]] = []  # [sum of (wanted - offset), how many]; a block keeps its gaps
    for index in order:
        blocks.append([wanted[index], 1])
        while len(blocks) > 1 and _start(blocks[-2]) + blocks[-2][1] * gap > _start(blocks[-1]):
            total, count = blocks.pop()
            below = blocks[-1]
            below[0] += total - count * below[1] * gap
            below[1] += count
    placed = [_start(block) + k * gap for block in blocks for k in range(int(block[1]))]
    result = [0.0] * len(wanted)
    for index, position in zip(order, placed, strict=True):
        result[index] = position
    return result


def _start(block: Sequence[float]) -> float:
    return block[0] / block[1]


class _Forest:
    """Lays the rows out top down in a canvas whose unit is a CSS pixel."""

    def __init__(self, rows: Sequence[Contrast], *, narrow: bool, width: int) -> None:
        self.rows, self.narrow, self.width = rows, narrow, width
        self.groups = list(dict.fromkeys(row.group for row in rows))
        self.step, self.head = (72, 56) if narrow else (38, 56)
        self.height = self.head * len(self.groups) + self.step * len(rows) + 4
        self.left, self.right = (0, width) if narrow else (226, 606)

    def draw(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(self.width / 72, self.height / 72))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        axes.set_axis_off()
        y = 0.0
        for group in self.groups:
            self._heading(axes, group, y)
            y += self.head
            for row in (r for r in self.rows if r.group == group):
                self._row(axes, row, y)
                y += self.step
        return figure

    def _heading(self, axes: Axes, group: str, y: float) -> None:
        base = y + self.head - 19
        axes.plot([0, self.width], [y + self.head - 7] * 2, color=FAINT, lw=1)
        axes.text(0, base, group, weight="bold")
        if self.narrow:
            axes.text(self.right, base, "← worse  0  better →", color=MUTED, ha="right", size=12)
            return
        middle = (self.left + self.right) / 2
        axes.text(middle - 16, base, "← worse", color=MUTED, ha="right", size=12)
        axes.text(middle, base, "0", color=MUTED, ha="center", size=12)
        axes.text(middle + 16, base, "better →", color=MUTED, size=12)
        axes.text(self.right + 24, base, "difference and interval", color=MUTED, size=12)

    def _row(self, axes: Axes, row: Contrast, y: float) -> None:
        middle = (self.left + self.right) / 2
        reach = max(abs(v) for v in (row.low, row.high, row.delta, row.allowed or 0)) or 1.0
        # Beyond the farthest point there is room for the margin's number.
        unit = (self.right - self.left) / 2 / ((1.4 if self.narrow else 1.3) * reach)
        centre = y + (34 if self.narrow else self.step / 2)
        high, low = centre - 13, centre + 13
        if row.allowed is not None:
            edge = middle - row.allowed * unit
            axes.fill_between([edge, self.right], high, low, color=ZONE, lw=0)
            if row.allowed:
                axes.plot([edge, edge], [high, low], color=MUTED, lw=1)
                beside: dict[str, Any] = {"size": 10.5, "ha": "right", "color": MUTED}
                axes.text(edge - 4, high + 7, row.margin, **beside)
        over = 0 if self.narrow else 6
        axes.plot([middle, middle], [high - over, low + over], color=MUTED, lw=1)
        colour = FAIL if row.passed is False else ROLES["student"]
        ends = [middle + row.low * unit, middle + row.high * unit]
        axes.plot(ends, [centre, centre], color=colour, lw=3)
        axes.plot(middle + row.delta * unit, centre, "o", color=colour, ms=9, mew=0)
        self._words(axes, row, centre)

    def _words(self, axes: Axes, row: Contrast, centre: float) -> None:
        colour = {True: INK, False: FAIL, None: MUTED}[row.passed]
        if self.narrow:
            axes.text(0, centre - 19, row.label)
            axes.text(self.right, centre - 19, row.result, color=colour, ha="right")
            axes.text(self.right, centre + 27, row.numbers, color=MUTED, size=12, ha="right")
            return
        axes.text(0, centre + 4.5, row.label)
        axes.text(self.right + 24, centre + 4.5, row.numbers)
        axes.text(self.width, centre + 4.5, row.result, color=colour, ha="right")


def _panel(axes: Axes, title: str, lines: Sequence[Curve]) -> None:
    """Raw values faint, their running mean strong, held-out points joined; names at the ends."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    axes.set_title(title, loc="left", size=13, weight="bold", color=INK, pad=16, x=0)
    values = [v for line in lines for v in line.values]
    dots: dict[str, Any] = {"ms": 5, "mew": 0, "clip_on": False}
    for line in lines:
        colour = ROLES.get(line.role, MUTED)
        if line.held_out:
            axes.plot(line.steps, line.values, "o--", color=colour, lw=1.6, **dots)
        else:
            axes.plot(line.steps, line.values, color=colour, lw=0.8, alpha=0.35)
            stroke = "o-" if len(line.values) < 10 else "-"
            axes.plot(line.steps, smooth(line.values), stroke, color=colour, lw=2.2, **dots)
    if min(values) > 0 and max(values) / min(values) >= 8:
        _log_axis(axes, min(values), max(values))
    else:
        axes.set_ylim(min(0.0, *values), max(values) * 1.06 or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlim(0, max(1, *(step for line in lines for step in line.steps)))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("optimizer step", size=12)
    axes.grid(axis="y", color=FAINT, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _name_ends(axes, lines)


def _log_axis(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_yscale("log")
    bottom, top = low / 1.15, high * 1.15
    tens = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    factors = (1, 2, 5) if high / low < 300 else (1,)
    ticks = [f * 10.0**e for e in tens for f in factors if bottom <= f * 10.0**e <= top]
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _name_ends(axes: Axes, lines: Sequence[Curve]) -> None:
    """Write each line's name and last value right of the panel, pushed apart where they meet."""
    ends = [line.values[-1] if line.held_out else smooth(line.values)[-1] for line in lines]
    to_pixel = axes.transData.transform
    height = axes.bbox.height
    wanted = [float(to_pixel((0, end))[1] - axes.bbox.y0) for end in ends]
    # No lower than where the value below a name clears the axis' own numbers.
    for above, index in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        wanted[index] = max(wanted[index], 16.0 + 31 * above)
    for line, end, y in zip(lines, ends, spread(wanted, 31), strict=True):
        colour = ROLES.get(line.role, MUTED)
        name = line.role
        if any(other.held_out for other in lines):
            name += ", held out" if line.held_out else ", training"
        where: dict[str, Any] = {"xycoords": ("axes fraction", "axes fraction")}
        where |= {"textcoords": "offset points", "annotation_clip": False, "color": colour}
        spot = (1, y / height)
        axes.annotate(name, spot, (10, 2), weight="bold", size=12, va="baseline", **where)
        axes.annotate(f"{end:#.3g}".rstrip("."), spot, (10, -12), size=12, va="baseline", **where)


def _style() -> Any:
    import matplotlib.style

    return matplotlib.style.context(["default", dict(_STYLE)])


def _svg(figure: Figure, name: str, label: str) -> str:
    """Draw, drop what only a stand-alone file needs, and let the page choose colours and font."""
    import matplotlib

    text = StringIO()
    empty: dict[Literal["Creator", "Date", "Format", "Type"], None]
    empty = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.id": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(text, format="svg", metadata=empty, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None  # every SVG of matplotlib's has one
    body = re.sub(r"<style.*?</style>|<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.S)
    for colour, variable in PALETTE.items():
        body = body.replace(colour, variable)
    # Ids must differ between the charts of one page.
    body = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    return f'<svg {box[0]} role="img" aria-label={quoteattr(label)}>{body}'
