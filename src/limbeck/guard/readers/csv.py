"""CSV files with a header, plain or compressed (.gz, .zst, .bz2). An empty field is null."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.csv  # pyright: ignore[reportMissingTypeStubs]

from limbeck.errors import InputError, first_line
from limbeck.guard.arrow import pa
from limbeck.guard.readers.block import BYTES, Bad, Block

arrow_csv: Any = pyarrow.csv


def names(path: Path) -> list[str]:
    """The header's names; none where the file is empty."""
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
            return next((row for row in csv.reader(lines) if row), list[str]())
    except (OSError, csv.Error, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None


def read(path: Path, wanted: list[str]) -> Iterator[Block]:
    """The columns `wanted`, as bytes; a row with too few or too many fields is bad."""
    bad: list[Bad] = []

    def refuse(row: Any) -> str:
        found, due = row.actual_columns, row.expected_columns
        bad.append(Bad(row.number - 1, f"{found} fields, but the header has {due}"))
        return "skip"

    options: dict[str, Any] = {
        "read_options": arrow_csv.ReadOptions(use_threads=False, block_size=BYTES),
        "parse_options": arrow_csv.ParseOptions(
            newlines_in_values=True, invalid_row_handler=refuse
        ),
        "convert_options": arrow_csv.ConvertOptions(
            check_utf8=False,
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.binary()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    }
    at = 1
    try:
        with (
            pa.input_stream(str(path), compression="detect") as stream,
            arrow_csv.open_csv(stream, **options) as reader,
        ):
            for batch in reader:
                known = {one.row for one in bad if one.row >= at}
                span = range(at, at + batch.num_rows + len(known))
                rows = [row for row in span if row not in known][: batch.num_rows]
                upto = rows[-1] if rows else at - 1
                here = tuple(one for one in bad if one.row <= upto)
                del bad[: len(here)]
                yield Block(str(path), pa.array(rows), pa.Table.from_batches([batch]), here)
                at = upto + 1
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as CSV: {first_line(error)}") from None
    if bad:
        empty = pa.table({name: pa.array([], pa.binary()) for name in wanted})
        yield Block(str(path), pa.array([], pa.int64()), empty, tuple(bad))
