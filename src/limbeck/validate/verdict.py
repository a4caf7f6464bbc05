"""From per-prompt measurements to tested claims, and to words for them.

A claim holds where its whole interval lies on the right side of a line drawn beforehand. An
interval that does not, shows nothing: not a difference, and not that there is none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic import TypeAdapter, ValidationError
from rich.table import Table
from rich.text import Text

from limbeck.errors import GateError, InputError
from limbeck.records import Verdict
from limbeck.validate.stats import Numbers, fewest_prompts, paired_interval, weighted_mean

Against: TypeAlias = Literal["teacher", "control"]
Test: TypeAlias = Literal["superior", "non_inferior", "report"]

EXACT = frozenset({"parameters", "bytes"})  # counted, not sampled: one value is enough
ABSENT = "–"

_METRICS: Mapping[str, str] = {
    "kl": "kl (nats/token)",
    "agreement": "agreement (top-1)",
    "acceptance": "acceptance (1 − TVD)",
    "teacher_logprob": "teacher log-prob\n(nats/token)",
    "told_kl": "kl to what was told\n(nats/token)",
    "text_nll": "teacher's text\n(nats/token)",
    "rouge_l": "ROUGE-L (F1)",
    "tokens_per_s": "tokens/s",
    "answers_per_s": "answers/s",
    "parameters": "parameters",
    "bytes": "size of weights",
}
_ROWS = TypeAdapter(list[Verdict])
_FIELDS = frozenset(field.name for field in fields(Verdict))


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One metric of each model on the same n prompts, in the same order.

    `teacher`, `student`, `control`: a value a prompt (n,), or a timed batch; None where not
    measured. `weights` (n,): what each prompt counts, such as its tokens; None counts all alike.
    `test` says what the student must show against whom; no entry, no comparison.
    """

    metric: str
    better: Literal["higher", "lower"]
    student: Numbers
    teacher: Numbers | None
    control: Numbers | None
    weights: Numbers | None
    test: Mapping[Against, Test]


def judge(
    measured: Sequence[Measured],
    *,
    margin: float,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[Verdict, ...]:
    """Test each metric against each model that its `test` names: one row a comparison, in order.

    `delta` is the mean of student minus other over prompts, with its paired interval. `superior`
    passes when the whole interval is better than 0, `non_inferior` when its worse end is at most
    `margin` worse; both gate. `report` claims nothing. Below `fewest_prompts(confidence)` prompts
    no claim passes. All gates must pass together, so their number needs no correction.

    Raises InputError naming the metric, where its values do not fit the comparison asked for.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise InputError(f"margin must be 0 or more, not {margin}")
    rows: list[Verdict] = []
    for one in measured:
        for against, test in one.test.items():
            try:
                rows.append(_compare(one, against, test, margin, confidence, resamples, seed))
            except InputError as error:
                raise InputError(f"{one.metric} against {against}: {error}") from None
    return tuple(rows)


def passed(rows: Iterable[Verdict]) -> bool:
    """Whether every gating row passed, and there is at least one."""
    gates = [row.passed for row in rows if row.gate]
    return bool(gates) and all(gate is True for gate in gates)


def gate(verdict: Mapping[str, Any]) -> None:
    """Raise GateError naming the tests that the student did not pass."""
    if verdict["passed"]:
        return
    failed = [
        f"{r['metric']} against {r['against']}"
        for r in verdict["rows"]
        if r["gate"] and not r["passed"]
    ]
    raise GateError(f"The verdict is no: not shown: {', '.join(failed) or 'nothing was tested'}.")


def table(rows: Sequence[Verdict], confidence: float) -> Table:
    """The rows as a table for a terminal of 100 columns, in one section for each `against`."""
    shown = Table(
        box=None,
        pad_edge=False,
        padding=(0, 0, 0, 2),
        header_style="bold",
        caption=_caption(rows, confidence),
        caption_justify="left",
    )
    shown.add_column("metric", overflow="fold")
    for name in ("teacher", "student", "control", "delta [interval]"):
        shown.add_column(Text(name), justify="right", no_wrap=True, overflow="fold")
    shown.add_column("verdict", overflow="fold")
    for against in ("control", "teacher"):
        section = [row for row in rows if row.against == against]
        if section:
            shown.add_row(Text(f"student − {against}", style="italic dim"))
        for row in section:
            shown.add_row(*_cells(row))
    return shown


def word(row: Verdict) -> str:
    """What a row shows: "better than control", "not worse (margin 0.05)", "not shown", "reported".

    A pass says no more than its interval: at a margin of 0, only one clear of 0 is "better".
    """
    if row.passed is None:
        return "reported"
    if not row.passed:
        return "not shown"
    if not row.margin and _least_gain(row.interval, row.better) > 0:
        return f"better than {row.against}"
    return f"not worse (margin {row.margin or 0:g})"


def to_json(rows: Iterable[Verdict]) -> list[dict[str, Any]]:
    """Rows for a JSON document; a model's value that is not finite is written as None.

    Raises InputError for a delta, interval or margin that is not a number: JSON has none such.
    """
    found: list[dict[str, Any]] = []
    for row in rows:
        if not all(map(math.isfinite, (row.delta, *row.interval, row.margin or 0))):
            raise InputError(
                f"{row.metric} against {row.against}: delta {row.delta}, interval {row.interval}, "
                f"margin {row.margin} must be numbers"
            )
        values: dict[str, Any] = asdict(row)
        values["interval"] = list(row.interval)
        for model in ("teacher", "student", "control"):
            if values[model] is not None and not math.isfinite(values[model]):
                values[model] = None
        found.append(values)
    return found


def from_json(rows: Sequence[Mapping[str, Any]]) -> tuple[Verdict, ...]:
    """Read what `to_json` wrote. Raises InputError naming the row and key that does not fit."""
    for position, row in enumerate(rows, 1):
        unknown = sorted(set(row) - _FIELDS) if isinstance(row, Mapping) else []
        if unknown:
            raise InputError(f"verdict row {position}: unknown key {unknown[0]!r}")
    try:
        text = json.dumps(rows, allow_nan=False)
    except ValueError:
        raise InputError("verdict rows hold NaN or infinity; JSON has neither") from None
    try:
        return tuple(_ROWS.validate_json(text, strict=True))
    except ValidationError as error:
        first = error.errors()[0]
        position, *key = first["loc"] or (0,)
        where = ".".join(map(str, key)) or "row"
        raise InputError(f"verdict row {int(position) + 1}: {where!r}: {first['msg']}") from None


def _compare(
    one: Measured,
    against: Against,
    test: Test,
    margin: float,
    confidence: float,
    resamples: int,
    seed: int,
) -> Verdict:
    other = {"teacher": one.teacher, "control": one.control}[against]
    if other is None:
        raise InputError(f"there are no {against} values to compare with")
    for name in ("teacher", "control", "weights"):
        values = getattr(one, name)
        if values is not None and np.shape(values) != np.shape(one.student):
            raise InputError(
                f"{name} has {np.size(values)} values for the student's {np.size(one.student)}; "
                "they must be of the same prompts"
            )
    deltas = np.asarray(one.student, np.float64) - np.asarray(other, np.float64)
    if exact := one.metric in EXACT and deltas.shape == (1,):
        interval = (float(deltas[0]), float(deltas[0]))
    else:
        interval = paired_interval(
            deltas, weights=one.weights, confidence=confidence, resamples=resamples, seed=seed
        )
    n = len(deltas) if one.weights is None else int(np.count_nonzero(one.weights))
    enough = exact or n >= fewest_prompts(confidence)
    line = {"superior": 0.0, "non_inferior": float(margin), "report": None}[test]
    gain = _least_gain(interval, one.better)
    holds = gain > 0 if test == "superior" else gain >= -margin
    return Verdict(
        metric=one.metric,
        against=against,
        teacher=_mean(one.teacher, one.weights),
        student=_mean(one.student, one.weights),
        control=_mean(one.control, one.weights),
        delta=weighted_mean(deltas, one.weights),
        interval=interval,
        margin=line,
        n=n,
        passed=None if line is None else enough and holds,
        better=one.better,
        gate=line is not None,
    )


def _least_gain(interval: tuple[float, float], better: Literal["higher", "lower"]) -> float:
    """By how much the interval's worse end is better than 0; negative where it is worse."""
    return interval[0] if better == "higher" else -interval[1]


def _mean(values: Numbers | None, weights: Numbers | None) -> float | None:
    return None if values is None else weighted_mean(values, weights)


def _caption(rows: Sequence[Verdict], confidence: float) -> Text:
    counts = [row.n for row in rows if row.metric not in EXACT]
    said = f"{100 * confidence:g} % intervals, paired by prompt"
    if counts:
        low, high = min(counts), max(counts)
        said += f", n = {low}" if low == high else f", n = {low} to {high}"
    fewest = fewest_prompts(confidence)
    if any(row.gate and row.n < fewest and row.metric not in EXACT for row in rows):
        said += f"; n < {fewest} can show nothing"
    return Text(said, style="dim italic")


def _cells(row: Verdict) -> tuple[Text, ...]:
    """One row of the table; `Text`, so that no name or bracket is read as markup."""
    places = _decimals(row)
    models = [_value(row.metric, v, places) for v in (row.teacher, row.student, row.control)]
    delta, low, high = (_signed(row.metric, v, places) for v in (row.delta, *row.interval))
    change = delta if low == high else f"{delta} [{low}, {high}]"
    style = {True: "green", False: "bold red", None: "dim"}[row.passed]
    label = _METRICS.get(row.metric, row.metric)
    return *map(Text, (label, *models, change)), Text(word(row), style=style)


def _value(metric: str, value: float | None, places: int) -> str:
    if value is None or not math.isfinite(value):
        return ABSENT
    if metric in EXACT:
        shown = _scaled(abs(value), metric == "bytes")
    else:
        shown = f"{abs(value):.{places}f}"
    return "−" + shown if value < 0 and any(digit in shown for digit in "123456789") else shown


def _signed(metric: str, value: float, places: int) -> str:
    shown = _value(metric, value, places)
    return "+" + shown if value > 0 else shown


def _decimals(row: Verdict) -> int:
    """Decimals that show half the interval to two digits, or one past the fourth decimal.

    Without an interval they show the delta to four digits.
    """
    half = (row.interval[1] - row.interval[0]) / 2
    scale, digits = (half, 2) if half > 0 else (abs(row.delta), 4)
    if not (math.isfinite(scale) and scale > 0):
        return 4
    places = max(0, digits - 1 - math.floor(math.log10(scale)))
    return places if places <= 4 else min(6, places - 1)


def _scaled(value: float, is_bytes: bool) -> str:
    """Three digits and a decimal prefix: 81.4M, or 163 MB where it counts bytes."""
    prefixes = ("B", "kB", "MB", "GB", "TB") if is_bytes else ("", "k", "M", "B", "T")
    power = 0
    while power < len(prefixes) - 1 and value >= 999.5:
        value, power = value / 1000, power + 1
    digits = 0 if power == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}{' ' if is_bytes else ''}{prefixes[power]}"


def show(document: Mapping[str, Any], folder: Path) -> None:
    """Print a verdict's table, and where the student and the report lie."""
    from rich.console import Console

    out = Console(highlight=False, emoji=False)
    out.print()
    out.print(table(from_json(document["rows"]), document["confidence"]))
    out.print()
    for what in ("student", "report.html"):
        if (folder / what).exists():
            out.print(f"{what.partition('.')[0]:>9}  {folder / what}", soft_wrap=True)
