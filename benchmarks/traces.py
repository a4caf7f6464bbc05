"""Fit the simulator's shapes to published traces: `python benchmarks/traces.py FOLDER`.

The folder holds the Azure LLM inference traces of 2023 (`azure-llm-2023-conv.csv`, `-code.csv`)
and Mooncake's conversation trace. Prints, for each, two log-normals for the tokens in and out, and
the log-normal sigma of gaps with the trace's coefficient of variation. The numbers stand in
`src/limbeck/guard/simulate/shapes.py`; the traces have no users and are not copied.
"""

from __future__ import annotations

import csv
import json
import sys
from datetime import datetime
from pathlib import Path

import numpy as np

FILES = {
    "conversation": "azure-llm-2023-conv.csv",
    "code": "azure-llm-2023-code.csv",
    "long": "mooncake-conversation.jsonl",
}


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrival seconds, tokens in and tokens out, each (n,)."""
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        table = [(r["timestamp"] / 1000, r["input_length"], r["output_length"]) for r in rows]
    else:
        with path.open() as file:
            table = [
                (datetime.fromisoformat(r["TIMESTAMP"][:26]).timestamp(),
                 float(r["ContextTokens"]), float(r["GeneratedTokens"]))
                for r in csv.DictReader(file)
            ]  # fmt: skip
    return tuple(np.array(column, dtype=float) for column in zip(*table, strict=True))  # type: ignore[return-value]


def mixture(tokens: np.ndarray, rounds: int = 300) -> list[tuple[float, float, float]]:
    """Weight, mu and sigma of two log-normals, by EM from the quartiles; sigma at least 0.1."""
    x = np.log(np.maximum(tokens, 1))[:, None]
    weight, mu, sigma = np.array([0.5, 0.5]), np.quantile(x, [0.25, 0.75]), np.full(2, x.std())
    for _ in range(rounds):
        density = weight / sigma * np.exp(-((x - mu) ** 2) / (2 * sigma**2)) + 1e-300
        part = density / density.sum(1, keepdims=True)
        total = part.sum(0)
        weight, mu = total / len(x), (part * x).sum(0) / total
        sigma = np.maximum(np.sqrt((part * (x - mu) ** 2).sum(0) / total), 0.1)
    return [tuple(round(float(v), 3) for v in row) for row in zip(weight, mu, sigma, strict=True)]  # type: ignore[misc]


def gap_sigma(seconds: np.ndarray) -> float:
    """The sigma at which log-normal gaps have the coefficient of variation of these."""
    gaps = np.diff(np.sort(seconds))
    return round(float(np.sqrt(np.log1p((gaps.std() / gaps.mean()) ** 2))), 3)


def main(folder: Path) -> None:
    """Print the fits as Python."""
    for name, file in FILES.items():
        seconds, tokens_in, tokens_out = read(folder / file)
        sys.stdout.write(f"{name} in {mixture(tokens_in)} out {mixture(tokens_out)}\n")
        sys.stdout.write(f"{name} gap sigma {gap_sigma(seconds)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
