"""What is measured of teacher, student and control, and what the student must show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck.collect.ask import ask
from limbeck.collect.store import AnswerStore
from limbeck.models.compare import Likeness, Speeds, likelihood, likeness, race
from limbeck.models.local import LocalModel
from limbeck.models.protocol import Asked
from limbeck.progress import stage_bar
from limbeck.records import Answer, Prompt, Role, Sampling
from limbeck.validate.metrics import rouge_l
from limbeck.validate.verdict import Measured

RACE_BATCHES, RACE_PROMPTS, RACE_TOKENS = 6, 4, 16
SAMPLES = 10
NOTES = (
    "The control starts from the same weights and learns the same text for the same number of "
    "steps, by cross-entropy alone: what the student has over it, it has from the teacher's "
    "distribution.",
    "teacher_logprob is judged by the teacher itself: no independent judgement of quality.",
)


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """All that the verdict needs: measurements, each model's figures, and sample answers."""

    measured: tuple[Measured, ...]
    figures: Mapping[Role, dict[str, Any]]
    samples: list[dict[str, str]]


def measure(
    models: Mapping[Role, LocalModel],
    asked: Sequence[Asked],
    sampling: Sampling,
    store: AnswerStore,
    *,
    answered: int,
    itemsize: int,
) -> Findings:
    """Measure student and control against the teacher on held-out prompts.

    `asked` are held-out prompts with the teacher's own answers, on all of which the distributions
    are compared. The first `answered` prompts are answered greedily by all three models, through
    the store, so that an interrupted measurement goes on. Sizes are those of the
    weights at `itemsize` bytes each, for all three alike.
    """
    greedy = Sampling(sampling.max_tokens)
    prompts = [prompt for prompt, _ in asked[:answered]]
    ordered = sorted(asked, key=lambda one: len(one[1].token_ids))
    with stage_bar("compare", sum(len(a.token_ids) for _, a in asked), "tokens") as meter:
        close = likeness(
            models["teacher"],
            [models["student"], models["control"]],
            ordered,
            lambda n: meter.advance(rows=n, tokens=n),
        )
    answers: dict[Role, list[Answer]] = {
        role: ask(model, prompts, greedy, store, role) for role, model in models.items()
    }
    with stage_bar("race", RACE_BATCHES, "batches") as meter:
        speeds = race(
            [models["teacher"], models["student"]],
            prompts[: RACE_BATCHES * RACE_PROMPTS],
            Sampling(min(RACE_TOKENS, sampling.max_tokens)),
            max(1, min(RACE_PROMPTS, len(prompts) // RACE_BATCHES)),
            lambda: meter.advance(rows=1),
        )
    figures: dict[Role, dict[str, Any]] = {
        r: _figures(model, itemsize) for r, model in models.items()
    }
    lengths = np.array([len(a.token_ids) for _, a in ordered], np.float64)
    measured = (
        *_closeness(close, lengths),
        *_answers(models["teacher"], prompts, answers),
        *_speeds(speeds),
        *_sizes(figures),
    )
    racers: tuple[Role, Role] = ("teacher", "student")
    for row, role in enumerate(racers):
        figures[role]["tokens_per_s"] = round(float(np.median(speeds.tokens_per_s[row])), 1)
        figures[role]["answers_per_s"] = round(float(np.median(speeds.answers_per_s[row])), 2)
    return Findings(measured, figures, _samples(prompts, answers))


def _closeness(close: Sequence[Likeness], lengths: Any) -> list[Measured]:
    student, control = close
    better = {"kl": "lower", "agreement": "higher", "acceptance": "higher"}
    return [
        Measured(
            metric=metric,
            better="lower" if better[metric] == "lower" else "higher",
            student=getattr(student, metric),
            teacher=None,
            control=getattr(control, metric),
            weights=lengths,
            test={"control": "superior"},
        )
        for metric in better
    ]


def _answers(
    teacher: LocalModel, prompts: Sequence[Prompt], answers: Mapping[Role, Sequence[Answer]]
) -> list[Measured]:
    """ROUGE-L of greedy answers to the teacher's, and the teacher's likelihood of all three."""
    reference = [a.text for a in answers["teacher"]]
    overlap = {
        role: np.array([rouge_l(a.text, r) for a, r in zip(found, reference, strict=True)])
        for role, found in answers.items()
    }
    likely = {
        role: likelihood(teacher, list(zip(prompts, found, strict=True)))
        for role, found in answers.items()
    }
    return [
        Measured(
            metric="rouge_l",
            better="higher",
            student=overlap["student"],
            teacher=None,
            control=overlap["control"],
            weights=None,
            test={"control": "non_inferior"},
        ),
        Measured(
            metric="teacher_logprob",
            better="higher",
            student=likely["student"],
            teacher=likely["teacher"],
            control=likely["control"],
            weights=None,
            test={"control": "report", "teacher": "report"},
        ),
    ]


def _speeds(speeds: Speeds) -> list[Measured]:
    return [
        Measured(
            metric=metric,
            better="higher",
            student=values[1],
            teacher=values[0],
            control=None,
            weights=None,
            test={"teacher": "report"},
        )
        for metric, values in (
            ("tokens_per_s", speeds.tokens_per_s),
            ("answers_per_s", speeds.answers_per_s),
        )
    ]


def _sizes(figures: Mapping[Role, dict[str, Any]]) -> list[Measured]:
    return [
        Measured(
            metric=metric,
            better="lower",
            student=np.array([figures["student"][metric]], np.float64),
            teacher=np.array([figures["teacher"][metric]], np.float64),
            control=None,
            weights=None,
            test={"teacher": "report"},
        )
        for metric in ("parameters", "bytes")
    ]


def _figures(model: LocalModel, itemsize: int) -> dict[str, Any]:
    return {
        "name": model.name,
        "parameters": model.parameters,
        "bytes": model.parameters * itemsize,
        "layers": model.layers,
        "fingerprint": model.fingerprint,
        "tokens_per_s": None,
        "answers_per_s": None,
    }


def _samples(
    prompts: Sequence[Prompt], answers: Mapping[Role, Sequence[Answer]]
) -> list[dict[str, str]]:
    """Answers side by side for prompts spread evenly over the held-out set."""
    chosen = np.unique(np.linspace(0, len(prompts) - 1, SAMPLES).round().astype(int))
    return [
        {"prompt": prompts[i].messages[-1].content}
        | {role: found[i].text for role, found in answers.items()}
        for i in chosen.tolist()
    ]
