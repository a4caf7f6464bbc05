"""The loss over the vocabulary alone, forward and backward: ours, TRL's and Liger's.

Each call runs in a process of its own, for its peak of memory.

    python benchmarks/kernels.py NAME TOKENS VOCABULARY
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch
from peak import forget_peak, held_gb, peak_gb
from torch import Tensor

HIDDEN, KEPT, DRAWN = 576, 8, 12
KERNELS = ("ours stored", "ours live", "TRL chunked", "Liger fused JSD")


def kernel_rows(what: str, tokens: int, vocabulary: int, runs: int) -> dict[str, Any]:
    """Seconds and memory of each, in turns. `ours` is the live one: the peers' own task."""
    names = [n for n in KERNELS if _there(n)]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(runs):
        for name in names:
            command = [sys.executable, __file__, name, str(tokens), str(vocabulary)]
            done = subprocess.run(  # noqa: S603
                command, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr.splitlines()[-1]}")
            told = json.loads(done.stdout.splitlines()[-1])
            found[name].append(told)
            line = f"{what} {name}: {told['seconds']:.2f} s, {told['memory_gb']:.2f} GB"
            print(line, file=sys.stderr, flush=True)  # noqa: T201
    seconds = {n: statistics.median(t["seconds"] for t in told) for n, told in found.items()}
    memory = {n: statistics.median(t["memory_gb"] for t in told) for n, told in found.items()}
    mine = seconds.pop("ours live")
    peers = {n: s for n, s in seconds.items() if not n.startswith("ours")}
    best = min(peers, key=peers.__getitem__) if peers else None
    pairs = zip(found["ours live"], found[best or "ours live"], strict=True)
    spread = sorted(b["seconds"] / a["seconds"] for a, b in pairs)
    return {
        "what": what, "unit": "s", "ours": round(mine, 3), "tokens": tokens,
        "peers": {n: round(s, 3) for n, s in seconds.items()},
        "ratio": round(mine / peers[best], 3) if best else None,
        "memory_ratio": round(memory["ours live"] / memory[best], 3) if best else None,
        "memory_gb": {n: round(m, 3) for n, m in memory.items()},
        "runs": runs, "spread": [round(1 / spread[-1], 3), round(1 / spread[0], 3)],
    }  # fmt: skip


def _there(name: str) -> bool:
    needed = {"TRL chunked": "trl", "Liger fused JSD": "liger_kernel"}.get(name, "torch")
    return importlib.util.find_spec(needed) is not None


def _task(tokens: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    states = torch.randn(tokens, HIDDEN).requires_grad_()
    weight = (0.05 * torch.randn(vocabulary, HIDDEN)).requires_grad_()
    theirs, other = torch.randn(tokens, HIDDEN), 0.05 * torch.randn(vocabulary, HIDDEN)
    return states, weight, theirs, other, torch.randint(vocabulary, (tokens,))


def _head(weight: Tensor) -> Any:
    """What `fused_loss` reads of a head."""
    project = torch.nn.Linear(HIDDEN, len(weight), bias=False, device="meta")
    project.weight = torch.nn.Parameter(weight, requires_grad=weight.requires_grad)
    return SimpleNamespace(project=project, vocabulary=len(weight), scale=None, cap=None)


def run(name: str, tokens: int, vocabulary: int) -> dict[str, float]:
    """Forward KL (JSD at ½ for Liger), forward and backward, once after one that does not count."""
    states, weight, theirs, other, labels = _task(tokens, vocabulary)
    match name:
        case "ours stored" | "ours live":
            loss = _ours(name, states, weight, theirs, other)
        case "TRL chunked":
            from trl.kernels.chunked_divergence import (  # pyright: ignore[reportMissingImports]
                ChunkedDivergenceFunction,
            )

            def loss() -> Tensor:
                values, _ = ChunkedDivergenceFunction.apply(
                    states, weight, None, theirs, other, None, 0.0, 1.0
                )
                return values.mean()
        case _:
            from liger_kernel.chunked_loss import (  # pyright: ignore[reportMissingImports]
                LigerFusedLinearJSDLoss,
            )

            kernel = LigerFusedLinearJSDLoss(
                beta=0.5, compiled=False, weight_hard_loss=0.0, weight_soft_loss=1.0
            )

            def loss() -> Tensor:
                return kernel(states, weight, theirs, other, labels)

    seconds = 0.0
    before = held_gb()
    forget_peak()
    for _ in range(2):
        states.grad = weight.grad = None
        began = time.perf_counter()
        loss().backward()
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "memory_gb": peak_gb() - before}


def _ours(name: str, states: Tensor, weight: Tensor, theirs: Tensor, other: Tensor) -> Any:
    from limbeck.models.outcomes import sampled_targets
    from limbeck.train.fused import fused_loss
    from limbeck.train.teacher import Live, Sparse

    head, tokens = _head(weight), len(states)
    weight.requires_grad_(False)
    targets: Live | Sparse = Live(theirs, _head(other))
    if name == "ours stored":
        rows = [
            sampled_targets(part @ other.t(), KEPT, 1.0, DRAWN, torch.rand(len(part)).double())
            for part in theirs.split(256)
        ]
        columns = (torch.cat(column) for column in zip(*rows, strict=True))
        targets = Sparse(*columns)

    def loss() -> Tensor:
        return fused_loss(states, head, targets, "forward_kl", normaliser=tokens).total

    return loss


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))  # noqa: T201
