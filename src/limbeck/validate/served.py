"""What is measured of a service's student: nothing needs the teacher, only what it has told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from limbeck.collect.ask import ask
from limbeck.collect.packing import together
from limbeck.collect.store import AnswerStore
from limbeck.models.compare import Floats, divergence_from, likelihood, race
from limbeck.models.local import LocalModel
from limbeck.models.protocol import Asked
from limbeck.progress import stage_bar
from limbeck.records import Answer, PackedTargets, Role, Sampling, Targets
from limbeck.validate.measure import (
    RACE_BATCHES,
    RACE_PROMPTS,
    RACE_TOKENS,
    Findings,
    figures_of,
    samples_of,
)
from limbeck.validate.metrics import rouge_l
from limbeck.validate.verdict import Against, Measured, Test

NOTES = (
    "The teacher is a service and was not asked again: text_nll and ROUGE-L are against the "
    "answers that it gave to the held-out prompts.",
)
TEXT_ALONE = (
    "The student learnt the teacher's text alone, so the control is where it started, untrained: "
    "what the student has over it, it has from that text.",
)
TARGETS = (
    "The control starts from the same weights and learns the same text for the same number of "
    "steps, by cross-entropy alone: what the student has over it, it has from the teacher's "
    "log-probabilities.",
    "told_kl is to what the service told of its distribution, in the student's tokens; where it "
    "told nothing of a token, the text stands for it.",
)


def measure(
    models: Mapping[Role, LocalModel],
    asked: Sequence[Asked],
    targets: Mapping[str, Targets | PackedTargets] | None,
    store: AnswerStore,
    *,
    teacher: str,
    answered: int,
    itemsize: int,
) -> Findings:
    """Measure student and control on held-out prompts.

    `asked` are the prompts with the teacher's answers in the student's tokens, `targets` what was
    made of its log-probabilities; None where only its text is known. The first `answered` prompts
    are answered greedily by both, in no more tokens than the longest of the teacher's answers has.
    """
    figures: dict[Role, dict[str, Any]] = {r: figures_of(m, itemsize) for r, m in models.items()}
    figures["teacher"] = dict.fromkeys(figures["student"], None) | {"name": teacher}
    few = asked[:answered]
    prompts = [prompt for prompt, _ in few]
    greedy = Sampling(max(len(a.token_ids) for _, a in asked))
    answers: dict[Role, list[Answer]] = {"teacher": [answer for _, answer in few]}
    answers |= {role: ask(model, prompts, greedy, store, role) for role, model in models.items()}
    with stage_bar("speed", RACE_BATCHES, "batches") as meter:
        speeds = race(
            [models["student"]],
            prompts[: RACE_BATCHES * RACE_PROMPTS],
            Sampling(min(RACE_TOKENS, greedy.max_tokens)),
            max(1, min(RACE_PROMPTS, len(prompts) // RACE_BATCHES)),
            lambda: meter.advance(rows=1),
        )
    figures["student"]["tokens_per_s"] = round(float(np.median(speeds.tokens_per_s)), 1)
    figures["student"]["answers_per_s"] = round(float(np.median(speeds.answers_per_s)), 2)
    measured = (*_closeness(models, asked, targets), _overlap(answers))
    return Findings(measured, figures, samples_of(prompts, answers))


def _closeness(
    models: Mapping[Role, LocalModel],
    asked: Sequence[Asked],
    targets: Mapping[str, Targets | PackedTargets] | None,
) -> list[Measured]:
    """How likely both find the teacher's answers, and how far they are from its distribution."""
    lengths = np.array([len(a.token_ids) for _, a in asked], np.float64)
    nll: dict[Role, Floats] = {role: -likelihood(model, asked) for role, model in models.items()}
    if targets is None:
        return [_against("text_nll", "lower", nll, lengths, {"control": "superior"})]
    told = lambda some: together([targets[a.id] for _, a in some])  # noqa: E731
    kl: dict[Role, Floats] = {
        role: divergence_from(told, model, asked) for role, model in models.items()
    }
    return [
        _against("told_kl", "lower", kl, lengths, {"control": "superior"}),
        _against("text_nll", "lower", nll, lengths, {"control": "report"}),
    ]


def _overlap(answers: Mapping[Role, Sequence[Answer]]) -> Measured:
    reference = [answer.text for answer in answers["teacher"]]
    found: dict[Role, Floats] = {
        role: np.array([rouge_l(a.text, r) for a, r in zip(some, reference, strict=True)])
        for role, some in answers.items()
    }
    return _against("rouge_l", "higher", found, None, {"control": "non_inferior"})


def _against(
    metric: str,
    better: Literal["higher", "lower"],
    values: Mapping[Role, Floats],
    weights: Floats | None,
    test: Mapping[Against, Test],
) -> Measured:
    return Measured(metric, better, values["student"], None, values["control"], weights, test)
