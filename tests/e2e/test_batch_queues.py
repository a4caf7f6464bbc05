"""`limbeck collect` through a batch queue, each process on its own."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_service import KEY, PROBES, N, all_right, new_walk

from batches import BatchProvider
from dialects import Behaviour
from walking import complaint, parts


@pytest.fixture
def provider() -> Iterator[BatchProvider]:
    running = BatchProvider(Behaviour(key=KEY))
    with running:
        yield running


def test_leave_and_come_back(provider: BatchProvider, tmp_path: Path) -> None:
    provider.queueing.looks, provider.queueing.ends = 2, ["expired"]
    walk = new_walk(provider, tmp_path / "walk", teacher={"batch": "leave"})
    told = complaint(walk.limbeck("collect", "recipe.toml"), 3)
    assert f"{N} questions are in 1 batches under way" in told and "come back" in told
    left = walk.recipe.read_text()
    walk.recipe.write_text(left.replace('batch = "leave"', ""))
    assert "in batches under way" in complaint(walk.limbeck("collect", "recipe.toml"), 2)
    walk.recipe.write_text(left)
    turns = 0
    while (done := walk.limbeck("collect", "recipe.toml", "--json")).returncode == 3:
        turns += 1
        assert turns < 5, done.stderr
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)["stages"]["collect"]["facts"]
    assert facts["kept"] == facts["answers"] == N and all_right(walk)
    assert set(provider.billed.values()) == {1} and provider.counts.requests == PROBES
    assert not parts(walk.run) and not (walk.run / "answers.sqlite.batches").exists()
    for path in walk.folder.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


def test_killed_while_it_waits_nothing_is_paid_twice(
    provider: BatchProvider, tmp_path: Path
) -> None:
    provider.queueing.looks = 10**9
    walk = new_walk(provider, tmp_path / "walk", teacher={"batch": "wait"})
    for _ in range(2):
        process = walk.start("collect", "recipe.toml")
        while not any(batch.looks for batch in provider.batches.values()):
            assert process.poll() is None, (walk.folder / "stderr").read_text()
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (batch,) = provider.batches.values()
    provider.queueing.looks = batch.looks + 1
    assert walk.limbeck("collect", "recipe.toml").returncode == 0
    assert all_right(walk) and len(provider.batches) == 1
    assert set(provider.billed.values()) == {1}
