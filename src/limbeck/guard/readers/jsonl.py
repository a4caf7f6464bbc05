"""JSON Lines, plain or compressed: one object a line. A prompt may be text or chat messages."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

from limbeck.errors import InputError, first_line
from limbeck.guard.arrow import pa
from limbeck.guard.readers.block import BYTES, ROWS, Bad, Block, table, text_of

Row = Mapping[str, Any]
SAMPLE = 1000
"""Lines by which a file is known; a name may come later for the first time."""


def names(path: Path, upto: int | None = None) -> list[str]:
    """The names in the file's objects, or in those among its first `upto` lines."""
    found: dict[str, None] = {}
    for _, row, _ in islice(rows(path), upto):
        if not isinstance(row, Bad):
            found |= dict.fromkeys(row)
    return list(found)


def read(path: Path, wanted: list[str]) -> Iterator[Block]:
    """The columns `wanted`, block by block."""
    good: list[Row] = []
    places: list[int] = []
    bad: list[Bad] = []
    size = 0

    def block() -> Block:
        made = Block(str(path), pa.array(places, pa.int64()), table(wanted, good), tuple(bad))
        for one in (good, places, bad):
            one.clear()
        return made

    for number, row, length in rows(path):
        size += length
        if isinstance(row, Bad):
            bad.append(row)
        else:
            if isinstance(row.get("prompt"), list):
                row = {**row, "prompt": text_of(row["prompt"])}
            good.append(row)
            places.append(number)
        if size > BYTES or len(good) + len(bad) >= ROWS:
            yield block()
            size = 0
    if good or bad:
        yield block()


def rows(path: Path) -> Iterator[tuple[int, Row | Bad, int]]:
    """Of each line that is not empty: its number, its object, the bytes that it took."""
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            for number, line in enumerate(io.BufferedReader(stream, 1 << 20), 1):
                if line.strip():
                    yield number, parsed(number, line), len(line)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None


def parsed(number: int, line: bytes) -> Row | Bad:
    """The object that a line holds."""
    try:
        value = json.loads(line.decode("utf-8-sig", "replace"))
    except json.JSONDecodeError as error:
        return Bad(number, f"no JSON: {error.msg}")  # without its place: a reason is counted
    except ValueError:
        return Bad(number, "no JSON: a number too long")
    except RecursionError:
        return Bad(number, "no JSON that can be read: nested too deeply")
    if not isinstance(value, dict):
        return Bad(number, "no JSON object")
    return cast(Row, value)
