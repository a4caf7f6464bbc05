"""Jobs of two processes that torchrun starts, on gloo, against one process that does the same."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

import ranked
from limbeck import ranks
from limbeck.collect import targets
from limbeck.collect.targets import Binding, TargetsFolder
from limbeck.errors import ServiceError
from limbeck.train.learner import Learner
from limbeck.train.loop import train
from school import interrupt, make_school, stop_after
from small import asked, load, prompts

STEPS = 5
LONG = 1200  # seconds, on a machine where much else runs
BINDING = Binding(
    "teacher", "tokenizer", "template", vocabulary=400, top_k=6, tail_samples=4, temperature=1.0
)

pytestmark = pytest.mark.slow


class Done(NamedTuple):
    folder: Path
    code: int
    errors: str

    @property
    def said(self) -> list[str]:
        """Our own closing lines, of all ranks."""
        start = f"{'limbeck':>9}  "
        return [x.removeprefix(start) for x in self.errors.splitlines() if x.startswith(start)]

    def metrics(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(x) for x in (self.folder / f"{name}.jsonl").read_text().splitlines()]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "final/model.safetensors")


@pytest.fixture(scope="module")
def alone(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Lessons, and what one process made of them."""
    folder = tmp_path_factory.mktemp("alone")
    school = make_school(tiny, folder / "start")
    keys: dict[str, Any] = {"steps": STEPS, "clip": 0.5}
    lessons = {
        "whole": school.lesson(**keys),
        "bfloat16": school.lesson(**keys, precision="bfloat16", divergence="jsd"),
    }
    if find_spec("peft"):
        lessons["adapters"] = school.lesson(**keys, lora_rank=4, checkpoint_activations=True)
    teacher = load(tiny)
    rows = asked(teacher, prompts())
    bare = [replace(one, targets=None) for one in school.examples]
    at_hand = school.lesson(**keys, temperature=2.0)
    lessons["live"] = replace(at_hand, examples=bare, held_out=(), teacher=teacher)
    for name, one in lessons.items():
        ranked.learn(one, folder, name)
    torch.use_deterministic_algorithms(False)
    (folder / "lessons.pickle").write_bytes(pickle.dumps(lessons))
    made = TargetsFolder(folder / "targets", BINDING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "SHARD_TOKENS", ranked.SHARD_TOKENS)
        made.write(teacher, rows)
    (folder / "rows.pickle").write_bytes(pickle.dumps(rows))
    return Done(folder, 0, "")


@pytest.fixture(scope="module")
def two(alone: Done, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The same by two ranks, and the first lesson gone on with from where one process stopped."""
    folder = tmp_path_factory.mktemp("two")
    lessons = pickle.loads((alone.folder / "lessons.pickle").read_bytes())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(2, interrupt, patch)
        ranked.learn(lessons["whole"], folder, "resumed")
    lessons["resumed"] = lessons["whole"]
    (folder / "lessons.pickle").write_bytes(pickle.dumps(lessons))
    made = TargetsFolder(folder / "targets", BINDING)
    rows = pickle.loads((alone.folder / "rows.pickle").read_bytes())
    (folder / "notes").mkdir()
    teacher = ranked.Noting(tiny, folder / "notes")
    (folder / "targets.pickle").write_bytes(pickle.dumps((made, teacher, rows)))
    return launched("all", folder)


def launched(scenario: str, folder: Path) -> Done:
    tests = Path(__file__).parents[1]
    paths = [str(tests.parent / "src"), str(tests), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(tests / "ranked.py"), scenario, str(folder)]
    own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **own}, capture_output=True, text=True, timeout=LONG
    )
    assert done.stdout == ""
    return Done(folder, done.returncode, done.stderr)


def same_course(one: list[dict[str, Any]], other: list[dict[str, Any]], loose: float) -> None:
    """The same steps told once each, with the same counts and nearly the same values."""
    assert len(one) == len(other) >= STEPS
    for row, its in zip(one, other, strict=True):
        assert row.keys() == its.keys()
        for key in row.keys() & {"loss", "kl", "grad_norm", "held_out_kl"}:
            assert its[key] == pytest.approx(row[key], rel=loose), (key, row["step"])
        for key in row.keys() & {"step", "tokens", "target_tokens", "learning_rate"}:
            assert its[key] == row[key], key


def nearly(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], loose: float) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        gap = (other[key] - value).abs().max().item()
        assert gap < loose, key


@pytest.mark.parametrize(
    "name, loose", [("whole", 1e-5), ("bfloat16", 2e-2), ("live", 1e-5), ("adapters", 1e-5)]
)
def test_two_ranks_learn_what_one_learns(
    two: Done, alone: Done, needs: Callable[[object, str], None], name: str, loose: float
) -> None:
    if name == "adapters":
        needs(find_spec("peft"), "peft")
    assert two.code == 0, two.errors
    same_course(alone.metrics(name), two.metrics(name), loose)
    nearly(alone.weights(name), two.weights(name), loose)
    assert not list((two.folder / name).glob("step-*"))


def test_a_step_may_leave_a_rank_without_a_micro_batch(alone: Done) -> None:
    lesson = pickle.loads((alone.folder / "lessons.pickle").read_bytes())["whole"]
    assert any(len(step) % 2 for step in Learner(lesson).steps()), "else it was not tried"


def test_only_rank_0_speaks(two: Done) -> None:
    assert two.errors.count("walked to the end") == 1
    assert two.said == []


def test_targets_are_scored_by_all_ranks(two: Done, alone: Done) -> None:
    ours, theirs = (
        {p.name: load_file(p) for p in d.folder.glob("targets/*s")} for d in (two, alone)
    )
    assert len(ours) > 4 and ours.keys() == theirs.keys()
    for name, tensors in theirs.items():
        assert all(torch.equal(ours[name][key], value) for key, value in tensors.items()), name
    index = (two.folder / "targets/index.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["shard"] for line in index) == sorted(ours)
    notes = [path.name.split(".") for path in (two.folder / "notes").iterdir()]
    rows = pickle.loads((alone.folder / "rows.pickle").read_bytes())
    assert sorted(answer for answer, _ in notes) == sorted(answer.id for _, answer in rows)
    by = [rank for _, rank in notes]
    assert min(by.count("0"), by.count("1")) > len(notes) / 4


def test_two_go_on_from_a_checkpoint_of_one(two: Done, alone: Done) -> None:
    same_course(alone.metrics("whole"), two.metrics("resumed"), 1e-5)
    nearly(alone.weights("whole"), two.weights("resumed"), 1e-5)
    assert "step 2 was saved by 1 processes; 2 go on" in two.errors


def test_one_goes_on_from_a_checkpoint_of_two(
    alone: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (alone.folder / "lessons.pickle").read_bytes()
    (tmp_path / "lessons.pickle").write_bytes(content)
    done = launched("interrupted", tmp_path)
    assert done.said == ["Interrupted. Run the same command to go on."]
    (kept,) = (tmp_path / "interrupted").iterdir()
    assert kept.name == "step-0000002" and len(list(kept.glob("*.safetensors"))) == 2
    train(
        pickle.loads(content)["whole"],
        tmp_path / "interrupted",
        tmp_path / "interrupted.jsonl",
        torch.float32,
    )
    torch.use_deterministic_algorithms(False)
    same_course(alone.metrics("whole"), done.metrics("interrupted"), 1e-5)
    nearly(alone.weights("whole"), done.weights("interrupted"), 1e-5)
    assert "step 2 was saved by 2 processes; 1 go on" in capsys.readouterr().err


@pytest.mark.parametrize(
    "how, line",
    [
        ("killed", "A process of this run ended, or torchrun was told to stop"),
        ("failed", "rank 1: its disk is gone"),
    ],
)
def test_a_rank_that_ends_stops_the_others_with_one_line(
    alone: Done, tmp_path: Path, how: str, line: str
) -> None:
    content = (alone.folder / "lessons.pickle").read_bytes()
    (tmp_path / "lessons.pickle").write_bytes(content)
    done = launched(how, tmp_path)
    assert done.code == 1
    (said,) = done.said
    assert said.startswith(line)
    assert done.errors.count("Traceback (most recent call last)") == 1, "torchrun's own"
    assert not (tmp_path / how / "final").exists()


@pytest.mark.parametrize("how", ["it speaks", "another is lost"])
def test_torchruns_word_to_stop_changes_nothing_once_the_end_has_begun(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Store:
        def add(self, key: str, n: int) -> int:
            return n

    monkeypatch.setattr(ranks, "_store", Store())
    before = signal.signal(signal.SIGTERM, ranks._end)
    try:
        if how == "it speaks":
            assert ranks.may_speak()
        else:
            with pytest.raises(ServiceError), ranks._loss_named():
                raise RuntimeError("gloo: connection closed by peer")
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
