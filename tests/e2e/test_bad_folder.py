"""Run folders that are another's, damaged, or on a disk that is full."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from walking import Done, Walk, complaint, hashes, last_line, parts, stored

NewWalk = Callable[..., Walk]


def test_run_folder_of_another_recipe(copied: Walk):
    copied.recipe.write_text(copied.recipe.read_text().replace("steps = 20", "steps = 21"))
    before = hashes(copied.run)
    told = complaint(copied.limbeck("distill", "recipe.toml"), 2)
    assert "train.steps" in told
    assert "--run" in told
    assert hashes(copied.run) == before


def test_folder_that_is_no_run_folder(walk: NewWalk):
    there = walk()
    home = there.folder / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("mine")
    (home / ".draft.part").write_text("mine too")
    before = hashes(there.folder)
    assert "home is no run folder" in complaint(there.limbeck("distill", "home"), 2)
    told = complaint(there.limbeck("distill", "recipe.toml", "--run", "home"), 2)
    assert "not a run folder" in told
    assert hashes(there.folder) == before
    assert not (home / ".lock").exists()


@pytest.mark.parametrize("arguments", [["."], ["recipe.toml", "--run", "."]])
def test_folder_with_a_recipe_is_no_run_folder(walk: NewWalk, sums: Path, arguments: list[str]):
    """Its author's prompts.jsonl, of the same name as a run's, stays as it is."""
    there = walk(prompts={"source": "prompts.jsonl"})
    shutil.copy(sums, there.folder)
    before = hashes(there.folder)
    told = complaint(there.limbeck("distill", *arguments), 2)
    assert "run folder" in told
    assert hashes(there.folder) == before


def test_run_folder_that_is_a_file(walk: NewWalk):
    there = walk()
    (there.folder / "runs").write_text("")
    assert "runs" in complaint(there.limbeck("distill", "recipe.toml"), 2)


def test_two_processes_on_one_run_folder(walk: NewWalk):
    there = walk()
    first = there.start("distill", "recipe.toml")
    try:
        lock = there.run / ".lock"
        while first.poll() is None and not (lock.exists() and lock.read_text()):
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        before = hashes(there.run)
        told = complaint(there.limbeck("distill", "recipe.toml"), 2)
        assert f"(pid {first.pid})" in told
        assert first.poll() is None
        assert hashes(there.run) == before
    finally:
        first.kill()
        first.wait()


# -- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ['{"stages": {"permit"', "[]", "{}", '{"stages": []}', '{"stages": {"permit": 1}}']
)
def test_damaged_manifest(copied: Walk, content: str):
    (copied.run / "manifest.json").write_text(content)
    before = hashes(copied.run)
    told = complaint(copied.limbeck("distill", copied.run), 2)
    assert "manifest.json is damaged" in told
    assert "Remove it" in told
    assert hashes(copied.run) == before


def test_without_its_manifest_a_run_keeps_answers_and_targets(copied: Walk):
    """What the refusal above promises of removing the file."""
    (copied.run / "manifest.json").unlink()
    targets, answers = hashes(copied.run / "targets"), stored(copied.run)
    done = copied.limbeck("collect", copied.run)
    assert done.returncode == 0, done.stderr
    assert copied.manifest()["stages"]["collect"]["facts"]["asked_now"] == 0
    assert (hashes(copied.run / "targets"), stored(copied.run)) == (targets, answers)


def test_damaged_verdict(copied: Walk):
    path = copied.run / "verdict.json"
    path.write_text(path.read_text()[:1000])
    told = complaint(copied.limbeck("validate", copied.run), 2)
    assert "verdict.json is damaged" in told


@pytest.mark.parametrize("damage", ["head", "half", "text"])
def test_damaged_answers(copied: Walk, damage: str):
    path = copied.run / "answers.sqlite"
    content = path.read_bytes()
    path.write_bytes(
        {
            "head": b"\0" * 100 + content[100:],
            "half": content[: len(content) // 2],
            "text": b"these are no answers\n" * 100,
        }[damage]
    )
    before = path.read_bytes()
    copied.forget("collect")
    told = complaint(copied.limbeck("distill", copied.run), 2)
    assert "answers.sqlite" in told
    assert "damaged" in told
    assert path.read_bytes() == before


def test_damaged_targets(copied: Walk):
    """A flipped bit is named, and what the line advises mends it."""
    (shard,) = (copied.run / "targets").glob("*.safetensors")
    whole = load_file(shard)
    flipped = bytearray(shard.read_bytes())
    flipped[-7] ^= 1
    shard.write_bytes(flipped)
    copied.forget("control")
    told = complaint(copied.limbeck("train", copied.run), 2)
    assert shard.name in told
    assert f"Remove {copied.run / 'targets'}" in told
    assert "finished" not in copied.manifest()["stages"].get("control", {})
    shutil.rmtree(copied.run / "targets")
    done = copied.limbeck("collect", copied.run)
    assert done.returncode == 0, done.stderr
    again = load_file(shard)
    assert again.keys() == whole.keys()
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


# -- a full disk -------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path, needs: Callable[[object, str], None]) -> Iterator[Callable[[str], Path]]:
    """`disk("64k")`: a real disk of that size, grown where it is there already."""
    needs(os.geteuid() == 0 and shutil.which("mount"), "root, to mount a small disk")
    place = tmp_path / "disk"
    place.mkdir()

    def sized(size: str) -> Path:
        how = f"size={size}" if not place.is_mount() else f"remount,size={size}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", place], check=True)
        return place

    yield sized
    if place.is_mount():
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.slow
def test_full_disk(walk: NewWalk, disk: Callable[[str], Path], finished: tuple[Walk, Done]):
    """Too small a disk is refused; one that others fill stops the walk with one line, anywhere."""
    there = walk()
    told = complaint(there.limbeck("distill", "recipe.toml", "--run", disk("64k") / "run"), 1)
    assert re.search(r"needs about .* of disk, and .* are free", told)
    run = disk("32m") / "run"
    for begun in ("answers.sqlite", "targets", "checkpoints/student"):
        process = there.start("distill", "recipe.toml", "--run", str(run))
        while not (run / begun).exists():
            assert process.poll() is None, (there.folder / "stderr").read_text()
            time.sleep(0.001)
        ballast = filled(run.parent)
        assert process.wait() == 3, begun
        told = last_line((there.folder / "stderr").read_text())
        assert "disk is full" in told
        assert str(run) in told
        assert not parts(run)
        ballast.unlink()
    done = there.limbeck("distill", "recipe.toml", "--run", run, "--json")
    assert done.returncode == finished[1].returncode, done.stderr
    assert json.loads(done.stdout)["rows"]
    assert hashes(run / "student") == hashes(finished[0].run / "student")


def filled(place: Path) -> Path:
    """A file that takes all that is free on the disk."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**16, 2**8, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return ballast
