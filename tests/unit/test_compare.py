from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from limbeck.errors import InputError
from limbeck.models import compare, local
from limbeck.models.compare import divergence_from, likelihood, likeness, race
from limbeck.models.local import LocalModel
from limbeck.models.protocol import Asked
from limbeck.records import Prompt, Sampling
from small import asked, dense, load, network, prompt, prompts, save
from tiny import make_tokenizer


@pytest.fixture(scope="module")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[LocalModel]:
    """The tiny teacher, itself with noise in its weights, and an untrained network."""
    import torch

    noisy, folder = load(tiny), tmp_path_factory.mktemp("students")
    torch.manual_seed(1)
    for parameter in noisy.network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    strange = network(vocab_size=312, initializer_range=0.5)
    students = [save(noisy.network, folder / "noisy"), save(strange, folder / "strange")]
    return [load(tiny), *map(load, students)]


@pytest.fixture(scope="module")
def rows(models: list[LocalModel]) -> list[Asked]:
    mixed = [*prompts(5), prompt("Hi"), prompt("What is one " * 9), prompt("Say nothing.")]
    return asked(models[0], mixed)


@pytest.fixture(autouse=True)
def several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SCORE_TOKENS", 100)
    monkeypatch.setattr(compare, "HEAD_ROWS", 5)


def test_likeness_is_the_plain_definition(models: list[LocalModel], rows: list[Asked]) -> None:
    teacher, *students = models
    told: list[int] = []
    found = likeness(teacher, students, rows, told.append)
    assert sum(told) == sum(len(a.token_ids) for _, a in rows) and len(told) > 2
    for student, likes in zip(students, found, strict=True):
        for n, one in enumerate(rows):
            log_p, log_q = dense(teacher, one), dense(student, one)
            p, q = np.exp(log_p), np.exp(log_q)
            assert likes.kl[n] == pytest.approx((p * (log_p - log_q)).sum(-1).mean(), rel=1e-4)
            assert likes.agreement[n] == (p.argmax(-1) == q.argmax(-1)).mean()
            overlap = 1 - np.abs(p - q).sum(-1).mean() / 2
            assert likes.acceptance[n] == pytest.approx(overlap, rel=1e-4)
    near, far = found
    assert near.kl.mean() < far.kl.mean() and near.acceptance.mean() > far.acceptance.mean()
    assert 0 < near.agreement.mean() < 1, "the case must tell"


def test_a_model_is_like_itself(models: list[LocalModel], rows: list[Asked]) -> None:
    for model in models:
        (itself,) = likeness(model, [model], rows)
        np.testing.assert_allclose(itself.kl, 0, atol=1e-6)
        np.testing.assert_allclose(itself.acceptance, 1, atol=1e-6)
        assert (itself.agreement == 1).all()


def test_another_tokenizer_cannot_be_compared(
    models: list[LocalModel], rows: list[Asked], tmp_path: Path
) -> None:
    other = make_tokenizer(["completely different words, of which it has learnt others"] * 9)
    stranger = load(save(network(vocab_size=len(other)), tmp_path / "stranger", other))
    with pytest.raises(InputError, match="stranger has another tokenizer than tiny"):
        likeness(models[0], [models[1], stranger], rows)


def test_likelihood_is_the_mean_log_probability_a_token(
    models: list[LocalModel], rows: list[Asked]
) -> None:
    means: list[float] = []
    for model in models:
        found = likelihood(model, rows)
        wanted = [
            np.mean([dense(model, one)[t, token] for t, token in enumerate(one[1].token_ids)])
            for one in rows
        ]
        np.testing.assert_allclose(found, wanted, rtol=1e-4)
        means.append(found.mean())
    assert means[0] > means[2], "the answers are the teacher's own"


class Runner:
    """Answers with as many answers as prompts, and notes who ran when."""

    def __init__(self, name: str, log: list[tuple[str, list[str]]]) -> None:
        self.name, self.log = name, log

    def generate(self, some: Sequence[Prompt], _: Sampling) -> Iterator[list[Any]]:
        self.log.append((self.name, [p.id for p in some]))
        yield from ([answer] for _, answer in asked_of(some))


def asked_of(some: Sequence[Prompt]) -> list[Asked]:
    from limbeck.records import Answer, Usage

    blank = Answer(
        id="a", prompt_id="p", model="m", route="local", sampling=Sampling(), text="", reasoning="",
        tool_calls=(), token_ids=(), finish_reason="stop", usage=Usage(1, 3), outcome="kept",
    )  # fmt: skip
    return [(p, blank) for p in some]


def test_a_race_gives_all_the_same_batches_in_turn() -> None:
    log: list[tuple[str, list[str]]] = []
    runners = cast(list[LocalModel], [Runner("a", log), Runner("b", log)])
    some = prompts(7)
    ids = [p.id for p in some]
    ticks: list[None] = []
    speeds = race(runners, some, Sampling(), 3, lambda: ticks.append(None))
    warm, timed = log[:2], log[2:]
    assert warm == [("a", ids[:2]), ("b", ids[:2])]
    assert timed == [
        ("a", ids[:3]), ("b", ids[:3]), ("b", ids[3:6]), ("a", ids[3:6]), ("a", ids[6:]),
        ("b", ids[6:]),
    ]  # fmt: skip
    assert len(ticks) == 3
    np.testing.assert_allclose(speeds.tokens_per_s, 3 * speeds.answers_per_s)
    assert speeds.answers_per_s.shape == (2, 3) and (speeds.answers_per_s > 0).all()


def test_divergence_from_targets_is_the_plain_definition(
    models: list[LocalModel], rows: list[Asked]
) -> None:
    """Over the tokens kept and one outcome for the rest, in float64 from whole distributions."""
    teacher, student, _ = models
    targets = {t.answer_id: t for t in teacher.score(rows, 4, 1.0)}

    def told(some: Sequence[Asked]) -> dict[str, Any]:
        names = ("top_ids", "logprobs", "tail")
        return {n: np.concatenate([getattr(targets[a.id], n) for _, a in some]) for n in names}

    for one, kl in zip(rows, divergence_from(told, student, rows), strict=True):
        kept = targets[one[1].id].top_ids
        outcomes = []
        for model in (teacher, student):
            p = np.exp(dense(model, one))
            head = np.take_along_axis(p, kept, -1)
            outcomes.append(np.concatenate([head, 1 - head.sum(-1, keepdims=True)], -1))
        wanted = (outcomes[0] * np.log(outcomes[0] / outcomes[1])).sum(-1).mean()
        assert kl == pytest.approx(wanted, rel=1e-3)
    assert divergence_from(told, teacher, rows) == pytest.approx(0, abs=1e-5)
