"""The training step, the loss kernel and the whole job, beside TRL's GKD and Liger, in one run.

Teacher SmolLM2-135M, student 10 of its 30 layers, rows of people's questions and answers. Steps of
all contenders take turns, each contender in a process of its own; figures are medians. Prints a
line a measurement on standard error and one JSON document last on standard output, which is also
kept in benchmarks/results/train.json.

    python benchmarks/train.py --rows dolly.jsonl [--only step_cached,kernel_49k] [--runs 3]

ROWS is JSON lines of instruction, context and response. Peers that are not installed are left
out, and named: `pip install trl==1.16.0 liger-kernel` for all. `--full` takes the large kernels and
more steps, and longer than 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from kernels import kernel_rows
from results import keep

from limbeck.models import weights
from limbeck.models.local import LocalModel, compute_dtype
from limbeck.models.weights import ordinary_folder
from limbeck.recipe import read_recipe
from limbeck.train.student import drop_layers

ROOT = Path(__file__).parents[1]
KEPT = (0, 1, 2, 3, 6, 24, 25, 26, 27, 29)  # of the teacher's 30 layers
SAME = 1.01  # times a KL is the same KL
LONGEST = 1000  # characters of a row, so that it fits 256 tokens
WHAT = (
    "step_cached", "step_live", "roofline_share", "kernel_49k", "kernel_152k", "whole_job",
    "sparse_against_dense",
)  # fmt: skip


def main() -> None:
    """Measure, print, and keep the result."""
    style = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--only", default=",".join(WHAT))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args()
    wanted = args.only.split(",")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        job = _job(Path(scratch), args.rows)
        if {"step_cached", "step_live", "roofline_share"} & {*wanted}:
            rows += [r for r in _steps(job, args.runs) if r["what"] in wanted]
        for what, vocabulary in (("kernel_49k", 49_152), ("kernel_152k", 151_936)):
            if what in wanted:
                tokens = 4096 if args.full else 512
                rows.append(kernel_rows(what, tokens, vocabulary, args.runs))
        if "whole_job" in wanted:
            rows.append(_whole_job(job, 96 if args.full else 24))
        if "sparse_against_dense" in wanted:
            rows.append(_sparse(job, 24 if args.full else 8))
    keep("train", rows)


def _job(scratch: Path, rows: Path) -> dict[str, Any]:
    """What all contenders are given, with the student's start written to `scratch`."""
    recipe = read_recipe(ROOT / "recipes" / "demo.toml")
    folder = ordinary_folder(weights.find(recipe.teacher.model))
    student = LocalModel(weights.find(str(folder)), precision="float32")
    drop_layers(student.network, KEPT)
    student.network.save_pretrained(scratch / "student")
    student.tokenizer.inner.save_pretrained(scratch / "student")
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    short = [r for r in found if 60 < sum(map(len, r.values())) < LONGEST]
    return {
        "teacher": str(folder), "student": str(scratch / "student"), "scratch": str(scratch),
        "rows": short[:96], "held_out": short[96:112], "steps": 50, "learning_rate": 3e-4,
        "batch_tokens": 1536, "row_tokens": 256, "batch_rows": 8,
        "parameters": sum(p.numel() for p in student.network.parameters()),
    }  # fmt: skip


class Worker:
    """A contender in its process."""

    def __init__(self, name: str, job: Mapping[str, Any], **changes: Any) -> None:
        self.name = name
        path = Path(job["scratch"]) / f"{name.replace(' ', '-')}.json"
        path.write_text(json.dumps({**job, **changes}))
        command = [sys.executable, str(Path(__file__).with_name("contenders.py")), name, str(path)]
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        self.built = self._answer()

    def ask(self, word: str) -> dict[str, float]:
        """Have it do something, and wait for what it says."""
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Let it go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early; run benchmarks/contenders.py by hand")
        return json.loads(line)


def _peers() -> list[str]:
    there = {m: importlib.util.find_spec(m) is not None for m in ("trl", "liger_kernel")}
    for name, found in there.items():
        if not found:
            _note(f"{name} is not installed and left out")
    peers = ["TRL GKD"] if there["trl"] else []
    return peers + (["TRL GKD + Liger"] if all(there.values()) else [])


def _steps(job: Mapping[str, Any], runs: int) -> list[dict[str, Any]]:
    """One optimizer step of each contender, in turns after one that does not count."""
    names = ["ours stored", "ours live", *_peers()]
    workers = {name: Worker(name, job) for name in names}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    products: list[float] = []
    for turn in range(runs + 1):
        for name, worker in workers.items():
            told = worker.ask("step")
            if turn:
                found[name].append(told)
                rates = [told[k] / told["seconds"] for k in ("tokens", "target_tokens")]
                _note(f"{name}: {rates[0]:.0f} tokens/s, {rates[1]:.0f} target tokens/s, "
                      f"{told['peak_gb']:.2f} GB")  # fmt: skip
        products.append(_product())
    for worker in workers.values():
        worker.end()
    rate = {n: [t["tokens"] / t["seconds"] for t in told] for n, told in found.items()}
    peak = {n: told[-1]["peak_gb"] for n, told in found.items()}
    rows = [
        _row(what, "tokens/s", ours, {n: rate[n] for n in (ours, *_peers())}, peak)
        for what, ours in (("step_cached", "ours stored"), ("step_live", "ours live"))
    ]
    needed = 6 * job["parameters"]
    share = [needed * r / p for r, p in zip(rate["ours stored"], products[1:], strict=True)]
    _note(f"roofline: {statistics.median(share):.0%} of {max(products) / 1e9:.0f} GFLOP/s")
    rows.append(_row("roofline_share", "share", "ours stored", {"ours stored": share}, {}))
    return rows


def _product() -> float:
    """FLOP/s of a plain product in the dtype of training."""
    a = torch.randn(1536, 1536, dtype=compute_dtype())
    rates: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        rates.append(2 * 1536**3 / (time.perf_counter() - began))
    return max(rates)


def _whole_job(job: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Seconds to score once and learn for 3 epochs, and TRL's to the same held-out KL, or its end.

    Both learn from 4 rows a step, for as many steps. Neither's loading counts.
    """
    job = {
        **job,
        "rows": job["rows"][:rows],
        "batch_tokens": None,
        "batch_rows": 4,
        "scratch": job["scratch"] + "/whole",
    }
    Path(job["scratch"]).mkdir()
    steps = 3 * rows // 4
    ours = Worker("ours stored", {**job, "steps": steps})
    seconds = ours.built["scoring"] + sum(ours.ask("step")["seconds"] for _ in range(steps))
    goal = ours.ask("held_out")["kl"]
    ours.end()
    _note(f"whole job, ours: {seconds:.0f} s to a held-out KL of {goal:.3f}")
    spent, reached = {"ours": [seconds]}, {"ours": round(goal, 3)}
    for name in _peers()[:1]:
        worker, spent[name] = Worker(name, {**job, "steps": steps}), [0.0]
        for step in range(1, steps + 1):
            spent[name][0] += worker.ask("step")["seconds"]
            if step == steps or (step >= steps // 2 and step % 3 == 0):
                reached[name] = round(worker.ask("held_out")["kl"], 3)
                if reached[name] <= SAME * goal:
                    break
        _note(f"whole job, {name}: {spent[name][0]:.0f} s, {step} steps to {reached[name]:.3f}")
        worker.end()
    return _row("whole_job", "s", "ours", spent, {}) | {"held_out_kl": reached}


def _sparse(job: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Held-out KL after the same steps, from stored targets and from dense ones."""
    kl: dict[str, list[float]] = {}
    for name in ("ours stored", "ours top-k + tail", "ours live"):
        worker = Worker(name, {**job, "steps": steps})
        for _ in range(steps):
            worker.ask("step")
        kl[name] = [worker.ask("held_out")["kl"]]
        _note(f"{name}: held-out KL {kl[name][0]:.4f} after {steps} steps")
        worker.end()
    return _row("sparse_against_dense", "nats", "ours stored", kl, {})


def _row(
    what: str, unit: str, ours: str, found: Mapping[str, Sequence[float]], peak: Mapping[str, float]
) -> dict[str, Any]:
    """One row of the document; the best peer is the fastest, or the one that took least."""
    medians = {name: statistics.median(values) for name, values in found.items()}
    mine = medians.pop(ours)
    pick: Callable[..., str] = max if unit == "tokens/s" else min
    best = pick(medians, key=medians.__getitem__) if medians else None
    spread = sorted(a / b for a, b in zip(found[ours], found[best or ours], strict=True))
    return {
        "what": what, "unit": unit, "ours": round(mine, 4),
        "peers": {name: round(value, 4) for name, value in medians.items()},
        "ratio": round(mine / medians[best], 4) if best else None,
        "memory_ratio": round(peak[ours] / peak[best], 3) if best and peak else None,
        "runs": len(found[ours]), "spread": [round(spread[0], 3), round(spread[-1], 3)],
    }  # fmt: skip


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
