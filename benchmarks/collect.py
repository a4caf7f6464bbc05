"""Collecting from a service: share of its limit, ceiling, faults, kills and memory.

A provider of ours on loopback (tests/provider.py) is the same for all contenders, each of which is
a process of its own on another core. Peers are a careful loop of thirty lines over aiohttp, and
the openai SDK where the Python named with --sdk has it. Prints one JSON document last on standard
output, which is also kept in benchmarks/results/collect.json with the rows of earlier times.

    python benchmarks/collect.py [--rows limit_share,ceiling,…] [--scale 0.05] [--sdk PYTHON]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from collectors import IN_FLIGHT
from results import keep

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
KINDS = (
    *("429", "429 bare", "500", "503", "502 html", "reset before", "reset inside", "slow"),
    *("truncated", "wrong type", "empty choices", "null content", "bad utf-8"),
)
FAULTS = dict.fromkeys(KINDS, 0.05)
ROWS = ("limit_share", "ceiling", "faults", "kills", "memory")


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of prompts")
    parser.add_argument("--sdk", default=sys.executable, help="a Python that has openai")
    options = parser.parse_args()
    bench = Bench(options.scale, options.sdk)
    rows = [getattr(bench, name)() for name in options.rows.split(",")]
    keep("collect", rows, save=options.scale == 1)


class Bench:
    """The rows; each method is one."""

    def __init__(self, scale: float, sdk: str) -> None:
        self.scale, self.sdk = scale, sdk
        found = subprocess.run(  # noqa: S603
            [sdk, "-c", "import openai"], capture_output=True, check=False
        )
        self.peers = ["aiohttp", *(["openai"] if found.returncode == 0 else [])]

    def number(self, full: int) -> int:
        """So many prompts, at this scale."""
        return max(100, int(full * self.scale))

    def limit_share(self) -> dict[str, Any]:
        """Answers a minute at a limit of 3,000 and 200 ms, as a share of it."""
        n = self.number(2500)

        def share(who: str) -> dict[str, Any]:
            with provider(latency=0.2, per_minute=3000) as url, folder() as place:
                client(self.sdk, who, url, n, place)
                told = stats(url)
            ideal = (n - 50) / 50  # the bucket begins with a second's worth
            reached = min(1.0, told["good"] / n) * ideal / max(told["last"] - told["first"], 1e-9)
            denied = told["denied"] / told["requests"]
            return {"value": round(100 * reached, 2), "lost": n - told["prompts"],
                    "denied": round(100 * denied, 2)}  # fmt: skip

        return self.row("limit_share", "% of 3,000 requests/min", share, ["ours", *self.peers])

    def ceiling(self) -> dict[str, Any]:
        """Answers a second without limit at 50 ms, durable in the store, on one core."""
        n = self.number(20_000)

        def rate(who: str) -> dict[str, Any]:
            some = n if who != "openai" else n // 8
            with provider(latency=0.05) as url, folder() as place:
                found = client(self.sdk, who, url, some, place)
            return {"value": round(found["answered"] / found["seconds"]),
                    "cpu_us": round(1e6 * found["cpu"] / found["answered"])}  # fmt: skip

        return self.row("ceiling", "requests/s", rate, ["ours", *self.peers])

    def faults(self) -> dict[str, Any]:
        """Right answers with thirteen kinds of fault at 5 % each, and what was paid again."""
        n = self.number(5000)

        def right(who: str) -> dict[str, Any]:
            with provider(latency=0.05, faults=FAULTS) as url, folder() as place:
                found = client(self.sdk, who, url, n, place)
                told = stats(url)
            return {"value": found["right"], "of": n, "lost": n - found["answered"],
                    "wrong": found["answered"] - found["right"], "forced": told["broken"],
                    "avoidable": told["paid_twice"],
                    "seconds": round(found["seconds"], 1)}  # fmt: skip

        return self.row("faults", "right answers", right, ["ours", *self.peers])

    def kills(self) -> dict[str, Any]:
        """The same faults, killed with -9 twenty times at random moments."""
        n, kills = self.number(10_000), 20

        def killed(who: str) -> dict[str, Any]:
            chance, in_flight = random.Random(7), 0  # noqa: S311
            with provider(latency=0.05, faults=FAULTS) as url, folder() as place:
                for kill in range(kills):
                    process = start(self.sdk, who, url, n, place)
                    goal, told = (kill + chance.random()) * n / kills, stats(url)
                    while process.poll() is None and (told := stats(url))["prompts"] < goal:
                        time.sleep(0.02)
                    in_flight += told["in_flight"]
                    process.kill()
                    process.wait()
                found = client(self.sdk, who, url, n, place)
                told = stats(url)
            return {"value": found["right"], "of": n, "lost": n - found["answered"],
                    "paid_twice": told["paid_twice"], "at_the_server": in_flight,
                    "in_flight_at_most": kills * IN_FLIGHT}  # fmt: skip

        return self.row("kills", "right answers", killed, ["ours", "aiohttp"])

    def memory(self) -> dict[str, Any]:
        """Peak memory with a million prompts, of which the last ones are asked."""
        n = self.number(1_000_000)

        def peak(who: str) -> dict[str, Any]:
            with provider(latency=0.02) as url, folder() as place:
                made = client(self.sdk, "fill", url, n, place)
                found = client(self.sdk, "resume", url, n, place)
            return {"value": round(found["rss_mb"]), "prompts": n, "asked": made["left"],
                    "answered": found["answered"]}  # fmt: skip

        return self.row("memory", "MB", peak, ["ours"])

    def row(self, what: str, unit: str, measure: Any, contenders: list[str]) -> dict[str, Any]:
        """One row; the details of each contender stand beside its value."""
        found: dict[str, dict[str, Any]] = {}
        for who in contenders:
            found[who] = measure(who)
            print(f"{what} {who}: {found[who]}", file=sys.stderr)  # noqa: T201
        ours = found["ours"]["value"]
        peers = {who: one["value"] for who, one in found.items() if who != "ours"}
        best = max(peers.values(), default=None)
        return {
            "what": what,
            "unit": unit,
            "ours": ours,
            "peers": peers,
            "ratio": round(ours / best, 3) if best else None,
            "memory_ratio": None,
            "runs": 1,
            "spread": None,
            "details": found,
        }


# -- provider and clients, each a process --------------------------------------------------------


@contextmanager
def provider(**behaviour: Any) -> Iterator[str]:
    """Run the provider on the last core; gives its URL."""
    command = [sys.executable, str(ROOT / "tests" / "provider.py"), json.dumps(behaviour)]
    with subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what it could not send to a client that was killed
        text=True,
    ) as process:
        pin(process.pid, -1)
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@contextmanager
def folder() -> Iterator[Path]:
    """A folder on disk, not in memory: what is durable has to be."""
    (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "benchmarks" / "results") as path:
        yield Path(path)


def start(sdk: str, who: str, url: str, n: int, place: Path) -> subprocess.Popen[str]:
    """Start a contender on the first core."""
    python = sdk if who == "openai" else sys.executable
    command = [python, str(Path(__file__).with_name("collectors.py")), who, url, str(n), str(place)]
    process = subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    pin(process.pid, 0)
    return process


def client(sdk: str, who: str, url: str, n: int, place: Path) -> dict[str, Any]:
    """Run a contender to its end."""
    out, _ = start(sdk, who, url, n, place).communicate()
    return json.loads(out.splitlines()[-1])


def pin(pid: int, core: int) -> None:
    """Keep a process on one core, where the system can."""
    with suppress(AttributeError, OSError, ProcessLookupError):
        os.sched_setaffinity(pid, {sorted(os.sched_getaffinity(0))[core]})


def stats(url: str) -> dict[str, Any]:
    """What the provider counted."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as response:  # noqa: S310
        return json.load(response)


if __name__ == "__main__":
    main()
