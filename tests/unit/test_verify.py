from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from limbeck.collect.verify import REFUSAL, verified
from limbeck.records import Answer, Sampling, Usage

DATA = Path(
    os.environ.get("LIMBECK_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
)


def outcome(text: str, finish_reason: str = "stop") -> tuple[str, str]:
    answer = Answer(
        id="a", prompt_id="p", model="m", route="local", sampling=Sampling(max_tokens=40),
        text=text, reasoning="", tool_calls=(), token_ids=(1,), finish_reason=finish_reason,
        usage=Usage(1, 1), outcome="kept",
    )  # fmt: skip
    found = verified(answer)
    return found.outcome, found.why


def completions(model: str) -> list[tuple[str, str]]:
    """XSTest completions with their label: full compliance, full refusal or partial refusal."""
    path = DATA / f"xstest-completions-{model}.csv"
    if not path.exists():
        pytest.skip(f"needs {path.name}")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 450
    return [(row["completion"].strip(), row["final_label"]) for row in rows]


@pytest.mark.parametrize(
    "model, recall, false_alarms",
    [
        # Measured: 267 of 294 refusals are found, and 10 of 101 compliances taken for one. What
        # is missed argues ("I don't think it's appropriate") instead of declining.
        ("llama2orig", 0.90, 0.10),
        # Measured: 3 of 49, and 2 of 374; this model hardly ever declines in so many words.
        ("mistralinstruct", 0.06, 0.01),
    ],
)
def test_refusals_are_told_from_compliance(model: str, recall: float, false_alarms: float) -> None:
    rows = completions(model)
    refused = [bool(REFUSAL.match(text)) for text, label in rows if label == "2_full_refusal"]
    complied = [bool(REFUSAL.match(text)) for text, label in rows if label == "1_full_compliance"]
    assert sum(refused) / len(refused) >= recall
    assert sum(complied) / len(complied) <= false_alarms
    if model == "llama2orig":
        assert sum(refused) / (sum(refused) + sum(complied)) >= 0.96


def test_long_answers_are_seldom_taken_for_loops() -> None:
    # Long enumerations repeat a phrase; measured: 22 of 900, and none is a loop.
    rows = [*completions("llama2orig"), *completions("mistralinstruct")]
    found = [outcome(text) for text, _ in rows]
    assert sum(why.startswith("repeats") for _, why in found) / len(rows) <= 0.03
    assert all(kind in ("kept", "refused", "rejected") for kind, _ in found)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m very sorry, I cannot do this.",
        "I cannot provide that.",
        "I can't.",
        "Sorry, but I am not able to.",
        "I apologize, but no.",
        "As an AI language model, I have no opinion.",
        "Unfortunately, I cannot say.",
        "I won't do that.",
        '"I must decline."',
    ],
)
def test_declining_is_a_refusal_that_says_how_it_began(text: str) -> None:
    kind, why = outcome(text)
    assert kind == "refused" and why.startswith("begins with ")


@pytest.mark.parametrize(
    "text",
    [
        "It is four.",
        "I can help with that.",
        "I am glad you asked. I'm sorry is how one apologises in English.",
        "Ask: I cannot swim, can you?",
        "Iceland cannot be reached by train.",
        "An AI language model is a program.",
    ],
)
def test_an_answer_is_kept(text: str) -> None:
    assert outcome(text) == ("kept", "")


def test_what_is_wrong_with_an_answer_is_said_in_one_outcome() -> None:
    assert outcome("") == ("failed", "empty answer")
    assert outcome("", "length") == ("truncated", "longer than 40 tokens")  # all of it reasoning
    assert outcome("It is", "length") == ("truncated", "longer than 40 tokens")
    assert outcome("I cannot", "length")[0] == "truncated"
    assert outcome("I cannot. " + "no no no no " * 5)[0] == "refused"


def test_going_in_circles_is_rejected_with_what_is_repeated() -> None:
    assert outcome("The answer is four. " * 4) == ("rejected", "repeats 'the answer is four.'")
    assert outcome("the answer is four. " * 3)[0] == "kept"
    assert outcome("ha " * 7)[0] == "rejected"
    assert outcome("ha " * 6)[0] == "kept"
    assert outcome("one two three")[0] == "kept"
