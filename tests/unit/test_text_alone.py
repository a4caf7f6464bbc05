"""A student that has nothing but text: where it starts, what it learns, what is measured of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from limbeck.collect.store import AnswerStore
from limbeck.errors import InputError
from limbeck.models.local import LocalModel
from limbeck.models.protocol import Asked
from limbeck.models.tokenizer import ChatTokenizer
from limbeck.models.weights import find
from limbeck.recipe import TrainSection
from limbeck.records import Answer, Role, Sampling, Usage
from limbeck.train.examples import render
from limbeck.train.learner import Learns, Lesson
from limbeck.train.loop import train
from limbeck.train.student import start_as_it_is
from limbeck.validate.served import measure
from small import dense, load, network, prompts, save
from tiny import sums

STEPS = 4
SECTION = TrainSection(
    steps=STEPS, batch_tokens=220, micro_tokens=100, row_tokens=64, precision="float32",
    learning_rate=2e-3,
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = network(vocab_size=360, initializer_range=0.05)
    return save(made, tmp_path_factory.mktemp("base") / "base")


def answered(tokenizer: ChatTokenizer, n: int = 20) -> list[Asked]:
    """The prompts with a service's answers, in the student's tokens."""
    rows: list[Asked] = []
    for prompt, (_, text) in zip(prompts(n), sums(), strict=False):
        sampling, ids = Sampling(32, 1.0), tuple(tokenizer.answer_ids(text))
        id_ = Answer.identify(prompt.id, "teacher", "here", sampling)
        kept = Answer(
            id_, prompt.id, "teacher", "here", sampling, text, "", (), ids, "stop", Usage(1, 1),
            "kept",
        )  # fmt: skip
        rows.append((prompt, kept))
    return rows


def learn(base: Path, out: Path, role: Learns, *, alone: bool) -> list[dict[str, Any]]:
    tokenizer = ChatTokenizer(base)
    rows = render(answered(tokenizer), tokenizer)
    lesson = Lesson(role, base, rows[:16], rows[16:], SECTION, 7, STEPS, None, alone)
    train(lesson, out, out / "metrics.jsonl", torch.float32)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def surprise(model: LocalModel, one: Asked) -> NDArray[np.float64]:
    """The oracle: minus the log-probability of each of an answer's tokens."""
    return -np.take_along_axis(dense(model, one), np.array(one[1].token_ids)[:, None], -1)[:, 0]


def test_a_student_of_text_alone_learns_as_a_control_does(base: Path, tmp_path: Path):
    """The same text by the same loss: the same weights, self-check included."""
    student = learn(base, tmp_path / "student", "student", alone=True)
    learn(base, tmp_path / "control", "control", alone=True)
    one, other = (
        load(tmp_path / role / "final").network.state_dict() for role in ("student", "control")
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert all(row["kl"] is None for row in student if "loss" in row)


def test_what_is_kept_back_is_measured_by_its_text(base: Path, tmp_path: Path):
    rows = learn(base, tmp_path / "student", "student", alone=True)
    told = [row["held_out_loss"] for row in rows if "held_out_loss" in row][-1]
    student = load(tmp_path / "student" / "final")
    total = count = 0
    for one in answered(student.tokenizer)[16:]:
        found = surprise(student, one)
        total, count = total + found.sum(), count + len(found)
    assert told == pytest.approx(total / count, rel=1e-4)


def test_a_student_starts_as_its_base_is(base: Path, tmp_path: Path):
    tokenizer = ChatTokenizer(base)
    facts = start_as_it_is(find(str(base)), tokenizer, answered(tokenizer), tmp_path / "start")
    made = load(tmp_path / "start")
    assert facts["parameters"] == made.parameters and made.tokenizer.hash == tokenizer.hash
    prompt, answer = answered(tokenizer, 1)[0]
    long = replace(answer, token_ids=answer.token_ids * 40)
    with pytest.raises(InputError, match=r"prompts\.jsonl:1.*reads 128"):
        start_as_it_is(find(str(base)), tokenizer, [(prompt, long)], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_is_measured_without_the_teacher(base: Path, tmp_path: Path):
    other = save(network(vocab_size=360, initializer_range=0.05, seed=3), tmp_path / "other")
    student, control = load(base), load(other)
    models: dict[Role, LocalModel] = {"student": student, "control": control}
    asked = answered(student.tokenizer, 14)
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        found = measure(models, asked, None, store, teacher="t", answered=12, itemsize=4)
    by_name = {one.metric: one for one in found.measured}
    assert set(by_name) == {"text_nll", "rouge_l"}
    nll = by_name["text_nll"]
    assert nll.test == {"control": "superior"} and nll.better == "lower"
    for model, told in ((student, nll.student), (control, nll.control)):
        assert told is not None
        assert told[3] == pytest.approx(surprise(model, asked[3]).mean(), rel=1e-4)
    assert found.figures["teacher"]["parameters"] is None
    assert found.figures["student"]["tokens_per_s"] > 0
    assert found.samples[0]["teacher"] == asked[0][1].text
    assert by_name["rouge_l"].student is not None and len(by_name["rouge_l"].student) == 12
    assert nll.weights is not None
    np.testing.assert_array_equal(nll.weights, [len(a.token_ids) for _, a in asked])


def test_targets_bring_their_own_metric(base: Path, tmp_path: Path):
    student = load(base)
    asked = answered(student.tokenizer, 14)
    targets = {t.answer_id: t for t in student.score(asked, 4, 1.0)}
    models: dict[Role, LocalModel] = {"student": student, "control": student}
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        found = measure(models, asked, targets, store, teacher="t", answered=12, itemsize=4)
    by_name = {one.metric: one for one in found.measured}
    assert by_name["told_kl"].test == {"control": "superior"}
    assert by_name["text_nll"].test == {"control": "report"}
    assert np.abs(by_name["told_kl"].student).max() < 1e-5
