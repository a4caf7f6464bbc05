"""How the report and the card call metrics, and how they write numbers, times and sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

NOTHING = "–"
UNSTATED = "unit not stated"
RESULTS: Mapping[bool | None, str] = {True: "passed", False: "failed", None: "reported"}
DECISIONS: Mapping[str, str] = {
    "allow": "Permitted",
    "conditional": "Permitted under conditions",
    "deny": "Not permitted",
    "unknown": "Permission unknown",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is called, in what unit it stands, and what it means."""

    label: str
    unit: str
    meaning: str


METRICS: Mapping[str, Metric] = {
    "kl": Metric(
        "KL to the teacher",
        "nats/token",
        "How far a model's next-token distribution lies from the teacher's, averaged over the "
        "tokens of held-out answers. 0 is the teacher itself.",
    ),
    "agreement": Metric(
        "Top-1 agreement",
        "share of tokens",
        "How often the model and the teacher hold the same next token to be the likeliest.",
    ),
    "acceptance": Metric(
        "Acceptance",
        "share of tokens",
        "1 minus the total variation distance to the teacher's distribution: how many of its "
        "tokens speculative decoding would accept.",
    ),
    "teacher_logprob": Metric(
        "Teacher's log-probability",
        "nats/token",
        "How likely the teacher finds the model's own greedy answers. Nearer to 0 is likelier.",
    ),
    "told_kl": Metric(
        "KL to what the teacher told",
        "nats/token",
        "How far a model's next-token distribution lies from the log-probabilities that a service "
        "told with its held-out answers, put into the student's tokens. What it did not tell is "
        "one outcome, so this is a lower bound.",
    ),
    "text_nll": Metric(
        "Surprise at the teacher's text",
        "nats/token",
        "Minus the log-probability of the teacher's held-out answers. 0 is certainty.",
    ),
    "rouge_l": Metric(
        "ROUGE-L",
        "0 to 1",
        "Longest common subsequence of words of the greedy answer with the teacher's own, as an "
        "F-measure. 1 is the same answer, word for word.",
    ),
    "tokens_per_s": Metric("Writing speed", "tokens/s", "Answer tokens written a second."),
    "answers_per_s": Metric("Answering speed", "answers/s", "Whole answers written a second."),
    "parameters": Metric("Parameters", "count", "Numbers that the model consists of."),
    "bytes": Metric(
        "Size of the weights",
        "bytes",
        "What the weights take at the precision of the exported student, for all models alike.",
    ),
}


def metric(name: str) -> Metric:
    """How `name` is called; a metric that is not known here keeps its own name."""
    unknown = Metric(name, UNSTATED, "This version of Limbeck does not describe it.")
    return METRICS.get(name, unknown)


def decimals_of(values: Sequence[float | None]) -> int:
    """How many decimals show three digits of the largest value; three from 0.01 to 1."""
    top = max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0.0)
    if 0.01 <= top < 1 or top == 0:
        return 3
    return min(6, max(0, 2 - math.floor(math.log10(top))))


def amount(key: str, value: Any) -> str:
    """A count of parameters, bytes, layers, or a speed, with its unit."""
    if not isinstance(value, int | float):
        return NOTHING
    if key in ("tokens_per_s", "answers_per_s", "layers"):
        return f"{number(value)}\N{NO-BREAK SPACE}{key if key == 'layers' else METRICS[key].unit}"
    unit = "B" if key == "bytes" else ""
    for scale, prefix in ((1e9, "GB" if unit else "B"), (1e6, "M" + unit), (1e3, "k" + unit)):
        if abs(value) >= scale:
            return f"{number(value / scale, 1)}\N{NO-BREAK SPACE}{prefix}"
    return f"{number(value)}\N{NO-BREAK SPACE}{unit}".strip()


def number(value: Any, decimals: int | None = None) -> str:
    """A number for reading: grouped thousands, a true minus, few decimals; "–" for none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return NOTHING if value is None else str(value)
    if not math.isfinite(value):
        return "not finite"
    if decimals is None:
        decimals = 0 if isinstance(value, int) else decimals_of([value])
    return f"{value:,.{decimals}f}".replace("-", "−")


def duration(seconds: Any) -> str:
    """Seconds as a person says them."""
    if not isinstance(seconds, int | float):
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def moment(value: Any) -> str:
    """An ISO time to the minute; what is no ISO time stays as it is."""
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return NOTHING if value is None else str(value)
