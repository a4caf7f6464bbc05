"""The same commands under torchrun, two processes on gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import load_file

from walking import STAGES, Done, Walk, parts

pytestmark = pytest.mark.slow


def torchrun(walk: Walk, *arguments: str) -> Done:
    """Run `limbeck ARGUMENTS` in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "limbeck", *arguments]
    return subprocess.run(
        command, cwd=walk.folder, env={**os.environ, **walk.environment()},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def ours(done: Done) -> list[str]:
    """The lines that say why a command ended, of all processes."""
    return [line for line in done.stderr.splitlines() if line.startswith("  limbeck  ")]


def test_a_walk_of_two_processes_is_one_walk(
    walk: Callable[..., Walk], finished: tuple[Walk, Done]
) -> None:
    there, (alone, by_one) = walk(), finished
    done = torchrun(there, "distill", "recipe.toml", "--json")
    verdict = json.loads(done.stdout)
    assert verdict["outcomes"] == json.loads(by_one.stdout)["outcomes"]
    manifest = there.manifest()["stages"]
    assert [s for s in STAGES if "finished" in manifest[s]] == list(STAGES)
    (ours_,), (its_,) = ([*w.run.glob("targets/*.safetensors")] for w in (there, alone))
    shard, other = load_file(ours_), load_file(its_)
    assert all(np.array_equal(shard[key], value) for key, value in other.items())
    for walked in (there, alone):
        assert not parts(walked.run)
    told, its = (
        [json.loads(line) for line in (w.run / "metrics.jsonl").read_text().splitlines()]
        for w in (there, alone)
    )
    keys = ("role", "step", "tokens", "target_tokens", "learning_rate")
    assert [[r.get(k) for k in keys] for r in told] == [[r.get(k) for k in keys] for r in its]
    for row, other in zip(told, its, strict=True):
        if "loss" in row:  # in bfloat16, where the processor has it
            assert row["loss"] == pytest.approx(other["loss"], rel=0.1, abs=0.02)
    for stage in STAGES:
        assert done.stderr.count(f"\n{stage:>9}  ") <= 2, "one process speaks"
    again = there.limbeck("distill", "recipe.toml", "--json")
    assert again.returncode == by_one.returncode
    assert again.stderr.count("already there") == len(STAGES) - 1, "all but permit"


def test_a_wrong_recipe_is_told_once(walk: Callable[..., Walk]) -> None:
    there = walk(train={"step": 3})
    done = torchrun(there, "train", "recipe.toml")
    assert done.returncode == 1
    (line,) = ours(done)
    assert "unknown key 'train.step'; did you mean 'steps'?" in line
