"""Two local models on the same answers, token by token, over the whole vocabulary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import InputError
from limbeck.models.local import LocalModel
from limbeck.models.outcomes import log_outcomes
from limbeck.models.protocol import HEAD_ROWS, QUIET, Asked
from limbeck.records import Prompt, Sampling

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Likeness:
    """How close a student is to its teacher on each of n answers: means over the tokens, (n,).

    `kl`: KL(teacher‖student) in nats a token. `agreement`: share of tokens at which both have the
    same likeliest token. `acceptance`: 1 − total variation, the rate at which the teacher would
    accept the student's draft tokens (Leviathan et al., arXiv 2211.17192, theorem 3.5).
    """

    kl: Floats
    agreement: Floats
    acceptance: Floats


@torch.inference_mode()
def likeness(
    teacher: LocalModel,
    students: Sequence[LocalModel],
    asked: Sequence[Asked],
    on_tokens: Callable[[int], None] = QUIET,
) -> list[Likeness]:
    """Each student against the teacher on these answers, dense: no top-k, float32 logits."""
    for student in students:
        if student.tokenizer.hash != teacher.tokenizer.hash:
            raise InputError(f"{student.name} has another tokenizer than {teacher.name}")
    sums = np.zeros((len(students), 3, len(asked)))
    lengths = np.array([len(a.token_ids) for _, a in asked])
    streams = [model.answer_states(asked) for model in (teacher, *students)]
    start = 0
    for (batch, expected), *others in zip(*streams, strict=True):
        stop = start + len(batch)
        owners = torch.repeat_interleave(
            torch.arange(len(batch)), torch.tensor(lengths[start:stop])
        )
        for rows in torch.arange(len(owners)).split(HEAD_ROWS):
            log_p = teacher.log_probabilities(expected[rows])
            for number, (student, (_, states)) in enumerate(zip(students, others, strict=True)):
                found = _three(log_p, student.log_probabilities(states[rows])).cpu()
                summed = torch.zeros(3, len(batch), dtype=torch.float64)
                summed.index_add_(1, owners[rows], found.double())
                sums[number, :, start:stop] += summed.numpy()
        on_tokens(len(owners))
        start = stop
    return [Likeness(*(one / lengths)) for one in sums]


def _three(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL, top-1 agreement and 1 − TVD for each of N rows, (3, N)."""
    p, q = log_p.exp(), log_q.exp()
    kl = (p * (log_p - log_q)).sum(-1)
    agreement = (log_p.argmax(-1) == log_q.argmax(-1)).to(kl.dtype)
    acceptance = torch.minimum(p, q).sum(-1)
    return torch.stack([kl, agreement, acceptance])


@torch.inference_mode()
def likelihood(model: LocalModel, asked: Sequence[Asked]) -> Floats:
    """The mean log-probability in nats a token that the model gives each of n answers, (n,)."""
    means: list[float] = []
    for batch, states in model.answer_states(asked):
        labels = torch.tensor([t for _, a in batch for t in a.token_ids], device=states.device)
        logprobs = torch.cat(
            [
                model.log_probabilities(rows).gather(-1, wanted[:, None])[:, 0]
                for rows, wanted in zip(
                    states.split(HEAD_ROWS), labels.split(HEAD_ROWS), strict=True
                )
            ]
        )
        parts = logprobs.double().cpu().split([len(a.token_ids) for _, a in batch])
        means += [part.mean().item() for part in parts]
    return np.array(means)


@torch.inference_mode()
def divergence_from(
    told: Callable[[Sequence[Asked]], Mapping[str, NDArray[Any]]],
    model: LocalModel,
    asked: Sequence[Asked],
) -> Floats:
    """The mean forward KL in nats a token from stored targets to the model, (n,).

    `told` gives the arrays of `Targets` for some answers, end to end. It is over the tokens kept
    and one outcome for all others: a lower bound of the KL over the vocabulary.
    """
    means: list[float] = []
    for batch, states in model.answer_states(asked):
        rows = told(batch)
        columns = [torch.from_numpy(rows[name]) for name in ("top_ids", "logprobs", "tail")]
        parts = (c.to(states.device).split(HEAD_ROWS) for c in columns)
        found = [
            _kl_from(model.head(some), *targets)
            for some, *targets in zip(states.split(HEAD_ROWS), *parts, strict=True)
        ]
        each = torch.cat(found).cpu().split([len(a.token_ids) for _, a in batch])
        means += [part.mean().item() for part in each]
    return np.array(means)


def _kl_from(logits: Tensor, top_ids: Tensor, logprobs: Tensor, tail: Tensor) -> Tensor:
    log_q = log_outcomes(logits.float(), top_ids, 1.0).double()
    p = torch.cat([logprobs.double().exp(), tail.double()[:, None]], -1)
    return (torch.xlogy(p, p) - p * log_q).sum(-1)


@dataclass(frozen=True, slots=True, eq=False)
class Speeds:
    """Rates of the models in turn on the same n timed batches, (models, n) each."""

    tokens_per_s: Floats
    answers_per_s: Floats


def race(
    models: Sequence[LocalModel],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    batch_size: int,
    on_batch: Callable[[], None] = lambda: None,
) -> Speeds:
    """Time the models on the same batches of prompts, taking turns, so that drift hits all alike.

    One short batch a model comes first and does not count.
    """
    for model in models:
        _timed(model, prompts[:2], sampling)
    batches = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
    rates = np.zeros((2, len(models), len(batches)))
    for column, batch in enumerate(batches):
        order = range(len(models)) if column % 2 == 0 else reversed(range(len(models)))
        for row in order:
            rates[:, row, column] = _timed(models[row], batch, sampling)
        on_batch()
    return Speeds(rates[0], rates[1])


def _timed(model: LocalModel, prompts: Sequence[Prompt], sampling: Sampling) -> tuple[float, float]:
    began = time.perf_counter()
    answers = [a for batch in model.generate(prompts, sampling) for a in batch]
    seconds = time.perf_counter() - began
    return sum(a.usage.tokens_out for a in answers) / seconds, len(answers) / seconds
