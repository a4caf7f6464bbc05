"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from limbeck.errors import InputError, first_line
from limbeck.guard.arrow import Schema, pa, pq
from limbeck.guard.readers.block import BYTES, ROWS, Block

FEW = ("model", "asn", "client")


def names(path: Path) -> Schema:
    """The file's columns."""
    try:
        return pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is no Parquet file: {first_line(error)}") from None


def _repeating(path: Path) -> list[str]:
    """Texts of few values: to be read as dictionaries, so that each value is checked once."""
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)
    known = pq.read_schema(path)
    return [f.name for f in known if f.name in FEW and any(kind(f.type) for kind in texts)]


def read(path: Path, wanted: list[str]) -> Iterator[Block]:
    """The columns `wanted`, block by block."""
    try:
        with pq.ParquetFile(path, read_dictionary=_repeating(path)) as file:
            at = 1
            for group in range(file.metadata.num_row_groups):
                about = file.metadata.row_group(group)
                row_bytes = about.total_byte_size / max(about.num_rows, 1)
                rows = max(1, min(ROWS, int(BYTES / max(row_bytes, 1))))
                for batch in file.iter_batches(rows, [group], wanted, use_threads=False):
                    count = batch.num_rows
                    places = pa.array(np.arange(at, at + count))
                    yield Block(str(path), places, pa.Table.from_batches([batch]))
                    at += count
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {first_line(error)}") from None
