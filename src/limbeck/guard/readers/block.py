"""What every reader gives: a few thousand rows of a log, under canonical names, not yet checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from limbeck.guard.arrow import Array, Table, pa

ROWS = 65_536
BYTES = 32 << 20
"""A block holds about so many rows, or bytes, at most."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that could not even be read."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows of one file.

    Attributes:
        source: The file, or table, as the user would name it.
        rows: Place of each row in it, from 1; of spans, the line's.
        columns: By canonical name, of whatever type the log had; others are left out.
        bad: Rows that are in no column.
        skipped: Entries that are no calls at all, as spans of something else.
    """

    source: str
    rows: Array
    columns: Table
    bad: tuple[Bad, ...] = field(default=())
    skipped: int = 0


def table(names: Iterable[str], rows: list[Mapping[str, Any]]) -> Table:
    """A table of the columns `names` from rows of Python values, whatever their types."""
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pa.table({name: array(values) for name, values in columns.items()})


def array(values: list[Any]) -> Array:
    """An Arrow array of `values`; as text where they are of several types, or nested."""
    try:
        made = pa.array(values)
        if not pa.types.is_nested(made.type):
            return made
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        pass
    return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def text_of(messages: Any) -> str | None:
    """The text that a list of chat messages asks with: what is not the assistant's, in order.

    Takes a string too, or JSON of either; contents may be text, or parts with `text` or `content`.
    """
    if isinstance(messages, str):
        start = messages.lstrip()[:1]
        if start not in ("[", "{"):
            return messages or None
        try:
            parsed = json.loads(messages)
        except (ValueError, RecursionError):
            return messages
        return text_of(parsed) if isinstance(parsed, list) else _of_object(parsed, messages)
    if not isinstance(messages, list):
        return None
    texts: list[str] = []
    for message in _listed(messages):
        if not isinstance(message, dict):
            texts.append(str(message))
        elif _mapped(message).get("role") != "assistant":
            texts += _content(_mapped(message))
    return "\n".join(texts) or None


def _of_object(parsed: Any, otherwise: str) -> str | None:
    if not parsed:
        return None  # "{}", as LiteLLM writes where prompts are off
    return text_of(parsed.get("messages")) or otherwise


def _content(message: Mapping[str, Any]) -> list[str]:
    for name in ("content", "parts", "text"):
        value = message.get(name)
        if isinstance(value, str):
            return [value]
        if isinstance(value, list):
            texts: list[str] = []
            for part in _listed(value):
                if isinstance(part, str):
                    texts.append(part)
                elif isinstance(part, dict):
                    texts += _content(_mapped(part))
            return texts
    return []


def _listed(value: Any) -> list[Any]:
    return value


def _mapped(value: Any) -> Mapping[str, Any]:
    return value
