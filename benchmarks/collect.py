"""Collecting from a service: share of its limit, ceiling, faults, kills and memory.

A provider of ours on loopback (tests/provider.py) is the same for all contenders, each of which is
a process of its own on another core. Peers are a careful loop of thirty lines over aiohttp, and
the openai SDK where the Python named with --sdk has it. Prints one JSON document last on standard
output, which is also kept in benchmarks/results/collect.json with the rows of earlier times.

    python benchmarks/collect.py [--rows limit_share,ceiling,…] [--scale 0.05] [--sdk PYTHON]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
KINDS = (
    *("429", "429 bare", "500", "503", "502 html", "reset before", "reset inside", "slow"),
    *("truncated", "wrong type", "empty choices", "null content", "bad utf-8"),
)
FAULTS = dict.fromkeys(KINDS, 0.05)
IN_FLIGHT = 256
ROWS = ("limit_share", "ceiling", "faults", "kills", "memory")


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of prompts")
    parser.add_argument("--sdk", default=sys.executable, help="a Python that has openai")
    parser.add_argument("--client", nargs=4, metavar=("WHO", "URL", "PROMPTS", "FOLDER"))
    parser.add_argument("--most", type=int, default=IN_FLIGHT)
    options = parser.parse_args()
    if options.client:
        who, url, number, folder = options.client
        print(json.dumps(CLIENTS[who](url, int(number), Path(folder), options.most)))  # noqa: T201
        return
    bench = Bench(options.scale, options.sdk)
    rows = [getattr(bench, name)() for name in options.rows.split(",")]
    from limbeck.files import write_text
    from limbeck.run import machine

    path = ROOT / "benchmarks" / "results" / "collect.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {row["what"]: row for row in (*kept, *rows)}
    rows = [new[what] for what in ROWS if what in new]
    document = {"bench": "collect", "machine": machine(), "rows": rows}
    if options.scale == 1:
        write_text(path, json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))  # noqa: T201


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
    command = [python, __file__, "--client", who, url, str(n), str(place)]
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


def questions(n: int) -> Iterator[str]:
    """What is asked."""
    return (f"What is number {i}, and why is it so?" for i in range(n))


# -- contenders ----------------------------------------------------------------------------------


def measured(work: Any) -> dict[str, float]:
    """Wall and processor seconds of `work`, and the most memory."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def ours(url: str, n: int, place: Path, most: int) -> dict[str, Any]:
    """Limbeck's own, as the collect stage does it, into a store."""
    from limbeck.collect.ask import Asking, gather, paired
    from limbeck.collect.store import AnswerStore
    from limbeck.models.routes import route
    from limbeck.models.served import ServedModel
    from limbeck.recipe import TeacherSection
    from limbeck.records import Message, Prompt, Sampling
    from provider import answer_to  # pyright: ignore[reportMissingImports]

    def prompts() -> Iterator[Prompt]:
        for i, text in enumerate(questions(n)):
            messages = (Message("user", text),)
            yield Prompt(Prompt.identify(messages), messages, f"p:{i}", "train")

    where = route(TeacherSection(model="teacher", url=url))
    asking = Asking(where.model, where.name, Sampling(64, 1.0))
    with AnswerStore(place / "answers.sqlite") as store:
        found = measured(
            lambda: gather(ServedModel(where, in_flight=most), prompts(), asking, store, "ask", n)
        )
        answered, right = 0, 0
        for prompt, answer in paired(prompts(), asking, store):
            kept = answer is not None and answer.outcome == "kept"
            answered += kept
            if answer is not None and kept:
                right += answer.text == answer_to(prompt.messages[0].content)
    return {**found, "answered": answered, "right": right}


def careful(url: str, n: int, place: Path, most: int) -> dict[str, Any]:
    """Thirty lines over aiohttp: every body checked, a row appended an answer, patient for ever."""
    import aiohttp

    path = place / "rows.jsonl"
    there = rows_in(path)
    left = iter([q for q in questions(n) if q not in there])

    async def one(session: Any, question: str, file: Any) -> None:
        asked = {"model": "teacher", "messages": [{"role": "user", "content": question}]}
        asked["max_tokens"] = 64
        for tries in itertools.count():
            with suppress(aiohttp.ClientError, ValueError, KeyError, IndexError, TypeError):
                async with session.post(f"{url}/chat/completions", json=asked) as response:
                    raw = await response.read()
                    if response.status == 429:
                        await asyncio.sleep(float(response.headers.get("Retry-After", 1)))
                        continue
                    text = json.loads(raw)["choices"][0]["message"]["content"]
                    if response.status == 200 and isinstance(text, str):
                        file.write(json.dumps([question, text]) + "\n")
                        file.flush()
                        return
            await asyncio.sleep(min(30, 0.25 * 2**tries) * random.uniform(0.5, 1.5))  # noqa: S311

    async def everything() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            with path.open("a") as file:

                async def worker() -> None:
                    for question in left:
                        await one(session, question, file)

                await asyncio.gather(*(worker() for _ in range(most)))

    return {**measured(lambda: run_fast(everything)), **read_rows(path)}


def sdk(url: str, n: int, place: Path, most: int) -> dict[str, Any]:
    """The openai SDK with its two retries, a row appended an answer."""
    import openai

    path = place / "rows.jsonl"
    left = iter(questions(n))

    async def everything() -> None:
        asker = openai.AsyncOpenAI(base_url=url, api_key="none")
        with path.open("a") as file:

            async def worker() -> None:
                for question in left:
                    with suppress(Exception):
                        found = await asker.chat.completions.create(
                            model="teacher",
                            messages=[{"role": "user", "content": question}],
                            max_tokens=64,
                        )
                        text = found.choices[0].message.content
                        file.write(json.dumps([question, text]) + "\n")
                        file.flush()

            await asyncio.gather(*(worker() for _ in range(most)))

    return {**measured(lambda: run_fast(everything)), **read_rows(path)}


def run_fast(everything: Any) -> None:
    """On uvloop where it is installed, as ours."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = None
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(everything())


def rows_in(path: Path) -> dict[str, str]:
    """The rows of a file, less the one that a kill cut short."""
    rows: dict[str, str] = {}
    for row in path.open() if path.exists() else ():
        with suppress(ValueError):
            question, text = json.loads(row)
            rows[question] = text
    return rows


def read_rows(path: Path) -> dict[str, int]:
    """Answers and right answers in a file of rows."""
    from provider import answer_to  # pyright: ignore[reportMissingImports]

    rows = rows_in(path)
    return {"answered": len(rows), "right": sum(answer_to(q) == text for q, text in rows.items())}


def fill(url: str, n: int, place: Path, most: int) -> dict[str, Any]:
    """A run of n prompts of which all but the last fiftieth have an answer."""
    from limbeck.collect.ask import Asking
    from limbeck.collect.prompts import write_prompts
    from limbeck.collect.store import AnswerStore
    from limbeck.records import Answer, Message, Prompt, Sampling, Usage
    from provider import answer_to  # pyright: ignore[reportMissingImports]

    def prompts() -> Iterator[Prompt]:
        for i, text in enumerate(questions(n)):
            messages = (Message("user", text),)
            yield Prompt(Prompt.identify(messages), messages, f"p:{i}", "train")

    def answer(prompt: Prompt) -> Answer:
        text = answer_to(prompt.messages[0].content)
        return Answer(asking.key(prompt), prompt.id, asking.model, asking.route, asking.sampling,
                      text, "", (), (), "stop", Usage(16, 12, 0.02), "kept")  # fmt: skip

    asking = Asking("teacher", url, Sampling(64, 1.0))
    write_prompts(place / "prompts.jsonl", prompts())
    left = max(50, n // 50)
    done = itertools.islice(prompts(), n - left)
    with AnswerStore(place / "answers.sqlite") as store:
        while some := list(itertools.islice(done, 50_000)):
            store.add(sorted(map(answer, some), key=lambda one: one.id))
    return {"left": left}


def resume(url: str, n: int, place: Path, most: int) -> dict[str, Any]:
    """Go on with such a run: find what is missing, ask for it, count how all ended."""
    from limbeck.collect.ask import Asking, gather, paired
    from limbeck.collect.prompts import iterate_prompts
    from limbeck.collect.store import AnswerStore
    from limbeck.models.routes import route
    from limbeck.models.served import ServedModel
    from limbeck.recipe import TeacherSection
    from limbeck.records import Sampling

    where = route(TeacherSection(model="teacher", url=url))
    asking = Asking(where.model, where.name, Sampling(64, 1.0))
    path = place / "prompts.jsonl"
    answered = 0
    with AnswerStore(place / "answers.sqlite") as store:

        def work() -> None:
            nonlocal answered
            model = ServedModel(where, in_flight=most)
            gather(model, iterate_prompts(path), asking, store, "ask", n)
            found = paired(iterate_prompts(path), asking, store)
            answered = sum(answer is not None for _, answer in found)

        used = measured(work)
    return {**used, "answered": answered}


CLIENTS = {"ours": ours, "aiohttp": careful, "openai": sdk, "fill": fill, "resume": resume}

if __name__ == "__main__":
    main()
