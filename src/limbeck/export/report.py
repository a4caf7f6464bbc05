"""A run folder as one page: the verdict first, then everything that it rests on.

The page is one HTML file without scripts that opens without a network, in light and in dark.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from limbeck.errors import InputError
from limbeck.export import charts, wording
from limbeck.files import write_text
from limbeck.records import Permission, Verdict

STAGES = (
    "permit",
    "prompts",
    "collect",
    "targets",
    "student",
    "train",
    "control",
    "validate",
    "export",
)
COUNTED = ("parameters", "bytes")
PANELS = (
    ("KL to the teacher, nats/token", "kl", False),
    ("KL to the teacher, nats/token", "held_out_kl", True),
    ("Loss, nats/token", "loss", False),
    ("Loss, nats/token", "held_out_loss", True),
)


class ModelFacts(BaseModel):
    """What verdict.json says of teacher, student or control; None is not recorded."""

    name: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    layers: int | None = None
    tokens_per_s: float | None = None
    answers_per_s: float | None = None
    fingerprint: str | None = None


class Cost(BaseModel):
    """What the run took."""

    seconds: float | None = None
    dollars: float | None = None
    teacher_tokens_in: int | None = None
    teacher_tokens_out: int | None = None


class Sample(BaseModel):
    """One prompt with three answers."""

    prompt: str
    teacher: str | None = None
    student: str | None = None
    control: str | None = None


class VerdictFile(BaseModel):
    """verdict.json, as far as the page prints it."""

    name: str | None = None
    passed: bool
    confidence: float
    rows: list[Verdict]
    teacher: ModelFacts = ModelFacts()
    student: ModelFacts = ModelFacts()
    control: ModelFacts = ModelFacts()
    cost: Cost | None = None
    outcomes: dict[str, int] = {}
    permission: Permission | None = None
    samples: list[Sample] = []
    notes: list[str] = []


class Stage(BaseModel):
    """One stage of manifest.json."""

    key: str | None = None
    seconds: float | None = Field(default=None, ge=0)
    facts: dict[str, Any] = {}


class Manifest(BaseModel):
    """manifest.json, as far as the page prints it."""

    limbeck: str | None = None
    run_id: str | None = None
    created: str | None = None
    machine: dict[str, Any] = {}
    versions: dict[str, str] = {}
    stages: dict[str, Stage] = {}


File = TypeVar("File", bound=BaseModel)


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder from the files that lie in it.

    Raises InputError where verdict.json is missing, where it or manifest.json is damaged, or where
    jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise InputError(
            f"The report needs {error.name}; install it with: pip install 'limbeck[report]'"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[:2]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(_page(folder))
    path = folder / "report.html"
    write_text(path, page)
    return path


def _page(folder: Path) -> dict[str, Any]:
    """Everything that the template prints, already put into words."""
    verdict = _verdict(folder)
    manifest = _read(folder / "manifest.json", Manifest, f"limbeck distill {folder}/recipe.toml")
    rows, sizes = verdict.rows, _sizes(verdict.teacher, verdict.student)
    recipe = folder / "recipe.toml"
    return {
        "name": verdict.name or folder.name,
        "verdict": verdict,
        "models": {role: getattr(verdict, role) for role in charts.ROLES},
        "gates": [row for row in rows if row.gate],
        "failed": [
            f"{wording.metric(row.metric).label} against {row.against}"
            for row in rows
            if row.gate and not row.passed
        ],
        "confidence": f"{100 * verdict.confidence:g}\N{NO-BREAK SPACE}%",
        "sizes": sizes,
        "ratios": [
            f"{sizes[key]['ratio']} the {words}"
            for key, words in (("parameters", "parameters"), ("tokens_per_s", "writing speed"))
            if key in sizes and sizes[key]["ratio"]
        ],
        "rows": [_row(row) for row in rows],
        "forest": _forest(rows),
        "exact": [wording.metric(row.metric).label for row in rows if not _drawable(row)],
        "glossary": list({row.metric: wording.metric(row.metric) for row in rows}.values()),
        "training": _training(folder / "metrics.jsonl"),
        "outcomes": _outcomes(verdict, manifest),
        "manifest": manifest or Manifest(),
        "stages": _stages(manifest),
        "text_alone": bool(manifest) and _facts(manifest, "targets").get("way") == "text alone",
        "recipe": recipe.read_text(encoding="utf-8") if recipe.exists() else None,
        "wording": wording,
    }


def _verdict(folder: Path) -> VerdictFile:
    path, command = folder / "verdict.json", f"limbeck validate {folder}"
    verdict = _read(path, VerdictFile, command)
    if verdict is None:
        raise InputError(f"{folder} has no verdict.json; write it with: {command}")
    failed = [row.metric for row in verdict.rows if row.gate and not row.passed]
    if verdict.passed and failed:
        raise InputError(
            f"{path} says passed, but its gate {failed[0]!r} did not; "
            f"write it again with: {command}"
        )
    return verdict


def _read(path: Path, shape: type[File], command: str) -> File | None:
    """The file in its shape, or None where there is none; `command` would write it again."""
    try:
        return shape.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise InputError(f"{path}: {what}; write it again with: {command}") from None


def _sizes(teacher: ModelFacts, student: ModelFacts) -> dict[str, dict[str, Any]]:
    """Teacher and student side by side; `shares` are the bars' lengths in percent."""
    sizes: dict[str, dict[str, Any]] = {}
    for key in ("parameters", "bytes", "layers", "tokens_per_s", "answers_per_s"):
        values = {"teacher": getattr(teacher, key), "student": getattr(student, key)}
        longest = max(value or 0 for value in values.values())
        if longest <= 0:
            continue
        ratio = values["student"] / values["teacher"] if all(values.values()) else None
        sizes[key] = {
            "label": wording.METRICS[key].label if key in wording.METRICS else key.capitalize(),
            "ratio": ratio and f"{ratio:.2f}×",
            "amounts": {role: wording.amount(key, value) for role, value in values.items()},
            "shares": {role: 100 * (value or 0) / longest for role, value in values.items()},
        }
    return sizes


def _row(row: Verdict) -> dict[str, Any]:
    """One row of the verdict table, in words."""
    change, low, high, margin = _changes(row)
    places = wording.decimals_of((row.delta, *row.interval))
    models = {"teacher": row.teacher, "student": row.student, "control": row.control}
    counted = row.metric in COUNTED
    return {
        "metric": wording.metric(row.metric),
        "against": row.against,
        "better": row.better,
        "gate": row.gate,
        "amounts": {
            role: wording.amount(row.metric, v) if counted else wording.number(v, places)
            for role, v in models.items()
        },
        "delta": change,
        "interval": "exact" if row.interval[0] == row.interval[1] else f"{low} to {high}",
        "margin": wording.NOTHING if row.margin is None else margin,
        "n": wording.number(row.n),
        "passed": row.passed,
    }


def _changes(row: Verdict) -> list[str]:
    """Delta, both ends of the interval, and the margin on its side of 0, as signed numbers."""
    worst = -_sign(row) * abs(row.margin or 0.0)
    values = (row.delta, *row.interval, worst)
    if row.metric in COUNTED:
        texts = [wording.amount(row.metric, value) for value in values]
    else:
        places = wording.decimals_of(values[:3])
        texts = [wording.number(value, places) for value in values[:3]]
        texts.append(wording.number(worst) if worst else "0")
    return ["+" + text if value > 0 else text for value, text in zip(values, texts, strict=True)]


def _sign(row: Verdict) -> int:
    return 1 if row.better == "higher" else -1


def _drawable(row: Verdict) -> bool:
    low, high = row.interval
    return low != high and all(math.isfinite(value) for value in (row.delta, low, high))


def _forest(rows: Sequence[Verdict]) -> list[Any]:
    """The wide and the narrow forest plot; empty where no row has an interval."""
    contrasts: list[charts.Contrast] = []
    for row in sorted(filter(_drawable, rows), key=lambda row: row.against):
        metric, sign = wording.metric(row.metric), _sign(row)
        change, low, high, margin = _changes(row)
        unit = "" if metric.unit in ("0 to 1", wording.UNSTATED) else metric.unit
        label = metric.label if len(metric.label) <= 30 else metric.label[:29] + "…"
        contrasts.append(
            charts.Contrast(
                label=label,
                group=f"Student against {row.against}",
                delta=sign * row.delta,
                low=min(sign * end for end in row.interval),
                high=max(sign * end for end in row.interval),
                allowed=None if row.margin is None else abs(row.margin),
                margin=margin,
                numbers=f"{change} [{low}, {high}] {unit}".strip(),
                result=wording.RESULTS[row.passed],
                passed=row.passed,
            )
        )
    return _both(charts.forest, contrasts) if contrasts else []


def _both(draw: Callable[[Any, int], str], data: Any) -> list[Any]:
    from markupsafe import Markup

    # Safe: matplotlib escapes the text of its SVG.
    return [Markup(draw(data, width)) for width in (charts.WIDE, charts.NARROW)]  # noqa: S704


def _training(path: Path) -> dict[str, Any]:
    """The curves of metrics.jsonl, the last line of each role, and what could not be drawn."""
    lines, unreadable = _measures(path)
    roles = dict.fromkeys(role for role, _ in lines)
    drawn: dict[str, list[charts.Curve]] = {}
    skipped = 0
    for title, key, held_out in PANELS:
        for role in roles:
            points = {step: line.get(key) for (r, step), line in lines.items() if r == role}
            numbers = {s: v for s, v in points.items() if isinstance(v, int | float)}
            finite = {s: v for s, v in numbers.items() if math.isfinite(v)}
            skipped += len(numbers) - len(finite)
            if finite:
                curve = charts.Curve(role, held_out, [*finite], [*finite.values()])
                drawn.setdefault(title, []).append(curve)
    return {
        "charts": _both(charts.curves, drawn) if drawn else [],
        "last": {role: line for (role, _), line in lines.items() if "loss" in line},
        "skipped": skipped,
        "unreadable": unreadable,
    }


def _measures(path: Path) -> tuple[dict[tuple[str, int], dict[str, Any]], list[int]]:
    """What was measured at each (role, step), by step, and the numbers of unreadable lines.

    Of a repeated step the last line wins. A last line that a killed process left unfinished is
    ignored.
    """
    found: dict[tuple[str, int], dict[str, Any]] = {}
    unreadable: list[int] = []
    text = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    for position, line in enumerate(text, 1):
        try:
            row = json.loads(line) if line.strip() else {}
            if row.get("stage") == "train":
                key = (str(row["role"]), int(row["step"]))
                found[key] = found.get(key, {}) | row
        except (ValueError, KeyError, TypeError, AttributeError):
            if position < len(text):
                unreadable.append(position)
    return dict(sorted(found.items(), key=lambda item: item[0][1])), unreadable


def _facts(manifest: Manifest, stage: str) -> dict[str, Any]:
    return manifest.stages.get(stage, Stage()).facts


def _outcomes(verdict: VerdictFile, manifest: Manifest | None) -> dict[str, Any]:
    """Counts with their shares in percent, their sum, and how many the collect stage counted."""
    counts: Mapping[str, int] = verdict.outcomes
    total = sum(counts.values())
    return {
        "counts": counts,
        "total": total,
        "shares": {key: 100 * count / total if total else 0.0 for key, count in counts.items()},
        "asked": _facts(manifest, "collect").get("answers") if manifest else None,
    }


def _stages(manifest: Manifest | None) -> list[dict[str, Any]]:
    """Every stage in order, with its seconds, its share of the longest, and its facts."""
    if manifest is None or not manifest.stages:
        return []
    found = manifest.stages
    longest = max(stage.seconds or 0.0 for stage in found.values()) or 1.0
    names = [*STAGES, *(name for name in found if name not in STAGES)]
    stages = {name: found.get(name, Stage()) for name in names}
    return [
        {"name": name, "share": 100 * (stage.seconds or 0.0) / longest, **stage.model_dump()}
        for name, stage in stages.items()
    ]
