"""What several of guard's commands take, each checked as it is read."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def _one_or_more(_: object, value: int) -> None:
    if value < 1:
        raise ValueError("Give 1 or more.")


def _price(_: object, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError("Give a number, 0 or more.")


def _size(_: object, value: str) -> None:
    if not re.fullmatch(r"\d+(\.\d+)?\s*[KMGT](i?B)?", value, re.IGNORECASE):
        raise ValueError("Write it as 4GB.")


def no_file(_: object, value: Path) -> None:
    """Refuse a file where a folder is written."""
    if value.exists() and not value.is_dir():
        raise ValueError("That is a file; --out names a folder.")


LogFormat = Annotated[
    Literal["auto", "parquet", "csv", "jsonl", "otel", "litellm"],
    Parameter(name="--format", help="What the log is; by default, as it looks."),
]
AccountFrom = Annotated[
    str | None,
    Parameter(help="LiteLLM column or OpenTelemetry attribute that names the account."),
]
AccountsTable = Annotated[str | None, Parameter(help="A table of accounts.")]
PriceIn = Annotated[float, Parameter(help="What a million tokens read sell for.", validator=_price)]
PriceOut = Annotated[
    float, Parameter(help="What a million tokens written sell for.", validator=_price)
]
EngineKind = Annotated[Literal["duckdb", "spark"], Parameter(help="Where the SQL runs.")]
Memory = Annotated[str, Parameter(help="What the engine may take, as 4GB.", validator=_size)]
Threads = Annotated[int, Parameter(help="Threads at work.", validator=_one_or_more)]
AsJson = Annotated[
    bool, Parameter(name="--json", negative="", help="Print one JSON document on standard output.")
]
