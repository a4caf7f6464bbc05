"""What a benchmark measured: printed as one JSON line, and kept in benchmarks/results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from limbeck.files import write_text
from limbeck.run import machine

FOLDER = Path(__file__).parent / "results"


def keep(bench: str, rows: list[dict[str, Any]], *, save: bool = True, **facts: Any) -> None:
    """Print these rows and keep them in place of earlier ones of the same `what` and `attack`."""
    path = FOLDER / f"{bench}.json"
    earlier = json.loads(path.read_text())["rows"] if path.exists() else []
    about = machine()
    rows = [{**row, "cpu": about["cpu"]} for row in rows]  # rows are kept from several
    named = lambda row: (row["what"], row.get("attack"))  # noqa: E731
    new = {named(row) for row in rows}
    document = {"bench": bench, **facts, "machine": about, "rows": rows}
    print(json.dumps(document))  # noqa: T201
    if save:
        rows = [*(row for row in earlier if named(row) not in new), *rows]
        write_text(path, json.dumps({**document, "rows": rows}, indent=1) + "\n")
