"""Memory and disk that each stage needs, by sizes alone: no weight is read, nothing is measured.

Symbols: P parameters, L layers, H hidden and I inner width, V vocabulary, K kept a token, and b the
bytes of a number in products (4 in float32, 2 in bfloat16). Every formula is the sum of what is
alive at once at the stage's peak; what is far below a hundredth of it is left out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import ceil

from limbeck.collect.packing import stored_bytes
from limbeck.models.protocol import HEAD_ROWS, LOGITS, SCORE_TOKENS
from limbeck.models.shape import Shape
from limbeck.preflight.work import Work
from limbeck.recipe import Recipe
from limbeck.run import Stage

BASE = 400 * 10**6  # the interpreter with torch and transformers
HOLES = 2  # memory that many blocks come to over their sizes: freed ones are kept, not all reused
ANSWER_ROW, ANSWER_TOKEN = 350, 9  # bytes of an answer in the store, and of each of its tokens


@dataclass(frozen=True, slots=True)
class Job:
    """A recipe with all that memory and disk depend on.

    `itemsize` is b, `calibration` how many answers layers are chosen by, `unpacked` whether the
    teacher has yet to be turned into ordinary weights, `download` the bytes to fetch before.
    """

    recipe: Recipe
    teacher: Shape
    student: Shape
    work: Work
    itemsize: int
    calibration: int
    unpacked: bool = False
    download: int = 0

    @property
    def live(self) -> bool:
        """Whether the teacher runs beside the student."""
        return self.recipe.train.teacher == "live"

    @property
    def scored_tokens(self) -> float:
        """Tokens of all kept answers."""
        return (self.work.examples + self.work.kept_back) * self.work.kept_tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return self.work.longest_prompt + self.recipe.teacher.sampling(0).max_tokens

    @property
    def micro_tokens(self) -> int:
        """Tokens of a micro-batch: as many as the recipe allows and there are."""
        section = self.recipe.train
        there = round(self.work.examples * self.work.example_tokens)
        return max(min(section.micro_tokens, section.batch_tokens, there), min(self.longest, there))

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an optimizer step."""
        return ceil(self.recipe.train.batch_tokens / max(1, self.micro_tokens))


def memory(job: Job, due: Collection[Stage]) -> dict[Stage, int]:
    """The peak of resident memory in bytes of the stages that are due, in one process.

    After training its memory is kept, and only holds the students' weights again.
    """
    teacher, student = (s.parameters * job.itemsize for s in (job.teacher, job.student))
    unpacking = 4 * job.teacher.parameters * 2 if job.unpacked else 0
    training = _training(job)
    trained = training if {"train", "control"} & set(due) else 2 * student
    needs: dict[Stage, int] = {
        "collect": max(teacher + _generating(job, job.recipe.teacher.batch_size), unpacking),
        "targets": teacher + _scoring(job, copies=3),
        "student": _starting(job, teacher),
        "train": training,
        "control": training,
        "validate": teacher + trained + _scoring(job, copies=6),
    }
    if job.live:
        del needs["targets"]
    return {stage: BASE + need for stage, need in needs.items() if stage in due}


def _generating(job: Job, batch_size: int) -> int:
    """A batch's cache at its longest, a layer's work on all its prompts, and its logits.

    rows·longest·L·2·kv heads·head width·b; rows·longest prompt·(8·H + 4·I)·b; and rows·V·(b + 3·4)
    for logits and what sampling makes of them in float32.
    """
    shape, rows = job.teacher, min(batch_size, job.work.prompts)
    block = rows * job.longest * shape.kv_heads * shape.head_dim * job.itemsize
    prefill = rows * job.work.longest_prompt * job.itemsize
    logits = rows * shape.vocabulary * (job.itemsize + 12)
    return HOLES * 2 * shape.layers * block + _in_layer(shape, prefill) + logits


def _scoring(job: Job, copies: int) -> int:
    """One batch of SCORE_TOKENS through a layer, and `copies` float32 tensors of HEAD_ROWS·V."""
    tokens = min(SCORE_TOKENS, round(job.work.prompts * job.work.example_tokens))
    logits = min(HEAD_ROWS, tokens) * job.teacher.vocabulary * (4 * copies + job.itemsize)
    return _in_layer(job.teacher, tokens * job.itemsize) + logits


def _in_layer(shape: Shape, size: int) -> int:
    """What a layer takes without gradients: 8·H + 4·I numbers a token, and HOLES."""
    return HOLES * size * (8 * shape.hidden + 4 * shape.inner)


def _starting(job: Job, teacher: int) -> int:
    """The teacher beside the float32 network that becomes the student's start.

    Layers are chosen before: N·V float32 logits of `calibration` answers, four times. What scoring
    took of the heap is still taken.
    """
    tokens = min(SCORE_TOKENS, round(job.work.prompts * job.work.example_tokens))
    before = teacher + _in_layer(job.teacher, tokens * job.itemsize)
    if job.recipe.student.base != "teacher":
        return before + 4 * job.student.parameters
    learnt = job.calibration * job.work.kept_tokens
    choosing = round(learnt * job.teacher.vocabulary * 16)
    return before + max(choosing, 4 * job.teacher.parameters)


def _training(job: Job) -> int:
    """Weights, gradients, moments, activations and logits of one micro-batch, and all targets.

    With A learnt parameters, all P or those of adapters, 12·A are gradients and moments in float32,
    and P·b weights; in bfloat16 another 4·A are masters. A live teacher stays beside, and has its
    own logits and no targets.
    """
    learnt, wide = learnt_parameters(job), 12 if job.itemsize == 4 else 16
    states = wide * learnt + job.itemsize * job.student.parameters
    tokens = job.micro_tokens * job.work.kept_tokens / max(1.0, job.work.example_tokens)
    logits = logits_bytes(tokens, job.student, job.itemsize)
    size = states + _kept(job) + logits
    if job.live:
        layer = _in_layer(job.teacher, job.micro_tokens * job.itemsize)
        return size + job.teacher.parameters * job.itemsize + layer + logits
    return size + round(job.scored_tokens * _bytes_a_token(job))


def learnt_parameters(job: Job) -> int:
    """P, or those of low-rank adapters beside every matrix of the layers: rank·(rows + columns)."""
    shape, rank = job.student, job.recipe.train.lora_rank
    if rank is None:
        return shape.parameters
    heads = (shape.heads + shape.kv_heads) * shape.head_dim
    return shape.layers * rank * (7 * shape.hidden + 3 * shape.inner + 2 * heads)


def _kept(job: Job) -> int:
    """What activations take of the heap.

    A quarter more than there are, and HOLES where gradients of one micro-batch settle between the
    activations of the next (seen with 113M parameters).
    """
    return round(activations(job) * (1.25 if job.micro_batches == 1 else HOLES))


def activations(job: Job) -> int:
    """What one micro-batch keeps for the backward pass.

    Per position and layer (4 + b)·(what is normed) + (3·H + 3·heads·head width + 4·I)·b, and b a
    position of a row for the mask; counted from what autograd saves of the layers of Llama, Qwen
    and Gemma. Rows are filled to `row_tokens`, or to the longest example. Checkpointed layers keep
    what enters them, H·b, and one layer at a time is worked on.
    """
    shape, section, b = job.student, job.recipe.train, job.itemsize
    width = min(max(section.row_tokens, job.longest), job.micro_tokens)
    positions = ceil(job.micro_tokens / width) * width
    attended = shape.heads * shape.head_dim
    plain = (3 * shape.hidden + 3 * attended + 4 * shape.inner + width) * b
    a_layer = positions * ((4 + b) * shape.normed + plain)
    if section.checkpoint_activations:
        return shape.layers * positions * shape.hidden * b + a_layer
    return shape.layers * a_layer


def logits_bytes(learnt: float, shape: Shape, itemsize: int) -> int:
    """The one buffer of logits that the fused loss of `learnt` tokens goes through."""
    return min(LOGITS, round(learnt * shape.vocabulary * itemsize))


def _bytes_a_token(job: Job) -> int:
    section = job.recipe.train
    return stored_bytes(section.top_k, section.tail_samples, job.teacher.vocabulary)


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes that a stage adds: at its `peak`, and what is `left` of them afterwards."""

    peak: int
    left: int


def disk(job: Job) -> dict[Stage, Disk]:
    """What each stage adds to the run folder.

    A checkpoint is masters and two moments, 12·A; the next is written before it goes. Downloaded
    weights and unpacked ones, 4·P of the teacher, go into their caches.
    """
    work, p = job.work, job.student.parameters
    final = p * (2 if job.recipe.export.dtype == "bfloat16" else 4)
    state = 12 * learnt_parameters(job)
    fetched = job.download + (4 * job.teacher.parameters if job.unpacked else 0)
    answers = round(work.due * (ANSWER_ROW + ANSWER_TOKEN * work.answer_tokens)) + fetched
    targets = 0 if job.live else round(job.scored_tokens * _bytes_a_token(job))
    return {
        "collect": Disk(answers, answers),
        "targets": Disk(targets, targets),
        "student": Disk(4 * p, 4 * p),
        "train": Disk(max(2 * state, state + final), final),
        "control": Disk(max(2 * state, state + final), final),
        "export": Disk(final, final),
    }
