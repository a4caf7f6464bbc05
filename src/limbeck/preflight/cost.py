"""Seconds that each stage takes, from what was measured of this machine.

Every stage is a sum of measured costs (`probe.Cost`) times how often they come; how often follows
from the recipe and from numbers of rows and tokens (`work`). What is too small to be measured, or
comes too seldom, has a constant here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from math import ceil, log

from limbeck.models.protocol import SCORE_TOKENS
from limbeck.models.shape import Shape
from limbeck.preflight.memory import Job, learnt_parameters
from limbeck.preflight.probe import Rates
from limbeck.preflight.work import Work
from limbeck.run import Stage
from limbeck.train.batch import steps, steps_per_epoch
from limbeck.train.learner import HELD_OUT_EXAMPLES, HELD_OUT_TIMES
from limbeck.train.selfcheck import EXAMPLES
from limbeck.train.student import SHORTLIST
from limbeck.validate.measure import RACE_BATCHES, RACE_PROMPTS, RACE_TOKENS

ORDER: tuple[Stage, ...] = ("collect", "targets", "student", "train", "control", "validate")
RESAMPLED = 3e-8  # seconds a prompt, resample and metric of the bootstrap
METRICS = 7
HEADERS, DEQUANTISED = 4, 8e-8  # readings of a GGUF to unpack it, and seconds a parameter beside
REPORT = 1.5


@dataclass(frozen=True, slots=True)
class Machine:
    """What was measured: for the teacher's shape, for the student's, and of the disk.

    `imports` are the seconds until torch and transformers are there, `header` those that the
    teacher's takes to read.
    """

    teacher: Rates
    student: Rates
    disk: float
    imports: float
    header: float


def seconds(job: Job, machine: Machine, due: Collection[Stage]) -> dict[Stage, float]:
    """Seconds of each stage, as if nothing of it were there.

    To the first of those that are `due` comes what comes once: imports, and the teacher where it is
    met first. A GGUF that is unpacked is read again and again, turned to float32 and written.
    """
    times: dict[Stage, float] = {
        "collect": _collecting(job, machine.teacher),
        "targets": _scoring(job, machine.teacher),
        "student": _starting(job, machine),
        "train": _training(job, machine),
        "control": _training(job, machine, taught=False),
        "validate": _validating(job, machine),
        "export": 2 * job.student.parameters * 2 / machine.disk,
        "report": REPORT,
    }
    first: Stage = next(stage for stage in ORDER if stage in due)
    times[first] += machine.imports
    if first in ORDER[:3]:
        times[first] += _load(job.teacher, machine.teacher)
        if job.unpacked:
            a_parameter = DEQUANTISED + 8 / machine.disk
            times[first] += HEADERS * machine.header + job.teacher.parameters * a_parameter
    return times


def _load(shape: Shape, rates: Rates) -> float:
    return rates.load(shape.layers, 1)


def _answering(shape: Shape, rates: Rates, job: Job, prompts: int, batch: int, most: int) -> float:
    """Batches of prompts: each is read, then written until its longest answer has ended.

    Of answers with a mean of m tokens, exponentially spread, the longest of n is about
    m·(1 + ln n), at most `most`. A step costs a fixed part and one for every live row, and the live
    rows of all steps are the tokens that are written.
    """
    total, own = 0.0, job.work.prompt_tokens - job.work.shared
    for start in range(0, prompts, batch):
        rows = min(batch, prompts - start)
        written = min(job.work.answer_tokens, most)
        longest = min(most, written * (1 + log(rows)))
        total += rates.prefill(shape.layers, rows * own)
        total += longest * rates.decode(shape.layers, rows * written / longest)
    return total


def _collecting(job: Job, rates: Rates) -> float:
    section = job.recipe.teacher
    most = section.sampling(0).max_tokens
    return _answering(job.teacher, rates, job, job.work.due, section.batch_size, most)


def _scored(shape: Shape, rates: Rates, work: Work, answers: int) -> float:
    """Answers scored in batches of SCORE_TOKENS tokens, prompts padded."""
    a_batch = max(1, int(SCORE_TOKENS / (work.padded_prompt + work.kept_tokens)))
    batches = ceil(answers / a_batch)
    return batches * rates.score(shape.layers, answers / batches) if batches else 0.0


def _scoring(job: Job, rates: Rates) -> float:
    return _scored(job.teacher, rates, job.work, job.work.examples + job.work.kept_back)


def _starting(job: Job, machine: Machine) -> float:
    """Layers dropped one at a time, each by 1 + SHORTLIST passes over the calibration answers."""
    rates, there, left = machine.teacher, job.teacher.layers, job.student.layers
    saving = 4 * job.student.parameters / machine.disk + _load(job.teacher, rates)
    if job.recipe.student.base != "teacher":
        return saving
    dropping = (rates.score(kept, job.calibration) for kept in range(left + 1, there + 1))
    return (1 + SHORTLIST) * sum(dropping) + saving


def _training(job: Job, machine: Machine, *, taught: bool = True) -> float:
    """Optimizer steps, and beside them self-check, looks at held-out answers, checkpoints, export.

    The step's cost is measured at one micro-batch: its fixed part is the optimizer's, and tokens
    count alike however a step is cut.
    """
    section, rates, shape, work = job.recipe.train, machine.student, job.student, job.work
    tokens = max(1, round(work.example_tokens))
    lengths = [tokens] * work.examples
    if section.minutes is not None:
        learning = section.minutes * 60
    else:
        epoch = steps_per_epoch(lengths, section.batch_tokens, 0)
        count = section.steps or max(1, round((section.epochs or 1) * epoch))
        order = steps(lengths, section.batch_tokens, section.micro_tokens, 0)
        read = [sum(map(len, step)) * tokens for step in islice(order, count)]
        learning = sum(rates.step(shape.layers, step) for step in read)
        if job.live and taught:
            rows = round(sum(read) / tokens)
            learning += _scored(job.teacher, machine.teacher, work, rows)
    few = min(EXAMPLES, len(lengths)) * tokens
    checking = (2 * EXAMPLES + 1) * rates.step(shape.layers, few / EXAMPLES)
    looks = min(HELD_OUT_EXAMPLES, work.kept_back)
    looking = (HELD_OUT_TIMES + 1) * rates.score(shape.layers, looks)
    saving = 12 * learnt_parameters(job) / machine.disk
    saves = learning // (section.checkpoint_seconds + saving)
    export = 2 * shape.parameters / machine.disk
    return _load(shape, rates) + checking + learning + looking + saves * saving + export


def _validating(job: Job, machine: Machine) -> float:
    """Distributions of three models, greedy answers, likelihoods, a race and the bootstrap."""
    recipe, work = job.recipe, job.work
    speakers = ((job.teacher, machine.teacher), *(2 * [(job.student, machine.student)]))
    answered = min(recipe.validate_.prompts, work.kept_back)
    sampling = recipe.teacher.sampling(0)
    batch, most = recipe.teacher.batch_size, sampling.max_tokens
    total = 0.0
    for number, (shape, rates) in enumerate(speakers):
        total += _load(shape, rates) + _scored(shape, rates, work, work.kept_back)
        if number or sampling.temperature > 0:
            total += _answering(shape, rates, job, answered, batch, most)
    total += _scored(job.teacher, machine.teacher, work, 3 * answered)
    raced = max(1, min(RACE_PROMPTS, answered // RACE_BATCHES))
    short = min(RACE_TOKENS, most)
    for shape, rates in speakers[:2]:
        batches = min(RACE_BATCHES, ceil(answered / raced)) + 1
        total += batches * _answering(shape, rates, job, raced, raced, short)
    section = recipe.validate_
    return total + METRICS * RESAMPLED * section.resamples * max(answered, work.kept_back)
