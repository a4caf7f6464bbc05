from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_store import answer

from asking import prompts
from limbeck.collect.ask import Asking
from limbeck.collect.listing import export, line, messages, rows
from limbeck.collect.store import AnswerStore
from limbeck.errors import InputError
from limbeck.records import Message, Prompt, Sampling

ASKING = Asking("model", "local", Sampling())


@pytest.fixture
def some(tmp_path: Path) -> tuple[list[Prompt], AnswerStore]:
    asked = list(prompts(5))
    turns = (Message("system", "Be brief."), Message("user", "And?"))
    asked.append(Prompt(Prompt.identify(turns), turns, "p:6", "held_out"))
    store = AnswerStore(tmp_path / "a.sqlite")
    made = [answer(p.id, f"Says {n}.") for n, p in enumerate(asked)]
    made[1] = replace(made[1], outcome="refused", why="begins with 'I'")
    store.add([*made[:2], *made[3:]])
    return asked, store


def test_a_row_a_prompt_in_order(some: tuple[list[Prompt], AnswerStore]) -> None:
    found = list(rows(some[0], ASKING, some[1]))
    assert [row["outcome"] for row in found] == [
        *("kept", "refused", "unasked", "kept", "kept", "kept")
    ]
    assert found[0]["prompt"] == "What is number 0?" and found[0]["text"] == "Says 0."
    assert found[0]["usage"] == {"tokens_in": 4, "tokens_out": 3}
    assert found[1]["reason"] == "begins with 'I'"
    assert found[5]["prompt"][0] == {"role": "system", "content": "Be brief."}
    assert "refused" in line(found[1]) and "Says 1." in line(found[1])
    (only,) = rows(some[0], ASKING, some[1], "refused")
    assert only == found[1]
    with pytest.raises(InputError, match="kept, rejected"):
        list(rows(some[0], ASKING, some[1], "good"))


def test_exports_hold_the_same(some: tuple[list[Prompt], AnswerStore], tmp_path: Path) -> None:
    def found() -> list[dict]:
        return list(rows(some[0], ASKING, some[1]))

    assert export(found(), tmp_path / "a.jsonl") == 6
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(one) for one in lines] == found()
    assert export(found(), tmp_path / "a.parquet") == 6
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row["text"] for row in table] == [row["text"] for row in found()]
    assert json.loads(table[5]["prompt"]) == found()[5]["prompt"]
    with pytest.raises(InputError, match=r"\.csv is neither"):
        export(found(), tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()


def test_messages_are_the_kept_conversations(
    some: tuple[list[Prompt], AnswerStore], tmp_path: Path
) -> None:
    found = list(messages(rows(some[0], ASKING, some[1])))
    assert len(found) == 4
    assert found[-1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Says 5."},
    ]
    export(iter(found), tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet").to_pylist()
    said = [
        [{k: v for k, v in m.items() if v is not None} for m in row["messages"]] for row in table
    ]
    assert said == [row["messages"] for row in found]
