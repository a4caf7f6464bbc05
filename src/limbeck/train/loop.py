"""The training loop: packed batches in, a student out, and the same one after any interruption."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from limbeck import ranks
from limbeck.files import full_disk_named
from limbeck.interrupt import on_interrupt
from limbeck.progress import say, stage_bar
from limbeck.train import checkpoint
from limbeck.train.batch import steps_per_epoch
from limbeck.train.learner import Learner, Lesson


def train(lesson: Lesson, folder: Path, metrics: Path, dtype: torch.dtype) -> checkpoint.Progress:
    """Train from `lesson.start`, or go on from the newest checkpoint in `folder`.

    Leaves `folder/final`, a model folder in `dtype`, and appends to `metrics` one JSON line a step.
    A kill loses the steps since the last checkpoint; they are taken again with the same outcome.
    As a job of several ranks all of them train one student, and rank 0 writes.
    """
    torch.use_deterministic_algorithms(True)
    # Else every new tensor is first filled.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.manual_seed(lesson.seed)
    folder.mkdir(parents=True, exist_ok=True)
    label = "train" if lesson.role == "student" else "control"
    learner = Learner(lesson)
    if found := checkpoint.load_newest(folder, lesson.plan, learner.masters.state()):
        learner.progress, by = found
        learner.masters.hand_over()
        if by != ranks.world():
            step = learner.progress.step
            say(f"{label:>9}  step {step} was saved by {by} processes; {ranks.world()} go on")
    else:
        say(f"self-check  loss agrees with the float64 oracle to {learner.self_check():.0e}")
    with (
        stage_bar(label, lesson.steps, "steps", learner.progress.step) as meter,
        _appending(metrics) as write,
        _interrupt_between_steps() as stop_asked,
    ):
        saved = time.monotonic()
        for step in learner.steps():
            row = learner.learn(step, meter)
            write(row)
            if held_out := learner.held_out_kl():
                write(held_out)
            late = time.monotonic() - saved > lesson.section.checkpoint_seconds
            # Clocks and signals differ between ranks: one that asks is enough.
            stop, due = ranks.total([stop_asked(), late and learner.progress.step < lesson.steps])
            if stop or due:
                checkpoint.save(folder, learner.progress, learner.masters.state())
                saved = time.monotonic()
            if stop:
                raise KeyboardInterrupt
    learner.export(folder / "final", dtype)
    if ranks.rank() == 0:
        checkpoint.clear(folder)
    return learner.progress


def plan_steps(lesson: Lesson) -> int:
    """How many optimizer steps the recipe's steps, epochs or minutes come to; `lesson` is of one.

    Minutes are turned into steps by timing two micro-batches here; what was measured once is
    stored by the caller, so that going on later gives the same student.
    """
    section = lesson.section
    lengths = [len(e.token_ids) for e in lesson.examples]
    if section.steps is not None:
        return section.steps
    epoch = steps_per_epoch(lengths, section.batch_tokens, lesson.seed)
    if section.epochs is not None:
        return max(1, round(section.epochs * epoch))
    assert section.minutes is not None, "the recipe was checked"
    learner = Learner(lesson)
    micros = [next(learner.steps())[0]] * ranks.world()  # one each
    with stage_bar("measure", 2, "batches") as meter:
        first, second = (learner.learn(micros, meter)["seconds"] for _ in range(2))
    tokens = sum(lengths[i] for micro in micros for i in micro)
    a_step = (second - first) * sum(lengths) / epoch / tokens
    return max(1, round(section.minutes * 60 / a_step))


@contextmanager
def _appending(path: Path) -> Iterator[Any]:
    """Append JSON lines, in place of a last line that a kill cut short; only rank 0 does."""
    if ranks.rank() > 0:
        yield lambda _: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_named(path), path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()

        yield write


@contextmanager
def _interrupt_between_steps() -> Iterator[Any]:
    """Let the first Ctrl-C wait for the step to end, so that it is saved; a second one does not."""
    asked = False

    def note(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            signal.default_int_handler(number, frame)
        asked = True

    with on_interrupt(note):
        yield lambda: asked
