"""A small lesson: the tiny teacher's answers for a student of two of its layers to learn."""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor

from limbeck.progress import Meter
from limbeck.recipe import TrainSection
from limbeck.records import Example, Targets
from limbeck.sections import StudentSection
from limbeck.train.examples import render
from limbeck.train.learner import Learner, Learns, Lesson
from limbeck.train.student import start_from_layers
from small import asked, load, prompts

TIMES = ("seconds", "tokens_per_s")


class Silent:
    def advance(self, *_: object, **__: object) -> None:
        pass


SILENT = cast(Meter, Silent())


class School(NamedTuple):
    start: Path
    examples: list[Example]
    held_out: list[Example]

    def lesson(self, role: Learns = "student", steps: int = 5, **keys: Any) -> Lesson:
        usual = {"steps": steps, "batch_tokens": 220, "micro_tokens": 100, "row_tokens": 64}
        usual |= {"precision": "float32", "learning_rate": 2e-3}
        section = TrainSection.model_validate(usual | keys)
        return Lesson(role, self.start, self.examples, self.held_out, section, 7, steps)


def make_school(tiny: Path, start: Path) -> School:
    """Lessons for a student that begins in the new folder `start`."""
    teacher = load(tiny)
    rows = asked(teacher, prompts())
    targets = {t.answer_id: t for t in teacher.score(rows, 6, 1.0)}
    start_from_layers(teacher, StudentSection(layers=2), rows[:8], start)
    examples = render(rows, teacher.tokenizer, targets)
    return School(start, examples[::2], examples[1::5])


def lines(metrics: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def untimed(metrics: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in lines(metrics)]


def after(learner: Learner, step: list[list[int]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What one step says of itself, and the gradient that it took: ten times its first moment."""
    row = learner.learn(step, SILENT)
    moments = learner.masters.state().items()
    return row, {k.removeprefix("exp_avg."): 10 * v for k, v in moments if k.startswith("exp_avg.")}


def oracle(lesson: Lesson, numbers: list[int]) -> tuple[float, float, dict[str, Tensor]]:
    """Loss, KL and gradient of a step, each example alone through the plain network, in float64."""
    made, section = copy.deepcopy(load(lesson.start).network).double(), lesson.section
    total, kl_sum, count = torch.zeros((), dtype=torch.float64), 0.0, 0
    for example in (lesson.examples[i] for i in numbers):
        ids, mask = torch.from_numpy(example.token_ids), torch.from_numpy(example.loss_mask)
        logits = made(input_ids=ids[None], use_cache=False).logits[0, :-1][mask[1:]]
        count += len(logits)
        text = -logits.log_softmax(-1).gather(-1, ids[mask][:, None]).sum()
        if lesson.role == "control":
            total = total + text
            continue
        targets = example.targets
        assert isinstance(targets, Targets)
        log_q = (logits / section.temperature).log_softmax(-1)
        kept = log_q.gather(-1, torch.from_numpy(targets.top_ids))
        tail = 1 - kept.exp().sum(-1)
        log_p = torch.from_numpy(targets.logprobs).double()
        p_tail = torch.from_numpy(targets.tail).double()
        kl = (log_p.exp() * (log_p - kept)).sum() + (p_tail * (p_tail / tail).log()).sum()
        kl_sum += kl.item()
        total = total + kl * section.temperature**2 + section.text_weight * text
    (total / count).backward()
    grads = {k: p.grad for k, p in made.named_parameters() if p.grad is not None}
    return (total / count).item(), kl_sum / count, grads


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor], loose: float) -> None:
    assert ours.keys() == theirs.keys()
    size = max(g.abs().max().item() for g in theirs.values())
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key].double(), gradient.double(), rtol=0, atol=loose * size)


def stop_after(step: int, how: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Let `how` strike in the middle of training, when so many steps are learnt."""
    learn = Learner.learn

    def struck(self: Learner, *rest: Any) -> dict[str, Any]:
        row = learn(self, *rest)
        if row["step"] == step:
            how()
        return row

    patch.setattr(Learner, "learn", struck)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def crash() -> None:
    raise RuntimeError("crash")
