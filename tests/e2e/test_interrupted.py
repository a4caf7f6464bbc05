"""A walk that is stopped once in every stage ends with the student of one that was not."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping

import pytest

from walking import STAGES, Done, Walk, hashes, last_line, parts, stored

STOPPED = ("collect", "targets", "student", "train", "control", "validate", "export")
INTERRUPTED = (130, -signal.SIGINT)  # both are 130 to a shell, and Python may choose the second
STEPS, SOME_STEPS, TRIES = 20, 4, 5

pytestmark = pytest.mark.slow


def steps_taken(walk: Walk, role: str) -> list[int]:
    """The training steps that metrics.jsonl tells of, in the order of its whole lines."""
    path = walk.run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    rows = [json.loads(line) for line in text.split("\n")[:-1] if line]
    return [row["step"] for row in rows if row["role"] == role and "loss" in row]


def answers_there(walk: Walk) -> int:
    """How many answers are stored, 0 while the process that is held still has the store locked."""
    try:
        return stored(walk.run)
    except sqlite3.OperationalError:
        return 0


READY: Mapping[str, Callable[[Walk], bool]] = {
    "collect": lambda walk: answers_there(walk) > 0,
    "train": lambda walk: len(steps_taken(walk, "student")) >= SOME_STEPS,
    "control": lambda walk: len(steps_taken(walk, "control")) >= SOME_STEPS,
}


def state(walk: Walk, stage: str) -> str:
    """Where the manifest says that a stage is: due, at work or finished."""
    if not (walk.run / "manifest.json").exists():
        return "due"
    entry = walk.manifest()["stages"].get(stage)
    return "due" if entry is None else "finished" if "finished" in entry else "at work"


def stopped_in(walk: Walk, stage: str, number: signal.Signals) -> int | None:
    """Signal a walk while it is at work on `stage`; its exit code, or None where it was too fast.

    The process is held still while it is looked at, so that a stage of milliseconds is met too.
    """
    walk.forget(stage)
    process = walk.start("distill", "recipe.toml")
    try:
        while process.poll() is None and state(walk, stage) != "finished":
            time.sleep(0.002)
            if state(walk, stage) == "due":
                continue
            process.send_signal(signal.SIGSTOP)
            if state(walk, stage) == "at work" and READY.get(stage, lambda _: True)(walk):
                process.send_signal(number)
                process.send_signal(signal.SIGCONT)
                code = process.wait()
                return code if state(walk, stage) == "at work" else None
            process.send_signal(signal.SIGCONT)
        return None
    finally:
        process.kill()
        process.wait()


def stop_everywhere(walk: Walk, number: signal.Signals) -> dict[str, tuple[int, str]]:
    """Stop the walk once in every stage; exit codes and what was said last on standard error."""
    told: dict[str, tuple[int, str]] = {}
    for stage in STOPPED:
        for _ in range(TRIES):
            code = stopped_in(walk, stage, number)
            if code is not None:
                break
        else:
            pytest.fail(f"{stage} was never met at work")
        told[stage] = code, (walk.folder / "stderr").read_text()
    return told


def ends_as(walk: Walk, finished: tuple[Walk, Done]) -> None:
    done = walk.limbeck("distill", "recipe.toml")
    assert done.returncode == finished[1].returncode, done.stderr
    assert hashes(walk.run / "student") == hashes(finished[0].run / "student")
    assert not parts(walk.run)
    assert all("finished" in walk.manifest()["stages"][stage] for stage in STAGES)
    answers = walk.manifest()["stages"]["collect"]["facts"]
    assert 0 < answers["asked_now"] < answers["answers"]


def test_killed_in_every_stage(walk: Callable[..., Walk], finished: tuple[Walk, Done]):
    there = walk()
    told = stop_everywhere(there, signal.SIGKILL)
    assert {code for code, _ in told.values()} == {-signal.SIGKILL}
    for role in ("student", "control"):
        steps = steps_taken(there, role)
        assert sorted(set(steps)) == list(range(1, STEPS + 1))
        assert steps.count(1) == 1  # gone on from a checkpoint, not from the start
    ends_as(there, finished)


def test_interrupted_in_every_stage(walk: Callable[..., Walk], finished: tuple[Walk, Done]):
    there = walk()
    for stage, (code, errors) in stop_everywhere(there, signal.SIGINT).items():
        assert code in INTERRUPTED, stage
        assert last_line(errors) == "Interrupted. Run the same command to go on.", stage
    for role in ("student", "control"):
        assert steps_taken(there, role) == list(range(1, STEPS + 1))
    ends_as(there, finished)
