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
from limbeck.guard.readers.postgres import Postgres, is_postgres, shown
from limbeck.progress import say

Format: TypeAlias = Literal["auto", "parquet", "csv", "jsonl", "otel", "litellm"]
ENDINGS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
}
EXPLICIT = ("parquet", "csv", "jsonl", "otel")
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

    @property
    def shown(self) -> str:
        """`where` as it may be written and printed: without a user or a password."""
        return shown(self.where)


@dataclass(frozen=True, slots=True)
class _Table:
    """Something with columns: a file, or a table of Postgres.

    Attributes:
        shown: Its name.
        names: Its columns; where `more`, there may be others further on.
        read: Gives the columns named.
        said: Columns that its path names, each of one value.
        more: Whether `names` are those of its first rows only.
    """

    shown: str
    names: list[str]
    read: Callable[[list[str]], Iterator[Block]]
    said: Mapping[str, str]
    more: bool = False

    def has(self, wanted: list[str]) -> list[str]:
        """Those of some columns that are there, or may yet come."""
        may_come = self.more
        return [n for n in wanted if n in self.names or (may_come and n not in self.said)]


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
    found, passed = _listed(source.where, source.format)
    if passed:
        about = f"as {passed[0].name}: {len(passed):,}; --format takes them"
        say(f"{'ingest':>9}  Files passed over for their unknown endings, {about}")
    for path in found:
        kind = _kind(path, source.format)
        if kind == "otel":
            yield from otel.read(path, source.account)
            continue
        names = {
            "parquet": parquet.names,
            "csv": csv.names,
            "jsonl": partial(jsonl.names, upto=jsonl.SAMPLE),
        }[kind](path)
        if not names and _is_empty(path, kind):
            continue
        read = {"parquet": parquet, "csv": csv, "jsonl": jsonl}[kind].read
        said = _said(path, root, schema)
        table = _Table(str(path), names, partial(read, path), said, kind == "jsonl")
        yield from _rows(table, source, schema, required)


def files(where: str, asked: Format = "auto") -> list[Path]:
    """The files that a path or pattern names, in order; of a folder, all logs below it."""
    return _listed(where, asked)[0]


def _listed(where: str, asked: Format) -> tuple[list[Path], list[Path]]:
    """The files to read, and those passed over: of a folder, whose names do not say what they are.

    Nothing hidden is looked at: what is still being written often stands there.
    """
    path = Path(where)
    passed: list[Path] = []
    if path.is_file():
        found = [path]
    elif path.is_dir():
        inside = sorted(one for one in path.rglob("*") if one.is_file() and _is_open(one, path))
        known = [one for one in inside if asked in EXPLICIT or ending(one)]
        found, passed = known, sorted(set(inside) - set(known))
    else:
        names = glob.glob(where, recursive=True)  # noqa: PTH207 - the pattern may be absolute
        found = sorted(one for one in map(Path, names) if one.is_file())
    if not found:
        why = f", but {passed[0]}; say what it is, with --format" if passed else ""
        raise InputError(f"There is no log at {shown(where)}{why}")
    return found, passed


def _is_open(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return not any(one[0] == "." or (one[0] == "_" and "=" not in one) for one in parts)


def _is_empty(path: Path, kind: str) -> bool:
    """Whether a file without names holds nothing at all, as after a rotation."""
    return kind == "csv" or (kind == "jsonl" and next(jsonl.rows(path), None) is None)


def ending(path: Path) -> str:
    """The format that a file's name says, or none; "json" may be lines, or spans."""
    endings = [one.lower() for one in path.suffixes if one.lower() not in PACKED]
    return ENDINGS.get(endings[-1], "") if endings else ""


def _kind(path: Path, asked: Format) -> str:
    if asked in EXPLICIT:
        return asked
    kind = ending(path)
    if kind in ("json", "jsonl"):
        lined = otel.by_line(path) if asked == "auto" else False
        return "otel" if lined or (lined is None and kind == "json") else "jsonl"
    if kind:
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
        for block in table.read(table.has(litellm.wanted(source.account))):
            yield litellm.canonical(block, source.account)
        return
    if source.account:
        raise InputError(
            f"{table.shown} is no log of LiteLLM or OpenTelemetry, to which --account-from applies"
        )
    wanted = table.has(schema.names)
    missing = [name for name in required if name not in {*table.names, *table.said}]
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
