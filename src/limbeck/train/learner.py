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

from limbeck import ranks
from limbeck.errors import ServiceError, first_line
from limbeck.files import whole_folder
from limbeck.models.head import Head
from limbeck.models.local import LocalModel, compute_dtype, device, load_network
from limbeck.models.tokenizer import ChatTokenizer
from limbeck.progress import Meter, say
from limbeck.recipe import RUNS_ALIKE, Divergence, TrainSection
from limbeck.records import Example, identity
from limbeck.train import checkpoint
from limbeck.train.batch import Batch, check_packing, cut, pack, steps
from limbeck.train.compiling import compile_layers
from limbeck.train.lora import add_adapters, merge_adapters
from limbeck.train.masters import Masters, round_parameters
from limbeck.train.objective import Objective, shard
from limbeck.train.oracle import Rule
from limbeck.train.selfcheck import check, lever, with_teacher
from limbeck.train.teacher import TargetError

Learns: TypeAlias = Literal["student", "control"]
Micro: TypeAlias = Sequence[Example]
CPU = torch.device("cpu")
HELD_OUT_EXAMPLES = 12
HELD_OUT_TIMES = 6


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one student learns from, and by which rules.

    The `student` learns the teacher's distribution by `section.divergence`, from the examples'
    targets or from a `teacher` at hand; the `control` learns the same text by cross-entropy alone,
    and so does a student of `text_alone`.
    """

    role: Learns
    start: Path
    examples: Sequence[Example]
    held_out: Sequence[Example]
    section: TrainSection
    seed: int
    steps: int
    teacher: LocalModel | None = None
    text_alone: bool = False

    @property
    def kind(self) -> Divergence | None:
        """The divergence that is learnt by; None is cross-entropy on the text alone."""
        return None if self.role == "control" or self.text_alone else self.section.divergence

    @property
    def plan(self) -> str:
        """The hash of what decides the course of training, kept with each checkpoint."""
        settings = self.section.model_dump(exclude={*RUNS_ALIKE, "minutes", "epochs"})
        ids = [e.answer_id for e in self.examples]
        return identity("plan", self.role, self.steps, self.seed, settings, ids)


class Learner:
    """A network with its masters, somewhere in its lesson; on one rank, or shared by several."""

    def __init__(self, lesson: Lesson) -> None:
        self.lesson, self.section = lesson, lesson.section
        self.tokenizer = ChatTokenizer(lesson.start)
        self.progress = checkpoint.Progress(lesson.plan)
        self._lengths = [len(e.token_ids) for e in lesson.examples]
        dtype = compute_dtype(self.section.precision)
        shared = ranks.world() > 1  # then no device holds all of it
        self.network: Any = load_network(lesson.start, torch.float32, CPU if shared else device())
        check_packing(self.network.base_model, lesson.examples)
        head = Head(self.network, len(self.tokenizer.inner))
        if self.section.lora_rank:
            add_adapters(self.network, self.section.lora_rank)
        self.network.train()
        self.network.config.use_cache = False
        if self.section.checkpoint_activations:
            self.network.activation_checkpointing_enable({"use_reentrant": False})
        if self.section.compile:
            first = [lesson.examples[i] for i in next(self.steps())[0]]
            compile_layers(self.network.base_model, self._batch(first), dtype)
        teacher = lesson.teacher.head if lesson.teacher else None
        self.objective: Any = Objective(self.network, head, self.section, teacher)
        if shared:
            shard(self.objective, dtype)
        self.masters = Masters(self.network, self.section, dtype)

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
        distilled = self.lesson.kind is not None
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
        network = self.network
        if ranks.world() > 1:  # a sharded network cannot be asked alone
            network = self._gathered()[0]
            round_parameters(network, compute_dtype(section.precision))

        def step(micros: Sequence[Micro]) -> tuple[float, Tensor]:
            loss = self._gather(micros)[0]
            return loss, self.masters.take_gradient(lever(network))

        rule = Rule(
            self.lesson.kind, section.beta, section.skew, section.temperature, section.text_weight
        )
        self.network.eval()
        try:
            return check(network, first, step, rule, self.objective.head.vocabulary)
        finally:
            self.network.train()

    def held_out_kl(self) -> dict[str, Any] | None:
        """Mean forward KL on a few held-out answers, six times on the way; None in between.

        Where there is only the text, its cross-entropy.
        """
        step, last = self.progress.step, self.lesson.steps
        every = max(1, last // HELD_OUT_TIMES)
        if not self.lesson.held_out or (step % every and step != last):
            return None
        with torch.no_grad():
            kind = None if self.lesson.text_alone else "forward_kl"
            found = [
                self.objective(self._batch(some), kind, 1)
                for some in self._cut(self.lesson.held_out[:HELD_OUT_EXAMPLES])
            ]
        if ranks.world() > 1:
            self.objective.reshard()  # a forward pass without a backward leaves it whole
        if self.lesson.text_alone:
            values = torch.cat([one.values for one in found])
            return {"step": step, "held_out_loss": values.mean().item(), **self._who()}
        kls = torch.cat([one.kls for one in found])
        return {"step": step, "held_out_kl": kls.mean().item(), **self._who()}

    def export(self, path: Path, dtype: torch.dtype) -> None:
        """Write the masters, rounded to `dtype`, as a model folder with tokenizer and template.

        All ranks call it, and rank 0 writes.
        """
        network, adapted = self._gathered()
        if ranks.rank() > 0:
            return
        if adapted is not None:
            network = merge_adapters(adapted)
        network.to(dtype)
        with whole_folder(path) as part:
            network.save_pretrained(part)
            self.tokenizer.inner.save_pretrained(part)

    def _gathered(self) -> tuple[Any, Any]:
        """A network of its own that holds the masters of all ranks, and its adapters or None."""
        network = load_network(self.lesson.start, torch.float32, CPU)
        lora = self.section.lora_rank
        adapted = add_adapters(network, lora) if lora else None
        parameters = dict(network.named_parameters())
        for name, master in self.masters.whole():
            parameters[name].data.copy_(master)
        return network, adapted

    def _gather(self, step: Sequence[Micro]) -> tuple[float, float, int]:
        """Forward and backward of a step: mean loss and KL in nats, and the learnt tokens.

        The gradients wait in the masters. Where memory runs out, a forward pass takes half the
        tokens from then on; ServiceError where it runs out again.
        """
        learnt = sum(int(e.loss_mask[1:].sum()) for micro in step for e in micro)
        try:
            return *self._passes(step, learnt), learnt
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            reason = first_line(error)
        # Only here, with the traceback gone, are the tensors of the failed pass free.
        self._halve(reason)
        return self._gather(step)

    def _passes(self, step: Sequence[Micro], learnt: int) -> tuple[float, float]:
        kind = self.lesson.kind
        loss, kl = 0.0, 0.0
        for micro, counts in self._dealt(step):
            batch = self._batch(micro)
            with self._answer_named(micro, batch):
                found = self.objective(batch, kind, learnt)
            (found.total if counts else found.total * 0).backward()
            self.masters.gather()
            if counts:
                loss += found.values.sum().item() / learnt
                kl += found.kls.sum().item() / learnt
        loss, kl = ranks.total([loss, kl])
        return loss, kl

    def _dealt(self, step: Sequence[Micro]) -> Iterator[tuple[Micro, bool]]:
        """This rank's micro-batches, and whether they count: all ranks make as many passes.

        A rank that has none left takes the shortest example along, at weight 0.
        """
        whole = [part for micro in step for part in self._cut(micro)]
        spare = [min((e for micro in step for e in micro), key=lambda e: len(e.token_ids))]
        for start in range(0, len(whole), ranks.world()):
            mine = whole[start : start + ranks.world()][ranks.rank() :]
            yield (mine[0], True) if mine else (spare, False)

    def _cut(self, examples: Micro) -> Iterator[Micro]:
        """The examples in runs that a forward pass takes."""
        lengths = [len(e.token_ids) for e in examples]
        for run in cut(range(len(examples)), lengths, self._budget):
            yield [examples[i] for i in run]

    @property
    def _budget(self) -> int:
        """Tokens a forward pass takes."""
        usual = self.section.micro_tokens
        return min(self.progress.micro_tokens or usual, usual)

    def _halve(self, reason: str) -> None:
        """Take half the tokens a pass from now on; ServiceError where that was done before."""
        step, before = self.progress.step + 1, self.section.micro_tokens
        if ranks.world() > 1 or self._budget < before or before == 1:
            raise ServiceError(
                f"Out of memory in step {step} ({reason}). Lower train.micro_tokens (now "
                f"{self._budget}) or train.row_tokens, or set train.checkpoint_activations = true, "
                "and run the same command: it goes on from the last checkpoint."
            )
        self.masters.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.progress.micro_tokens = before // 2
        say(f"{'train':>9}  out of memory in step {step}: going on with train.micro_tokens = "
            f"{self._budget} instead of {before}")  # fmt: skip

    def _batch(self, examples: Micro) -> Batch:
        return pack(examples, self.section.row_tokens).to(device())

    @contextmanager
    def _answer_named(self, examples: Micro, batch: Batch) -> Iterator[None]:
        """Say whose token it is that the teacher's distribution is wrong for."""
        try:
            yield
        except TargetError as error:
            answer = examples[int(batch.owners[error.row])].answer_id
            raise ServiceError(f"Answer {answer}: {error}") from None

    def _who(self) -> dict[str, str]:
        return {"stage": "train", "role": self.lesson.role}


def learning_rate(section: TrainSection, step: int, total: int) -> float:
    """The rate of step `step` (from 0) of `total`: a linear rise, then a straight line to 0."""
    rise = max(1, round(section.warmup * total))
    if step < rise:
        return section.learning_rate * (step + 1) / rise
    return section.learning_rate * (total - step) / max(1, total - rise)


def _out_of_memory(error: BaseException) -> bool:
    """Whether the processor's or the GPU's memory ran out."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "DefaultCPUAllocator" in str(error)
