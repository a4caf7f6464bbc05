"""One student somewhere in its lesson: forward, backward, step, and what is measured on the way."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from limbeck.errors import InputError, ServiceError
from limbeck.files import whole_folder
from limbeck.models.head import Head
from limbeck.models.local import LocalModel, compute_dtype, device, load_network
from limbeck.models.tokenizer import ChatTokenizer
from limbeck.progress import Meter
from limbeck.recipe import Divergence, TrainSection
from limbeck.records import Example, identity
from limbeck.train import checkpoint
from limbeck.train.batch import Batch, check_packing, pack, steps
from limbeck.train.fused import Fused, fused_loss
from limbeck.train.masters import Masters
from limbeck.train.oracle import Rule
from limbeck.train.selfcheck import check, lever, with_teacher
from limbeck.train.teacher import Live, Sparse, TargetError

Learns: TypeAlias = Literal["student", "control"]
HELD_OUT_EXAMPLES = 12
HELD_OUT_TIMES = 6


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one student learns from, and by which rules.

    The `student` learns the teacher's distribution by `section.divergence`, from the examples'
    targets or from a `teacher` at hand; the `control` learns the same text by cross-entropy alone.
    """

    role: Learns
    start: Path
    examples: Sequence[Example]
    held_out: Sequence[Example]
    section: TrainSection
    seed: int
    steps: int
    teacher: LocalModel | None = None

    @property
    def plan(self) -> str:
        """The hash of what decides the course of training, kept with each checkpoint."""
        settings = self.section.model_dump(exclude={"checkpoint_seconds", "minutes", "epochs"})
        ids = [e.answer_id for e in self.examples]
        return identity("plan", self.role, self.steps, self.seed, settings, ids)


class Learner:
    """A network with its masters, somewhere in its lesson."""

    def __init__(self, lesson: Lesson) -> None:
        self.lesson, self.section = lesson, lesson.section
        dtype = compute_dtype(self.section.precision)
        self.network: Any = load_network(lesson.start, torch.float32)
        check_packing(self.network.base_model, lesson.examples)
        self.network.train()
        self.network.config.use_cache = False
        self.masters = Masters(self.network, self.section, dtype)
        tokenizer = ChatTokenizer(lesson.start)
        self.head = Head(self.network, len(tokenizer.inner))
        self.tokenizer = tokenizer
        self.progress = checkpoint.Progress(lesson.plan)
        self._lengths = [len(e.token_ids) for e in lesson.examples]

    def steps(self) -> Iterator[list[list[int]]]:
        """The optimizer steps still to take, each a list of micro-batches of example numbers."""
        section = self.section
        order = steps(self._lengths, section.batch_tokens, section.micro_tokens, self.lesson.seed)
        return itertools.islice(order, self.progress.step, self.lesson.steps)

    def learn(self, step: Sequence[Sequence[int]], meter: Meter) -> dict[str, Any]:
        """One optimizer step; what `metrics.jsonl` records of it."""
        began = time.monotonic()
        loss, kl, learnt = self._gather([[self.lesson.examples[i] for i in m] for m in step])
        if not math.isfinite(loss):
            raise ServiceError(
                f"The loss is {loss} at step {self.progress.step + 1}: training diverged. "
                "Lower train.learning_rate and run again in a new folder."
            )
        rate = learning_rate(self.section, self.progress.step, self.lesson.steps)
        norm = self.masters.step(rate)
        seconds = time.monotonic() - began
        read = sum(len(self.lesson.examples[i].token_ids) for micro in step for i in micro)
        done = self.progress
        done.step, done.tokens = done.step + 1, done.tokens + read
        done.target_tokens, done.seconds = done.target_tokens + learnt, done.seconds + seconds
        distilled = self.lesson.role == "student"
        meter.advance(1, read, f"loss {loss:.3f}" + (f"  KL {kl:.3f}" if distilled else ""))
        return {
            "step": done.step,
            "steps": self.lesson.steps,
            "loss": loss,
            "kl": kl if distilled else None,
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": done.tokens,
            "target_tokens": done.target_tokens,
            "tokens_per_s": round(read / seconds, 1),
            "seconds": round(done.seconds, 3),
            **self._who(),
        }

    def self_check(self) -> float:
        """Hold this learner's loss and gradient to the float64 oracle on its first micro-batch.

        Returns the largest relative difference; GateError names what is wrong. Nothing is changed.
        """
        section = self.section
        first = [self.lesson.examples[i] for i in next(self.steps())[0]]
        if self.lesson.teacher is not None:
            first = with_teacher(first, self.lesson.teacher, section.temperature)

        def step(micros: Sequence[Sequence[Example]]) -> tuple[float, Tensor]:
            loss = self._gather(micros)[0]
            return loss, self.masters.take_gradient(lever(self.network))

        kind = section.divergence if self.lesson.role == "student" else None
        rule = Rule(kind, section.beta, section.skew, section.temperature, section.text_weight)
        return check(self.network, first, step, rule, self.head.vocabulary)

    def _gather(self, step: Sequence[Sequence[Example]]) -> tuple[float, float, int]:
        """Forward and backward of a step: mean loss and KL in nats, and the learnt tokens.

        The gradients wait in the masters.
        """
        batches = [pack(micro, self.section.row_tokens).to(device()) for micro in step]
        learnt = sum(len(b.labels) for b in batches)
        kind = None if self.lesson.role == "control" else self.section.divergence
        loss, kl = 0.0, 0.0
        for micro, batch in zip(step, batches, strict=True):
            with self._answer_named(micro, batch):
                found = self._fused(batch, kind, learnt)
            found.total.backward()
            self.masters.gather()
            loss += found.values.sum().item() / learnt
            kl += found.kls.sum().item() / learnt
        return loss, kl, learnt

    def _fused(self, batch: Batch, kind: Divergence | None, normaliser: int) -> Fused:
        """The loss of a packed batch, over `normaliser`; `kind` None learns the text alone."""
        section = self.section
        return fused_loss(
            _states(self.head, batch),
            self.head,
            self._targets(batch) if kind else None,
            kind,
            beta=section.beta,
            skew=section.skew,
            temperature=section.temperature,
            labels=batch.labels,
            text_weight=section.text_weight if kind else 0.0,
            normaliser=normaliser,
        )

    def _targets(self, batch: Batch) -> Sparse | Live:
        if self.lesson.teacher is not None:
            with torch.inference_mode():
                states = _states(self.lesson.teacher.head, batch)
            return Live(states, self.lesson.teacher.head)
        if batch.top_ids is None or batch.logprobs is None or batch.tail is None:
            raise InputError("The examples carry no targets; only the text can be learnt from them")
        return Sparse(batch.top_ids, batch.logprobs, batch.tail, batch.tail_ids, batch.tail_entropy)

    @contextmanager
    def _answer_named(self, examples: Sequence[Example], batch: Batch) -> Iterator[None]:
        """Say whose token it is that the teacher's distribution is wrong for."""
        try:
            yield
        except TargetError as error:
            answer = examples[int(batch.owners[error.row])].answer_id
            raise ServiceError(f"Answer {answer}: {error}") from None

    def held_out_kl(self) -> dict[str, Any] | None:
        """Mean forward KL on a few held-out answers, six times on the way; None in between."""
        step, last = self.progress.step, self.lesson.steps
        every = max(1, last // HELD_OUT_TIMES)
        if not self.lesson.held_out or (step % every and step != last):
            return None
        examples = self.lesson.held_out[:HELD_OUT_EXAMPLES]
        with torch.inference_mode():
            batch = pack(examples, self.section.row_tokens).to(device())
            kls = self._fused(batch, "forward_kl", 1).kls
        return {"step": step, "held_out_kl": kls.mean().item(), **self._who()}

    def export(self, path: Path, dtype: torch.dtype) -> None:
        """Write the masters, rounded to `dtype`, as a model folder with tokenizer and template."""
        tensors = self.masters.state()
        for name, parameter in self.network.named_parameters():
            parameter.data = tensors[f"master.{name}"].to(dtype)
        self.network.to(dtype)
        self.network.config.use_cache = True
        with whole_folder(path) as part:
            self.network.save_pretrained(part)
            self.tokenizer.inner.save_pretrained(part)

    def _who(self) -> dict[str, str]:
        return {"stage": "train", "role": self.lesson.role}


def _states(head: Head, batch: Batch) -> Tensor:
    """The states (N, hidden) of a model's body that predict the batch's learnt tokens."""
    out = head.body(
        input_ids=batch.token_ids,
        attention_mask=batch.visible,
        position_ids=batch.positions,
        use_cache=False,
    )
    return out.last_hidden_state.flatten(0, 1).index_select(0, batch.predicts)


def learning_rate(section: TrainSection, step: int, total: int) -> float:
    """The rate of step `step` (from 0) of `total`: a linear rise, then a straight line to 0."""
    rise = max(1, round(section.warmup * total))
    if step < rise:
        return section.learning_rate * (step + 1) / rise
    return section.learning_rate * (total - step) / max(1, total - rise)
