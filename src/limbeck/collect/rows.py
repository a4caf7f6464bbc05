"""Rows out of files: JSONL, CSV, Parquet and plain text, each with the place where it stands."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from limbeck.collect import hub
from limbeck.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Row: TypeAlias = tuple[str, dict[str, Any]]
"""A place, as `file:row` with rows (in text files: lines) counted from 1, and the row's fields."""


def read_rows(source: str, fields: Sequence[str], others: Sequence[str]) -> Iterator[Row]:
    """The rows of a .jsonl, .csv, .parquet or .txt file, or hub:OWNER/NAME[@REVISION][:SPLIT].

    A line of plain text becomes the first of `fields`; blank lines are no rows. Of a Parquet file
    that has any of `fields`, only those and `others` are read. Raises InputError naming the file,
    the row and what to do.
    """
    if source.startswith(hub.PREFIX):
        for place, path in hub.parquet_files(source):
            yield from _parquet(path, place, fields, others)
        return
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".csv", ".parquet", ".txt"):
        raise InputError(
            f"{source}: unknown kind of file {suffix or 'without a suffix'}; "
            "known are .jsonl, .csv, .parquet, .txt and hub:OWNER/NAME[@REVISION][:SPLIT]."
        )
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(f"{source} {what}. Give prompts.source (or prompts.held_out) a file.")
    try:
        match suffix:
            case ".jsonl":
                yield from read_jsonl(path)
            case ".csv":
                yield from _csv(path)
            case ".parquet":
                yield from _parquet(path, source, fields, others)
            case _:
                for place, line in _lines(path):
                    if line.strip():
                        yield place, {fields[0]: line.strip()}
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror or error}") from None


def read_jsonl(path: Path) -> Iterator[Row]:
    """The objects of a JSONL file, one a line; blank lines are skipped."""
    for place, line in _lines(path):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except RecursionError:
            raise InputError(f"{place}: the JSON is nested too deeply.") from None
        except ValueError as error:
            raise InputError(f"{place}: not valid JSON ({error}).") from None
        if not isinstance(fields, dict):
            raise InputError(f"{place}: a row must be a JSON object, this is {kind(fields)}.")
        yield place, fields


def kind(value: Any) -> str:
    """What a value is, in words for an error."""
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"a value of type {type(value).__name__}"


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a UTF-8 file, with their places; a byte order mark is taken off."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield f"{path}:{number}", line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}:{number}: not valid UTF-8 at byte {error.start + 1} of the line; "
                    "save the file as UTF-8."
                ) from None


def _csv(path: Path) -> Iterator[Row]:
    """The rows of a CSV file with a header; a row that spans lines stands on its first."""
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    first, header = 1, None
    try:
        for cells in reader:
            place, first = f"{path}:{first}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    raise InputError(f"{place}: a column name stands twice in the header.")
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"{place}: {len(cells)} cells under a header of {len(header)}; "
                    "quote cells that hold commas."
                )
            yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}:{first}: not valid CSV ({error}).") from None


def _parquet(path: Path, name: str, fields: Sequence[str], others: Sequence[str]) -> Iterator[Row]:
    """The rows of a Parquet file; all of its columns where none is of `fields`, to name them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            here = set(file.schema_arrow.names)
            wanted = sorted(here & {*fields, *others}) if here & {*fields} else None
            number = 0
            for batch in file.iter_batches(1024, columns=wanted):
                for row in _unpacked(batch, name, number):
                    number += 1
                    yield f"{name}:{number}", row
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{name} cannot be read as Parquet: {reason}") from None


def _unpacked(batch: pa.RecordBatch, name: str, before: int) -> list[dict[str, Any]]:
    """The rows of a batch; one that is not UTF-8 is looked for only where there is one."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(batch.num_rows):
            try:
                batch.slice(row, 1).to_pylist()
            except UnicodeDecodeError:
                raise InputError(f"{name}:{before + row + 1}: not valid UTF-8.") from None
        raise
