"""The contenders of benchmarks/collect.py, each a process: it asks, and says what came of it.

    python benchmarks/collectors.py WHO URL PROMPTS FOLDER

prints one JSON line. `aiohttp` and `openai` need nothing of Limbeck, so that they can run in an
environment of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from peak import peak_gb

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
IN_FLIGHT = 256


def questions(n: int) -> Iterator[str]:
    """What is asked."""
    return (f"What is number {i}, and why is it so?" for i in range(n))


def measured(work: Any) -> dict[str, float]:
    """Wall and processor seconds of `work`, and the most memory."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "rss_mb": 1024 * peak_gb(),
    }


def ours(url: str, n: int, place: Path) -> dict[str, Any]:
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
            lambda: gather(
                ServedModel(where, in_flight=IN_FLIGHT), prompts(), asking, store, "ask", n
            )
        )
        answered, right = 0, 0
        for prompt, answer in paired(prompts(), asking, store):
            kept = answer is not None and answer.outcome == "kept"
            answered += kept
            if answer is not None and kept:
                right += answer.text == answer_to(prompt.messages[0].content)
    return {**found, "answered": answered, "right": right}


def careful(url: str, n: int, place: Path) -> dict[str, Any]:
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

                await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))

    return {**measured(lambda: run_fast(everything)), **read_rows(path)}


def sdk(url: str, n: int, place: Path) -> dict[str, Any]:
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

            await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))

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


def fill(url: str, n: int, place: Path) -> dict[str, Any]:
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


def resume(url: str, n: int, place: Path) -> dict[str, Any]:
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
            model = ServedModel(where, in_flight=IN_FLIGHT)
            gather(model, iterate_prompts(path), asking, store, "ask", n)
            found = paired(iterate_prompts(path), asking, store)
            answered = sum(answer is not None for _, answer in found)

        used = measured(work)
    return {**used, "answered": answered}


CLIENTS = {"ours": ours, "aiohttp": careful, "openai": sdk, "fill": fill, "resume": resume}


def main() -> None:
    """Run one."""
    who, url, number, folder = sys.argv[1:]
    print(json.dumps(CLIENTS[who](url, int(number), Path(folder))))  # noqa: T201


if __name__ == "__main__":
    main()
