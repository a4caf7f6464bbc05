"""The answers of a run, one row a prompt: to look through, and to take elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from limbeck.collect.ask import Asking, paired
from limbeck.collect.store import AnswerStore
from limbeck.errors import InputError
from limbeck.files import whole_file
from limbeck.records import OUTCOMES, Answer, Prompt

Format: TypeAlias = Literal["rows", "messages"]
CHUNK = 5000  # rows of a Parquet row group
UNASKED = "unasked"


def rows(
    prompts: Iterable[Prompt], asking: Asking, store: AnswerStore, outcome: str | None = None
) -> Iterator[dict[str, Any]]:
    """A row for each prompt: prompt, text, outcome, reason, usage, reasoning, split.

    `prompt` is the text of a single user message, else the messages. A prompt that has no answer
    yet has the outcome `unasked`. With `outcome`, only those that ended so.
    """
    if outcome is not None and outcome not in (*OUTCOMES, UNASKED):
        known = ", ".join((*OUTCOMES, UNASKED))
        raise InputError(f"--outcome {outcome} is none of: {known}")
    for prompt, answer in paired(prompts, asking, store):
        row = _row(prompt, answer)
        if outcome is None or row["outcome"] == outcome:
            yield row


def messages(found: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The kept rows as conversations: {"messages": [{"role", "content"}…]}, the answer last."""
    for row in found:
        if row["outcome"] == "kept":
            asked = row["prompt"]
            turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
            yield {"messages": [*turns, {"role": "assistant", "content": row["text"]}]}


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
    return f"{row['outcome']:>9}{reason}  {_short(asked)}  →  {_short(row['text'])}"


def _row(prompt: Prompt, answer: Answer | None) -> dict[str, Any]:
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
    alone = len(turns) == 1 and turns[0]["role"] == "user"
    told: dict[str, Any] = {"prompt": turns[0]["content"] if alone else turns}
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
    """As JSONL, but that a prompt of several messages is their JSON: a column has one type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    usage = pa.struct([("tokens_in", pa.int64()), ("tokens_out", pa.int64())])
    text = ("prompt", "text", "outcome", "reason", "reasoning", "split")
    remaining = iter(found)
    first = list(islice(remaining, CHUNK))
    if first and "messages" in first[0]:
        schema = pa.schema([("messages", turns)])
    else:
        schema = pa.schema([*((name, pa.string()) for name in text), ("usage", usage)])
    number, some = 0, first
    with pq.ParquetWriter(part, schema) as writer:
        while some:
            for row in some:
                if not isinstance(row.get("prompt", ""), str):
                    row["prompt"] = json.dumps(row["prompt"], ensure_ascii=False)
            writer.write_table(pa.Table.from_pylist(some, schema))
            number += len(some)
            some = list(islice(remaining, CHUNK))
    return number


def _short(text: str, width: int = 60) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= width else plain[: width - 1] + "…"
