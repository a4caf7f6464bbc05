"""Logs for tests of guard's ingest, and what became of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.guard.logs import ingest
from limbeck.guard.readers.source import Source
from limbeck.guard.schema import SKETCHED
from limbeck.guard.state import files

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def call(number: int, **other: Any) -> dict[str, Any]:
    return {
        "call_id": f"c{number}",
        "time": f"2026-02-{number % 27 + 1:02d}T03:04:05Z",
        "account": f"a{number % 5}",
        "model": "large",
        "tokens_in": 12,
        "tokens_out": 30,
        "prompt": f"Solve step by step: {number} plus 3",
        **other,
    }


def jsonl(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def read(out: Path) -> list[dict[str, Any]]:
    tables = [pq.ParquetFile(path).read() for path in files(out)]
    assert all(table.schema.equals(SKETCHED) for table in tables)
    return pa.concat_tables(tables).sort_by("call_id").to_pylist()


def refusals(out: Path) -> dict[str | None, str]:
    return {
        row["call_id"]: row["reason"] for row in pq.read_table(out / "rejects.parquet").to_pylist()
    }


def take(path: Path | str, out: Path, **how: Any) -> dict[str, Any]:
    told = ingest(Source(str(path), **how), out, now=NOW)
    assert told == json.loads((out / "ingest.json").read_text(encoding="utf-8"))
    log = told["logs"][-1]
    assert log["read"] == log["kept"] + sum(log["refused"].values())
    assert told["calls"] == sum(told["days"].values()) == len(read(out))
    return told
