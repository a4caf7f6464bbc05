"""Batch queues: nothing lost, and nothing handed over twice, whatever breaks and whoever comes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asking import SAMPLING, prompts, way
from batches import BatchProvider
from limbeck.collect.ask import Asking, missing, stored
from limbeck.collect.batches import Desk, Queue
from limbeck.collect.store import AnswerStore
from limbeck.errors import InputError, LimbeckError, ServiceError
from limbeck.models import batches as models
from limbeck.models.batches import BatchService
from limbeck.models.budget import Price, Purse
from limbeck.records import Answer
from provider import answer_to

N = 40
DIALECTS = pytest.mark.parametrize("dialect", ["openai", "anthropic"])


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchProvider]:
    monkeypatch.setattr("limbeck.collect.batches.FIRST_LOOK", 0.01)
    monkeypatch.setattr("limbeck.collect.batches.MOST_LINES", 15)
    monkeypatch.setattr(models, "LONGEST_WAIT", 0.01)
    running = BatchProvider()
    with running:
        yield running


def come(
    provider: BatchProvider,
    folder: Path,
    dialect: str = "openai",
    *,
    n: int = N,
    leave: bool = False,
    money: Purse | None = None,
) -> list[Answer]:
    """One process's turn at the queue; what is stored afterwards."""
    where = way(provider, dialect)
    asking = Asking(where.model, where.name, SAMPLING)
    purse = money or Purse(None)
    with AnswerStore(folder / "answers.sqlite") as store:
        for used in store.spent(where.model, where.name):
            purse.spend(used)
        with BatchService(where) as service:
            desk = Desk(where, asking, store, purse, service)
            desk.collect(lambda: prompts(n), leave=leave)
        return stored(prompts(n), asking, store)


def stopped(provider: BatchProvider, folder: Path, dialect: str = "openai", **how: Any) -> str:
    """The same where it ends in an error; returns which."""
    with pytest.raises(LimbeckError) as caught:
        come(provider, folder, dialect, **how)
    return str(caught.value)


def all_right(answers: list[Answer], n: int = N) -> bool:
    asked = {p.id: p.messages[-1].content for p in prompts(n)}
    assert not any(a.usage.lost_out for a in answers)
    return len(answers) == n and all(
        a.outcome == "kept" and a.text == answer_to(asked[a.prompt_id]) and a.usage.batch
        for a in answers
    )


def clean(folder: Path) -> bool:
    return not (folder / "answers.sqlite.batches").exists()


@DIALECTS
def test_handed_over_waited_for_and_stored(
    provider: BatchProvider, tmp_path: Path, dialect: str
) -> None:
    provider.queueing.looks = 3
    assert all_right(come(provider, tmp_path, dialect))
    assert [len(b.lines) for b in provider.batches.values()] == [15, 15, 10]
    assert set(provider.billed.values()) == {1} and len(provider.billed) == N
    assert clean(tmp_path)
    come(provider, tmp_path, dialect)
    assert len(provider.batches) == 3


@DIALECTS
def test_another_process_comes_back_for_them(
    provider: BatchProvider, tmp_path: Path, dialect: str
) -> None:
    provider.queueing.looks = 3
    for _ in range(3):
        assert "40 questions are in 3 batches" in stopped(provider, tmp_path, dialect, leave=True)
    assert all_right(come(provider, tmp_path, dialect, leave=True))
    assert len(provider.batches) == 3 and clean(tmp_path)


@DIALECTS
def test_what_an_expired_batch_answered_is_kept_and_the_rest_handed_over_again(
    provider: BatchProvider, tmp_path: Path, dialect: str
) -> None:
    provider.queueing.ends = ["expired", "", "expired"]
    assert all_right(come(provider, tmp_path, dialect))
    assert sum(len(b.lines) for b in provider.batches.values()) == N + 7 + 5
    assert set(provider.billed.values()) == {1} and clean(tmp_path)


@DIALECTS
def test_what_always_expires_ends_in_one_outcome_and_may_be_tried_again(
    provider: BatchProvider, tmp_path: Path, dialect: str
) -> None:
    provider.queueing.ends, provider.queueing.left = ["expired"] * 3, 1.0
    answers = come(provider, tmp_path, dialect, n=10)
    assert {(a.outcome, a.finish_reason) for a in answers} == {("failed", "error")}
    assert {a.why for a in answers} == {"handed over 3 times, and never answered"}
    assert len(provider.batches) == 3 and clean(tmp_path)
    assert all_right(come(provider, tmp_path, dialect, n=10), 10)


@DIALECTS
def test_rows_fail_each_for_itself(provider: BatchProvider, tmp_path: Path, dialect: str) -> None:
    asked = [p.messages[-1].content for p in prompts(N)]
    provider.queueing.rows = {asked[3]: "400", asked[4]: "500", asked[5]: "broken"}
    answers = come(provider, tmp_path, dialect)
    assert (answers[3].outcome, answers[3].finish_reason) == ("failed", "denied")
    assert "not to our taste" in answers[3].why
    assert answers[5].usage.lost_out == SAMPLING.max_tokens
    assert [a.outcome for a in answers].count("kept") == N - 1
    assert provider.billed[asked[5]] == 2 and provider.billed.total() == N
    assert clean(tmp_path)


@DIALECTS
def test_a_hand_over_that_breaks_off_is_looked_for_before_it_is_tried_again(
    provider: BatchProvider, tmp_path: Path, dialect: str
) -> None:
    provider.queueing.created = ["reset", "deaf", "500", "429", "", "reset"]
    assert all_right(come(provider, tmp_path, dialect))
    assert set(provider.billed.values()) == {1} and clean(tmp_path)
    assert len(provider.batches) == 3


@DIALECTS
def test_stopped_between_hand_over_and_record_it_is_found_again(
    provider: BatchProvider, tmp_path: Path, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(BatchService, "_create", _killed_after(BatchService._create))  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(KeyboardInterrupt):
            come(provider, tmp_path, dialect)
    assert len(provider.batches) == 1
    assert all_right(come(provider, tmp_path, dialect))
    assert set(provider.billed.values()) == {1} and clean(tmp_path)


def _killed_after(real: object):
    def create(*told: object) -> str:
        real(*told)  # pyright: ignore[reportCallIssue]
        raise KeyboardInterrupt

    return create


@DIALECTS
def test_results_that_break_off_are_fetched_again(
    provider: BatchProvider, tmp_path: Path, dialect: str
) -> None:
    provider.queueing.results = ["reset", "reset"]
    assert all_right(come(provider, tmp_path, dialect))
    provider.queueing.results = ["no json"]
    told = stopped(provider, tmp_path, dialect, n=N + 5)
    assert "is none" in told and "<html>" in told
    assert all_right(come(provider, tmp_path, dialect, n=N + 5), N + 5)
    assert set(provider.billed.values()) == {1} and clean(tmp_path)


def test_a_full_queue_is_waited_for_and_said_when_it_stays_full(
    provider: BatchProvider, tmp_path: Path
) -> None:
    provider.queueing.ends = ["", "full", "full"]
    assert all_right(come(provider, tmp_path))
    provider.queueing.ends = ["full"]
    assert "Enqueued token limit" in stopped(provider, tmp_path, n=N + 5)
    provider.queueing.ends = ["failed"]
    assert "refused the batch" in stopped(provider, tmp_path, n=N + 5)
    assert all_right(come(provider, tmp_path, n=N + 5), N + 5)
    assert set(provider.billed.values()) == {1} and clean(tmp_path)


def test_the_budget_holds_at_the_batch_price_and_in_every_process(
    provider: BatchProvider, tmp_path: Path
) -> None:
    price = Price(1.0, 2.0, 1.0, "here", batch=0.5)
    one = Purse(price)
    for name in ("whole", "half"):
        (tmp_path / name).mkdir()
    come(provider, tmp_path / "whole", money=one)
    written = provider.counts.tokens_out  # at twice the price of those read
    assert one.dollars == pytest.approx(0.5 * (one.tokens + written) / 1e6)
    cap, asked = one.dollars / 2, Counts(provider)
    for _ in range(3):
        capped = Purse(price, most_dollars=cap)
        with pytest.raises(ServiceError, match="budget is spent"):
            come(provider, tmp_path / "half", money=capped)
        assert 0 < capped.dollars <= cap
    assert 0 < asked.new() < N and clean(tmp_path / "half")


class Counts:
    """Answers that were made since."""

    def __init__(self, provider: BatchProvider) -> None:
        self.provider, self.before = provider, provider.billed.total()

    def new(self) -> int:
        return self.provider.billed.total() - self.before


def test_nothing_is_asked_live_while_it_is_under_way(
    provider: BatchProvider, tmp_path: Path
) -> None:
    provider.queueing.looks = 2
    stopped(provider, tmp_path, leave=True)
    where = way(provider)
    wanted = pytest.raises(InputError, match="40 questions to teacher are in batches under way")
    with AnswerStore(tmp_path / "answers.sqlite") as store, wanted:
        Queue(store.path, where).refuse_live(store)
    records = {p: p.read_text() for p in (tmp_path / "answers.sqlite.batches").iterdir()}
    come(provider, tmp_path)
    for path, text in records.items():  # as a process leaves it that is stopped in between
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        asking = Asking(where.model, where.name, SAMPLING)
        assert not list(missing(prompts(N), asking, store))
        Queue(store.path, where).refuse_live(store)
    assert clean(tmp_path)


def test_a_damaged_record_and_a_wrong_key_and_no_queue(
    provider: BatchProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "answers.sqlite.batches"
    folder.mkdir()
    (folder / "x.json").write_text("{")
    assert "x.json is damaged" in stopped(provider, tmp_path)
    (folder / "x.json").unlink()
    provider.change(key="another")
    assert "wants a key" in stopped(provider, tmp_path)
    assert not list(folder.iterdir()) if folder.exists() else True
    with pytest.raises(InputError, match="no batch queue"):
        BatchService(way(provider, "gemini"))


def test_a_truncated_answer_is_one(provider: BatchProvider, tmp_path: Path) -> None:
    provider.change(words=100)
    began = time.time()
    answers = come(provider, tmp_path, n=5)
    assert {(a.outcome, a.why) for a in answers} == {("truncated", "longer than 64 tokens")}
    assert time.time() - began < 60
