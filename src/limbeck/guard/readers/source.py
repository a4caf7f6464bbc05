"""What the user names as a log → its files, their formats, and blocks of their rows."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import unquote

from limbeck.errors import InputError
from limbeck.guard.arrow import Schema, pa
from limbeck.guard.readers import csv, jsonl, litellm, otel, parquet
from limbeck.guard.readers.block import Block
from limbeck.guard.readers.postgres import Postgres, is_postgres

Format: TypeAlias = Literal["auto", "parquet", "csv", "jsonl", "otel", "litellm"]
ENDINGS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "otel",
}
PACKED = (".gz", ".zst", ".bz2")


@dataclass(frozen=True, slots=True)
class Source:
    """A log to read.

    Attributes:
        where: A file, a folder, a pattern, or a Postgres address.
        format: As which to read it; "auto" goes by the file's name and its columns.
        account: A LiteLLM column or OpenTelemetry attribute that names the account.
    """

    where: str
    format: Format = "auto"
    account: str | None = None


@dataclass(frozen=True, slots=True)
class _Table:
    """Something with columns: a file, or a table of Postgres."""

    shown: str
    names: list[str]
    read: Callable[[list[str]], Iterator[Block]]
    said: Mapping[str, str]


def blocks(source: Source, schema: Schema, required: tuple[str, ...]) -> Iterator[Block]:
    """All rows of a log, of `schema`'s columns.

    Raises:
        InputError: Nothing there, a file that cannot be read, or a required column missing.
    """
    if is_postgres(source.where):
        opened = Postgres(source.where)
        yield from _rows(
            _Table(opened.shown, opened.names(), opened.read, {}), source, schema, required
        )
        return
    root = Path(source.where)
    for path in files(source.where):
        kind = _kind(path, source.format)
        if kind == "otel":
            yield from otel.read(path, source.account)
            continue
        reader = {"parquet": parquet, "csv": csv, "jsonl": jsonl}[kind]
        if kind == "jsonl" and source.format == "auto" and otel.is_otel(path):
            yield from otel.read(path, source.account)
            continue
        said = _said(path, root, schema)
        table = _Table(str(path), reader.names(path), partial(reader.read, path), said)
        yield from _rows(table, source, schema, required)


def files(where: str) -> list[Path]:
    """The files that a path or pattern names, in order; of a folder, all below it."""
    path = Path(where)
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = sorted(one for one in path.rglob("*") if one.is_file() and ending(one))
        found = [one for one in inside if not one.name.startswith((".", "_"))]
    else:
        names = glob.glob(where, recursive=True)  # noqa: PTH207 - the pattern may be absolute
        found = sorted(one for one in map(Path, names) if one.is_file())
    if not found:
        raise InputError(f"There is no log at {where}")
    return found


def ending(path: Path) -> str:
    """The format that a file's name says, or none."""
    endings = [one.lower() for one in path.suffixes if one.lower() not in PACKED]
    return ENDINGS.get(endings[-1], "") if endings else ""


def _kind(path: Path, asked: Format) -> str:
    if asked in ("parquet", "csv", "jsonl", "otel"):
        return asked
    if kind := ending(path):
        return kind
    raise InputError(f"{path}: say what it is, with --format; known are {', '.join(ENDINGS)}")


def _said(path: Path, root: Path, schema: Schema) -> dict[str, str]:
    """Columns that folders name, as in `model=large/0.parquet`."""
    inside = path.relative_to(root).parts[:-1] if root.is_dir() else path.parts[:-1]
    pairs = (unquote(part).partition("=") for part in inside if "=" in part)
    return {name: value for name, _, value in pairs if name in schema.names}


def _rows(
    table: _Table, source: Source, schema: Schema, required: tuple[str, ...]
) -> Iterator[Block]:
    if source.format == "litellm" or (source.format == "auto" and litellm.is_litellm(table.names)):
        if source.account and source.account not in table.names:
            raise InputError(f"{table.shown} has no column {source.account!r}")
        for block in table.read(litellm.wanted(table.names, source.account)):
            yield litellm.canonical(block, source.account)
        return
    wanted = [name for name in schema.names if name in table.names]
    missing = [name for name in required if name not in wanted and name not in table.said]
    if missing:
        known = [name for name in table.names if name.isprintable()]
        has = ", ".join(known)[:300] or "none that can be read"
        raise InputError(f"{table.shown} lacks the column {', '.join(missing)}; it has {has}")
    for block in table.read(wanted):
        columns = block.columns
        for name in table.said.keys() - set(wanted):
            value = pa.repeat(table.said[name], columns.num_rows)
            columns = columns.append_column(name, value)
        yield replace(block, columns=columns)
