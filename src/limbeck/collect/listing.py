"""The answers of a run, one row a prompt: to look through, and to take elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from limbeck.collect.ask import Asking, grouped
from limbeck.collect.store import AnswerStore
from limbeck.errors import InputError
from limbeck.files import whole_file
from limbeck.models.tools import call_table, tool_table, turn
from limbeck.records import OUTCOMES, Answer, Prompt

Format: TypeAlias = Literal["rows", "messages"]
CHUNK = 5000  # rows of a Parquet row group
UNASKED = "unasked"


def rows(
    prompts: Iterable[Prompt], asking: Asking, store: AnswerStore, outcome: str | None = None
) -> Iterator[dict[str, Any]]:
    """A row for each prompt: prompt, text, outcome, reason, usage, reasoning, split.

    `prompt` is the text of a single user message, else the messages. A prompt that has no answer
    yet has the outcome `unasked`. Where there are several samples, each has a row, and its number
    in `sample`; `tools` and `tool_calls` are there where the prompt has tools. With `outcome`, only
    those that ended so.
    """
    if outcome is not None and outcome not in (*OUTCOMES, UNASKED):
        known = ", ".join((*OUTCOMES, UNASKED))
        raise InputError(f"--outcome {outcome} is none of: {known}")
    for prompt, answers in grouped(prompts, asking, store):
        for number, answer in enumerate(answers):
            row = _row(prompt, answer) | ({"sample": number} if asking.samples > 1 else {})
            if outcome is None or row["outcome"] == outcome:
                yield row


def messages(
    found: Iterable[Mapping[str, Any]], *, reasoning: bool = False
) -> Iterator[dict[str, Any]]:
    """The kept rows as conversations: {"messages": [{"role", "content"}…]}, the answer last.

    Calls stand in `tool_calls` of a message and what may be called in `tools`, as chat templates
    read them; with `reasoning`, that of the answer in its `reasoning_content`.
    """
    for row in found:
        if row["outcome"] == "kept":
            asked = row["prompt"]
            turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
            said = {"role": "assistant", "content": row["text"]}
            if row.get("tool_calls"):
                said["tool_calls"] = row["tool_calls"]
            if reasoning and row["reasoning"]:
                said["reasoning_content"] = row["reasoning"]
            tools = {"tools": row["tools"]} if "tools" in row else {}
            yield {"messages": [*turns, said], **tools}


def export(found: Iterable[dict[str, Any]], path: Path) -> int:
    """Write rows as .jsonl or .parquet, whole or not at all; returns how many."""
    match path.suffix.lower():
        case ".jsonl":
            with whole_file(path) as part:
                return _jsonl(found, part)
        case ".parquet":
            with whole_file(path) as part:
                return _parquet(found, part)
        case suffix:
            raise InputError(
                f"--export {path}: {suffix or 'no suffix'} is neither .jsonl nor .parquet"
            )


def line(row: Mapping[str, Any]) -> str:
    """A row for a terminal."""
    asked = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
    reason = f" ({row['reason']})" if row["reason"] else ""
    calls = (call["function"] for call in row.get("tool_calls", ()))
    called = [f"{call['name']}({json.dumps(call['arguments'])})" for call in calls]
    said = " ".join(filter(None, (row["text"], *called)))
    return f"{row['outcome']:>9}{reason}  {_short(asked)}  →  {_short(said)}"


def _row(prompt: Prompt, answer: Answer | None) -> dict[str, Any]:
    turns = [turn(message) for message in prompt.messages]
    alone = len(turns) == 1 and turns[0]["role"] == "user"
    told: dict[str, Any] = {"prompt": turns[0]["content"] if alone else turns}
    if prompt.tools:
        calls = answer.tool_calls if answer else ()
        told["tools"] = [tool_table(tool) for tool in prompt.tools]
        told["tool_calls"] = [call_table(call) for call in calls]
    if answer is None:
        empty = {"text": "", "outcome": UNASKED, "reason": "", "usage": None, "reasoning": ""}
        return told | empty | {"split": prompt.split}
    usage = answer.usage
    return told | {
        "text": answer.text,
        "outcome": answer.outcome,
        "reason": answer.why,
        "usage": {"tokens_in": usage.tokens_in, "tokens_out": usage.tokens_out},
        "reasoning": answer.reasoning,
        "split": prompt.split,
    }


def _jsonl(found: Iterable[dict[str, Any]], part: Path) -> int:
    number = 0
    with part.open("w", encoding="utf-8", newline="\n") as file:
        for row in found:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            number += 1
    return number


def _parquet(found: Iterable[dict[str, Any]], part: Path) -> int:
    """As JSONL, but that tables of no one shape are their JSON: a column has one type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    usage = pa.struct([("tokens_in", pa.int64()), ("tokens_out", pa.int64())])
    text = ["prompt", "text", "outcome", "reason", "reasoning", "split"]
    remaining = iter(found)
    first = list(islice(remaining, CHUNK))
    if first and "messages" in first[0]:
        fields = ("role", "content", "tool_calls", "tool_call_id", "reasoning_content")
        turns = pa.list_(pa.struct([(name, pa.string()) for name in fields]))
        schema = pa.schema([("messages", turns), ("tools", pa.string())])
    else:
        text += ["tools", "tool_calls"]
        columns = [*((name, pa.string()) for name in text), ("usage", usage)]
        schema = pa.schema([*columns, ("sample", pa.int64())])
    number, some = 0, first
    with pq.ParquetWriter(part, schema) as writer:
        while some:
            writer.write_table(pa.Table.from_pylist([_flat(row) for row in some], schema))
            number += len(some)
            some = list(islice(remaining, CHUNK))
    return number


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose prompt of several messages, tools and calls are JSON."""
    told = dict(row)
    for name in ("prompt", "tools", "tool_calls"):
        if not isinstance(told.get(name, ""), str):
            told[name] = json.dumps(told[name], ensure_ascii=False)
    if "messages" in told:
        told["messages"] = [_flat(message) for message in told["messages"]]
    return told


def _short(text: str, width: int = 60) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= width else plain[: width - 1] + "…"
