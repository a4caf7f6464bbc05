from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from asking import SAMPLING, prompts, way
from limbeck.collect.probe import Probe, genuine, probe
from limbeck.collect.service import ask_service
from limbeck.collect.store import AnswerStore
from limbeck.errors import InputError, ServiceError
from limbeck.models.budget import Purse
from limbeck.models.pace import Pace
from limbeck.recipe import parse_recipe
from provider import Behaviour, Provider


class Quick(Pace):
    def backoff(self, tries: int) -> float:
        return 0.001


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(Behaviour(context=4096)) as running:
        yield running


def found(provider: Provider, dialect: str = "openai", purse: Purse | None = None) -> Probe:
    return probe(way(provider, dialect), SAMPLING, purse or Purse(None), Quick(random=Random(1)))


def test_what_an_openai_server_can_do(provider: Provider) -> None:
    provider.change(logprobs="real", most_logprobs=5)
    seen = found(provider)
    assert (seen.streams, seen.logprobs, seen.fake) == (True, 5, "")
    assert (seen.context, seen.output, seen.system, seen.reasons) == (4096, None, True, False)
    assert provider.counts.requests == 2
    assert seen.tokens_in >= provider.counts.tokens_in


@pytest.mark.parametrize(
    ("kind", "said"),
    [("zeros", "every one is 0"), ("-9999", "every one is -9999"), ("none", ""), ("refused", "")],
)
def test_fake_and_missing_logprobs(provider: Provider, kind: str, said: str) -> None:
    provider.change(logprobs=kind)
    seen = found(provider)
    assert seen.logprobs == 0
    assert said in seen.fake and bool(said) == bool(seen.fake)


@pytest.mark.parametrize("dialect", ["anthropic", "gemini"])
def test_the_other_dialects(provider: Provider, dialect: str) -> None:
    provider.change(reasoning="Hm.")
    seen = found(provider, dialect)
    assert (seen.logprobs, seen.system, seen.reasons) == (0, True, True)
    assert seen.streams is (True if dialect == "anthropic" else None)
    assert seen.context == 4096


def test_an_unheeded_system_message_is_seen(provider: Provider) -> None:
    provider.change(system=False)
    assert found(provider).system is False


def test_it_survives_faults(provider: Provider) -> None:
    provider.change(faults={"503": 0.3, "truncated": 0.3, "reset before": 0.2}, most_faults=3)
    assert found(provider).streams is not False


def test_what_is_wrong_is_said_before_the_run(provider: Provider) -> None:
    provider.change(models=("other",))
    with pytest.raises(InputError, match="teacher"):
        found(provider)
    provider.change(models=(), faults={"400": 1.0}, most_faults=99)
    with pytest.raises(InputError, match=r"refuses a plain question.*not to our taste"):
        found(provider)
    provider.change(faults={"503": 1.0})
    with pytest.raises(ServiceError, match="no answer in 5 tries"):
        found(provider)


def test_it_stays_within_the_purse(provider: Provider) -> None:
    with pytest.raises(InputError, match=r"budget\.tokens"):
        found(provider, purse=Purse(None, None, 50))
    assert provider.counts.requests == 0


REAL = [[-0.1, -0.1, -2.5, -4.0], [-1.2, -0.4, -1.2, -9999.0]]


@pytest.mark.parametrize(
    ("told", "many", "fake"),
    [
        (REAL, 3, ""),
        ([], 0, ""),
        ([[-0.1]], 0, ""),
        ([[0.0, 0.0, 0.0]] * 4, 0, "every one is 0"),
        ([[-9999.0, -9999.0, -9999.0]] * 4, 0, "every one is -9999"),
        ([[0.0, 0.0, -9999.0, -9999.0]] * 4, 0, "no two"),
        ([[0.5, 0.5, -1.0]], 0, "above 0"),
        ([[float("nan"), -1.0, -2.0]], 0, "not finite"),
        ([[-0.1, -0.1, -0.2, -0.3]], 0, "more than 1"),
    ],
)
def test_real_logprobs_are_told_from_fake_ones(
    told: list[list[float]], many: int, fake: str
) -> None:
    number, said = genuine(told)
    assert number == many
    assert fake in said and bool(fake) == bool(said)


# -- the collect stage of a service ---------------------------------------------------------------


def recipe(provider: Provider, **sections: dict[str, object]) -> object:
    table = {
        "name": "r",
        "teacher": {"model": "teacher", "url": provider.url, "max_tokens": 64},
        "prompts": {"source": "p.jsonl"},
        "student": {"base": "some/model"},
        "train": {"steps": 1},
    }
    for name, section in sections.items():
        table[name] = {**table.get(name, {}), **section}  # type: ignore[dict-item]  # pyright: ignore[reportGeneralTypeIssues]
    return parse_recipe(table)


def run(provider: Provider, folder: Path, n: int = 30, /, **sections: Any) -> int:
    with AnswerStore(folder / "a.sqlite") as store:
        return ask_service(recipe(provider, **sections), lambda: prompts(n), store, folder)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_it_probes_once_and_asks_once(provider: Provider, tmp_path: Path) -> None:
    assert run(provider, tmp_path) == 30
    assert json.loads((tmp_path / "probe.json").read_text())["system"] is True
    assert provider.counts.requests == 30 + 2
    assert run(provider, tmp_path) == 0
    assert run(provider, tmp_path, 40) == 10
    assert provider.counts.requests == 40 + 2


def test_unrelated_settings_never_ask_again(provider: Provider, tmp_path: Path) -> None:
    run(provider, tmp_path)
    for sections in (
        {"train": {"steps": 2}},
        {"teacher": {"in_flight": 3, "batch_size": 2}},
        {"budget": {"tokens": 10**9}},
        {"prompts": {"held_out": 0.3}},
    ):
        assert run(provider, tmp_path, **sections) == 0
    greedy = {"teacher": {"temperature": 0}}
    assert run(provider, tmp_path, **greedy) == 30
    table = {"name": "r", "seed": 5, "teacher": {"temperature": 0, "top_p": 0.5}}
    assert run(provider, tmp_path, teacher=table["teacher"]) == 0  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_truncated_answers_are_asked_for_once_more(provider: Provider, tmp_path: Path) -> None:
    provider.change(words=100)
    short = {"teacher": {"max_tokens": 40, "max_tokens_again": 120}}
    assert run(provider, tmp_path, **short) == 60
    caps = [asked.cap for asked in provider.seen if "number" in asked.prompt]
    assert sorted(caps) == [40] * 30 + [120] * 30
    assert run(provider, tmp_path, **short) == 0
    never = {"teacher": {"max_tokens": 30, "max_tokens_again": 30}}
    assert run(provider, tmp_path, **never) == 30
    still = {"teacher": {"max_tokens": 40, "max_tokens_again": 60}}
    assert run(provider, tmp_path, **still) == 30  # of which none ends
    assert run(provider, tmp_path, **still) == 0


def test_a_teacher_that_always_refuses_is_not_asked_for_ever(
    provider: Provider, tmp_path: Path
) -> None:
    provider.change(faults={"refusal": 1.0}, most_faults=99, latency=0.01)
    with pytest.raises(InputError, match="refused all of"):
        run(provider, tmp_path, 5000)
    assert provider.counts.requests < 1000


def test_the_budget_counts_what_was_spent_before(provider: Provider, tmp_path: Path) -> None:
    capped = {"budget": {"tokens": 3000}, "teacher": {"in_flight": 4}}
    with pytest.raises(ServiceError, match="budget is spent"):
        run(provider, tmp_path, 200, **capped)
    first = provider.counts.requests
    with pytest.raises(ServiceError, match="budget is spent"):
        run(provider, tmp_path, 200, **capped)
    assert provider.counts.requests == first
    used = provider.counts.tokens_in + provider.counts.tokens_out
    assert used <= 3000
    assert run(provider, tmp_path, 200, budget={"tokens": 10**6}) == 200 - (first - 2)
    assert provider.counts.paid_twice == 1  # the probe's own question
