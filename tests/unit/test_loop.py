from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.errors import InputError, ServiceError
from limbeck.progress import Meter
from limbeck.recipe import TrainSection
from limbeck.train.batch import steps as steps_of
from limbeck.train.examples import render
from limbeck.train.learner import Learner, learning_rate
from limbeck.train.loop import plan_steps, train
from school import School, crash, interrupt, lines, oracle, stop_after, untimed
from small import asked, load, network, prompts, save

pytestmark = pytest.mark.usefixtures("determinism_left_as_it_was")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("how, ends_as", [(interrupt, KeyboardInterrupt), (crash, RuntimeError)])
def test_stopping_anywhere_changes_no_bit(
    school: School,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    how: Callable[[], object],
    ends_as: type[BaseException],
) -> None:
    steps = 4
    often: dict[str, Any] = {"checkpoint_seconds": 1e-9} if how is crash else {}
    lesson = school.lesson(steps=steps, precision=precision, **often)
    done = train(lesson, tmp_path / "whole", tmp_path / "whole.jsonl", torch.float32)
    assert done.step == steps
    wanted = (tmp_path / "whole/final/model.safetensors").read_bytes()
    for step in range(1, steps + 1):
        folder, metrics = tmp_path / f"stopped{step}", tmp_path / f"{step}.jsonl"
        with monkeypatch.context() as patch, pytest.raises(ends_as):
            stop_after(step, how, patch)
            train(lesson, folder, metrics, torch.float32)
        assert not (folder / "final").exists()
        again = train(lesson, folder, metrics, torch.float32)
        assert (folder / "final/model.safetensors").read_bytes() == wanted
        assert [p.name for p in folder.iterdir()] == ["final"]
        assert (again.step, again.tokens, again.target_tokens) == (
            (done.step, done.tokens, done.target_tokens)
        )
        assert untimed(metrics) == untimed(tmp_path / "whole.jsonl"), "each step is told once"


def test_a_second_interrupt_does_not_wait(
    school: School, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    stop_after(2, lambda: (interrupt(), interrupt()), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(school.lesson(), tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
    assert [row["step"] for row in lines(tmp_path / "m.jsonl")] == [1, 1]
    assert signal.getsignal(signal.SIGINT) is before, "the handler is handed back"


def test_a_checkpoint_of_other_settings_is_refused(
    school: School, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(2, interrupt, patch)
        train(school.lesson(), tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
    fewer = school._replace(examples=school.examples[:-1])
    others = [
        school.lesson(learning_rate=1e-4),
        school.lesson(steps=6),
        school.lesson("control"),
        fewer.lesson(),
    ]
    for lesson in others:
        with pytest.raises(InputError, match="step-0000002 belongs to other answers"):
            train(lesson, tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
    train(school.lesson(checkpoint_seconds=7), tmp_path / "run", tmp_path / "m", torch.float32)


def test_the_student_comes_nearer_to_its_teacher(school: School, tmp_path: Path) -> None:
    train(school.lesson(steps=40), tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
    rows = lines(tmp_path / "m.jsonl")
    learnt = [row for row in rows if "loss" in row]
    held_out = [row["held_out_kl"] for row in rows if "held_out_kl" in row]
    assert [row["step"] for row in learnt] == list(range(1, 41))
    assert len(held_out) >= 5
    assert 0 < held_out[-1] < held_out[0] / 2
    assert learnt[-1]["kl"] < learnt[0]["kl"] / 2
    assert all(row["loss"] == row["kl"] for row in learnt)


def test_the_held_out_kl_is_that_of_the_exported_student(school: School, tmp_path: Path) -> None:
    train(school.lesson(steps=2), tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
    told = lines(tmp_path / "m.jsonl")[-1]
    assert (told["step"], told["role"]) == (2, "student")
    final = school._replace(start=tmp_path / "run/final", examples=school.held_out)
    _, kl, _ = oracle(final.lesson(), list(range(len(school.held_out))))
    assert told["held_out_kl"] == pytest.approx(kl, rel=1e-4)


def test_the_control_learns_the_text_without_targets(tiny: Path, tmp_path: Path) -> None:
    teacher = load(tiny)
    texts = render(asked(teacher, prompts()), teacher.tokenizer)
    assert all(example.targets is None for example in texts)
    untaught = save(network(vocab_size=312, initializer_range=0.05), tmp_path / "untaught")
    plain = School(untaught, texts[::2], [])
    lesson = plain.lesson("control", 40, learning_rate=2e-2)
    train(lesson, tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
    rows = lines(tmp_path / "m.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"] / 3
    assert all(row["kl"] is None and row["role"] == "control" for row in rows)
    with pytest.raises(InputError, match="carry no targets"):
        train(plain.lesson(), tmp_path / "no", tmp_path / "m.jsonl", torch.float32)


def test_the_export_is_the_masters_rounded(school: School, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    ends = {}
    for dtype in (torch.float32, torch.bfloat16):
        folder = tmp_path / str(dtype)
        train(school.lesson(steps=2), folder, tmp_path / "m.jsonl", dtype)
        ends[dtype] = load_file(folder / "final/model.safetensors")
    narrow, wide = ends[torch.bfloat16], ends[torch.float32]
    assert narrow.keys() == wide.keys() == load_file(school.start / "model.safetensors").keys()
    assert all(torch.equal(narrow[key], wide[key].to(torch.bfloat16)) for key in wide)
    student, start = load(folder / "final"), load(school.start)
    assert student.tokenizer.hash == start.tokenizer.hash
    assert student.tokenizer.template_hash == start.tokenizer.template_hash
    assert student.network.config.use_cache and student.layers == 2


def test_what_is_counted_adds_up(school: School, tmp_path: Path) -> None:
    lesson = school.lesson(steps=7)
    train(lesson, tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
    rows = [row for row in lines(tmp_path / "m.jsonl") if "loss" in row]
    order = Learner(lesson).steps()
    read, learnt = 0, 0
    for row, step in zip(rows, order, strict=True):
        numbers = [i for micro in step for i in micro]
        read += sum(len(lesson.examples[i].token_ids) for i in numbers)
        learnt += sum(int(lesson.examples[i].loss_mask.sum()) for i in numbers)
        assert (row["tokens"], row["target_tokens"]) == (read, learnt)
        rate = learning_rate(lesson.section, row["step"] - 1, 7)
        assert row["learning_rate"] == pytest.approx(rate)


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', "", "{"])
def test_a_line_that_was_cut_short_makes_room(school: School, tmp_path: Path, cut: str) -> None:
    metrics = tmp_path / "m.jsonl"
    metrics.write_text('{"step": 1}\n{"step": 2}\n' + cut)
    train(school.lesson(steps=1), tmp_path / "run", metrics, torch.float32)
    rows = lines(metrics)
    assert rows[:2] == [{"step": 1}, {"step": 2}]
    assert [row["step"] for row in rows[2:]] == [1, 1]


def test_a_loss_that_is_no_number_stops_the_run(school: School, tmp_path: Path) -> None:
    lesson = school.lesson(learning_rate=1e30, warmup=0.0)
    with pytest.raises(ServiceError, match=r"at step [23].*Lower train\.learning_rate") as caught:
        train(lesson, tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/final").exists()


@pytest.mark.parametrize("warmup, rise", [(0.0, 1), (0.1, 20), (0.5, 100), (0.99, 198)])
def test_the_learning_rate_rises_and_falls_in_straight_lines(warmup: float, rise: int) -> None:
    section = TrainSection(steps=1, learning_rate=0.2, warmup=warmup)
    rates = np.array([learning_rate(section, step, 200) for step in range(201)])
    assert rates.max() == pytest.approx(0.2) == rates[rise - 1]
    np.testing.assert_allclose(rates[:rise], 0.2 * np.arange(1, rise + 1) / rise)
    np.testing.assert_allclose(np.diff(rates[rise:]), -0.2 / (200 - rise))
    assert rates[200] == 0 and rates[199] > 0


@pytest.mark.parametrize("total", [1, 2])
def test_the_shortest_trainings_have_a_rate(total: int) -> None:
    section = TrainSection(steps=1, learning_rate=0.2, warmup=0.9)
    assert all(0 < learning_rate(section, step, total) <= 0.2 for step in range(total))


def test_how_long_to_train(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(**length: float) -> int:
        lesson = school.lesson(steps=1)
        cut = {"batch_tokens": 220, "micro_tokens": 100, **length}
        return plan_steps(replace(lesson, section=TrainSection.model_validate(cut)))

    epoch = 0
    left = set(range(len(school.examples)))
    for step in steps_of([len(e.token_ids) for e in school.examples], 220, 100, 7):
        epoch, left = epoch + 1, left - {i for micro in step for i in micro}
        if not left:
            break
    assert epoch > 2
    assert planned(steps=9) == 9
    assert planned(epochs=1) == epoch
    assert planned(epochs=2.5) == round(2.5 * epoch)
    assert planned(epochs=1e-3) == 1

    told: list[int] = []  # tokens of the micro-batches that were timed

    def learn(self: Learner, step: list[list[int]], _: Meter) -> dict[str, float]:
        told.append(sum(len(school.examples[i].token_ids) for micro in step for i in micro))
        return {"seconds": 100.0 + 2.0 * len(told)}  # the first one is slow, the second takes 2 s

    monkeypatch.setattr(Learner, "learn", learn)
    tokens = sum(len(e.token_ids) for e in school.examples)
    steps = planned(minutes=30)
    an_epoch = 2.0 * tokens / told[-1]  # seconds
    assert steps == pytest.approx(30 * 60 / an_epoch * epoch, abs=0.5)
    assert planned(minutes=1e-4) == 1
