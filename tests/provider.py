"""A provider of our own on loopback: three dialects, limits, and faults that can be switched on.

In a test it runs in a thread (`with Provider(Behaviour(...)) as provider`); for the benchmark it is
a process of its own (`python tests/provider.py '{"latency": 0.05}'`), which prints its address and
tells its counts at `/stats`. It bills what a provider would bill: every request that it began to
answer. What it said to whom is kept, so that a test can tell "paid twice" from "asked twice".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import ssl
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Any

from aiohttp import web

from dialects import (
    Asked,
    Behaviour,
    Dialect,
    anthropic,
    error_response,
    gemini,
    openai,
    piecemeal,
    read,
    stream,
    tokens_in,
)

try:
    from uvloop import new_event_loop  # pyright: ignore[reportMissingImports]
except ImportError:
    from asyncio import new_event_loop

FAULTS = (
    "429", "429 bare", "500", "503", "502 html", "reset before", "reset inside", "slow",
    "truncated", "wrong type", "empty choices", "null content", "bad utf-8",
)  # fmt: skip
ASIDE = ("length", "refusal", "html 200", "error in 200", "duplicate id", "hour", "date", "400")
BROKEN = ("reset inside", "truncated", "empty choices", "null content", "bad utf-8", "html 200")


@dataclass
class Counts:
    """What the provider saw, and what it would bill."""

    requests: int = 0
    denied: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    good: Counter[str] = field(default_factory=Counter)  # whole good bodies, by prompt and cap
    broken: Counter[str] = field(default_factory=Counter)  # billed, and of no use, by the same
    tokens_in: int = 0
    tokens_out: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    first: float = 0.0
    last: float = 0.0
    arrivals: list[float] = field(default_factory=list)

    @property
    def paid_twice(self) -> int:
        """Good answers that were asked for again."""
        return sum(n - 1 for n in self.good.values() if n > 1)

    def told(self) -> dict[str, Any]:
        """The figures for another process."""
        return {
            "requests": self.requests, "denied": self.denied, "faults": dict(self.faults),
            "good": sum(self.good.values()), "broken": sum(self.broken.values()),
            "paid_twice": self.paid_twice, "prompts": len(self.good),
            "in_flight": self.in_flight, "most_in_flight": self.most_in_flight,
            "first": self.first, "last": self.last,
        }  # fmt: skip


def answer_to(prompt: str, words: int = 12) -> str:
    """The one right answer to a prompt, which a test can know too."""
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    return " ".join(
        ["It", "is", digest[:8], *(f"w{digest[i % 60 : i % 60 + 4]}" for i in range(words - 3))]
    )


class Provider:
    """A server on 127.0.0.1 for as long as the block lasts."""

    def __init__(
        self, behaviour: Behaviour | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.behaviour, self.tls = behaviour or Behaviour(), tls
        self.counts = Counts()
        self.seen: list[Asked] = []
        self.keep_seen = True
        self._tries: defaultdict[str, int] = defaultdict(int)
        self._faulty: Counter[str] = Counter()
        self._level, self._filled = 0.0, 0.0
        self._token_level, self._tokens_filled = 0.0, 0.0
        self._number = 0

    # -- running -----------------------------------------------------------------------------

    def __enter__(self) -> Provider:
        ready = threading.Event()
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self.serve())
        ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    async def serve(self) -> None:
        """Begin to listen on a free port."""
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None))
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self.tls, backlog=2048)
        await site.start()
        self.port = self._runner.addresses[0][1]

    @property
    def url(self) -> str:
        """The base URL of the OpenAI dialect."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"

    def change(self, **behaviour: Any) -> None:
        """Behave otherwise from now on."""
        self.behaviour = replace(self.behaviour, **behaviour)

    # -- requests ----------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path == "/stats":
            return web.json_response(self.counts.told())
        if path == "/reset":
            self.counts, self.seen = Counts(), []
            return web.json_response({})
        if request.method == "GET":
            return self._models(path)
        asked = read(path, json.loads(await request.read()))
        now = time.monotonic()
        self.counts.requests += 1
        self.counts.first = self.counts.first or now
        self.counts.last = now
        if self.keep_seen:
            self.counts.arrivals.append(now)
            self.seen.append(asked)
        if refused := self._refused(request, asked):
            return refused
        counts = self.counts
        counts.in_flight += 1
        counts.most_in_flight = max(counts.most_in_flight, counts.in_flight)
        try:
            return await self._admitted(request, asked, now)
        finally:
            counts.in_flight -= 1

    async def _admitted(
        self, request: web.BaseRequest, asked: Asked, now: float
    ) -> web.StreamResponse:
        has = self.behaviour
        wait = self._limit(now, asked)
        if wait:
            self.counts.denied += 1
            return self._denied(asked, f"{wait:.3f}" if wait < 1 else str(int(wait + 0.999)))
        fault = self._fault(asked)
        self.counts.faults[fault] += bool(fault)
        if early := self._early(request, asked, fault):
            return early
        if has.latency:
            await asyncio.sleep(has.latency)
        return await self._answer(request, asked, fault)

    def _refused(self, request: web.BaseRequest, asked: Asked) -> web.Response | None:
        has = self.behaviour
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        key = bearer or request.headers.get("x-api-key") or request.headers.get("x-goog-api-key")
        if has.key and key != has.key:
            return error_response(asked.dialect, 401, f"Incorrect API key provided: {key}")
        if has.models and asked.model not in has.models:
            return error_response(asked.dialect, 404, f"The model {asked.model} does not exist")
        if asked.logprobs and has.logprobs == "refused":
            return error_response(asked.dialect, 400, "logprobs are not supported with this model")
        return None

    def _models(self, path: str) -> web.Response:
        has = self.behaviour
        context = {"max_model_len": has.context} if has.context else {}
        if "v1beta" in path:
            return web.json_response({"inputTokenLimit": has.context, "outputTokenLimit": 8192})
        models = [{"id": m, "object": "model", **context} for m in has.models or ("teacher",)]
        return web.json_response({"object": "list", "data": models})

    # -- limits ------------------------------------------------------------------------------

    def _limit(self, now: float, asked: Asked) -> float:
        """Seconds until this request would be let in; 0 if it is."""
        has = self.behaviour
        if has.later and self.counts.requests > has.later[0]:
            has = self.behaviour = replace(has, per_minute=has.later[1], later=None)
            self._level = min(self._level, has.per_minute / 60 * has.burst)
        if has.tokens_per_minute:
            rate = has.tokens_per_minute / 60
            most = rate * max(has.burst, 1)
            elapsed = now - (self._tokens_filled or now - 1e9)
            self._token_level = min(most, self._token_level + elapsed * rate)
            self._tokens_filled = now
            if self._token_level < 0:
                return -self._token_level / rate
            self._token_level -= tokens_in(asked, has.overhead) + has.words
        if not has.per_minute:
            return 0.0
        if has.kind == "window":
            if now - self._filled >= has.period:
                self._filled, self._level = now, has.per_minute * has.period / 60
            wait = self._filled + has.period - now
        else:
            rate = has.per_minute / 60
            most = max(1.0, rate * has.burst)
            self._level = min(most, self._level + (now - (self._filled or now - 1e9)) * rate)
            self._filled = now
            wait = (1 - self._level) / rate
        if self._level < 1:
            return max(wait, 1e-3)
        self._level -= 1
        return 0.0

    def _limit_headers(self, dialect: Dialect) -> dict[str, str]:
        has = self.behaviour
        if not has.headers or not has.per_minute:
            return {}
        left = str(max(0, int(self._level)))
        limit = str(int(has.per_minute))
        if dialect == "anthropic":
            reset = time.time() + 60 - self._level / max(has.per_minute / 60, 1e-9)
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(reset))
            prefix = "anthropic-ratelimit-requests"
            return {f"{prefix}-limit": limit, f"{prefix}-remaining": left, f"{prefix}-reset": stamp}
        wait = max(0.0, self._filled + has.period - time.monotonic())
        reset = f"{wait:.3f}s" if has.kind == "window" else "20ms"
        told = {"limit": limit, "remaining": left, "reset": reset}
        return {f"x-ratelimit-{name}-requests": value for name, value in told.items()}

    def _denied(self, asked: Asked, wait: str | None) -> web.Response:
        headers = self._limit_headers(asked.dialect)
        if wait is not None and self.behaviour.retry_after:
            headers["Retry-After"] = wait
        return error_response(asked.dialect, 429, "Rate limit reached for requests", headers)

    # -- faults ------------------------------------------------------------------------------

    def _fault(self, asked: Asked) -> str:
        """Which fault this try meets; the same for the same prompt, try and seed."""
        faults = self.behaviour.faults
        if not faults:
            return ""
        number = self._tries[asked.prompt]
        self._tries[asked.prompt] += 1
        if self._faulty[asked.prompt] >= self.behaviour.most_faults:
            return ""
        seed = f"{self.behaviour.seed}|{asked.prompt}|{number}".encode()
        drawn = int.from_bytes(hashlib.sha256(seed).digest()[:8], "big") / 2**64
        for kind, share in faults.items():
            drawn -= share
            if drawn < 0:
                self._faulty[asked.prompt] += 1
                return kind
        return ""

    def _early(
        self, request: web.BaseRequest, asked: Asked, fault: str
    ) -> web.StreamResponse | None:
        """What is said before anything was billed."""
        match fault:
            case "429" | "hour" | "date":
                waits = {
                    "429": "1",
                    "hour": "3600",
                    "date": formatdate(time.time() + 2, usegmt=True),
                }
                return error_response(
                    asked.dialect, 429, "Slow down", {"Retry-After": waits[fault]}
                )
            case "429 bare":
                return error_response(asked.dialect, 429, "Slow down")
            case "500" | "503":
                return error_response(asked.dialect, int(fault), "The server had an error")
            case "400":
                return error_response(asked.dialect, 400, "This prompt is not to our taste")
            case "502 html":
                page = "<html><head><title>502 Bad Gateway</title></head></html>"
                return web.Response(status=502, text=page, content_type="text/html")
            case "reset before":
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case _:
                return None

    async def _answer(
        self, request: web.BaseRequest, asked: Asked, fault: str
    ) -> web.StreamResponse:
        has = self.behaviour
        text = answer_to(asked.prompt, has.words)
        wanted = re.search(r'the word "(\w+)"', asked.system) if has.system else None
        if wanted:
            text = f"{wanted[1]} {text}"
        if asked.schema is not None:
            text = json.dumps(dict.fromkeys(asked.schema["properties"], text))
        if fault == "refusal":
            text = "I'm sorry, but I can't help with that."
        finish = "stop"
        if fault == "length" or asked.cap < len(text.split()):
            text, finish = " ".join(text.split()[: asked.cap]), "length"
        document = self._document(asked, text, finish, fault)
        name = f"{asked.prompt}|{asked.cap}"
        self.counts.tokens_in += tokens_in(asked, has.overhead)
        self.counts.tokens_out += len(text.split())
        (self.counts.broken if fault in BROKEN else self.counts.good)[name] += 1
        headers = self._limit_headers(asked.dialect)
        if asked.stream:
            return await stream(request, document, headers)
        body = json.dumps(document, ensure_ascii=False).encode()
        if fault == "bad utf-8":
            body = body.replace(b"It is", b"It \xff\xfe is", 1)
        if fault == "truncated":
            body = body[: len(body) // 2]
        if fault == "html 200":
            body = b"<!doctype html><html><body>Please log in</body></html>"
        kind = "text/html" if fault in ("wrong type", "html 200") else "application/json"
        if fault in ("reset inside", "slow"):
            return await piecemeal(request, body, headers, slow=fault == "slow")
        return web.Response(body=body, content_type=kind, headers=headers)

    def _document(self, asked: Asked, text: str, finish: str, fault: str) -> dict[str, Any]:
        has = self.behaviour
        self._number += 1
        id_ = "same" if fault == "duplicate id" else f"answer-{self._number}"
        tokens = tokens_in(asked, has.overhead), len(text.split())
        said: str | None = None if fault == "null content" else text
        if fault == "error in 200":
            return {"error": {"code": 502, "message": "Upstream error"}}
        make: Callable[..., dict[str, Any]] = {
            "openai": openai, "anthropic": anthropic, "gemini": gemini
        }[asked.dialect]  # fmt: skip
        document = make(id_, asked, said, finish, tokens, has)
        if fault == "empty choices":
            for key in ("choices", "content", "candidates"):
                if key in document:
                    document[key] = []
        if not has.usage:
            document.pop("usage", None)
            document.pop("usageMetadata", None)
        return document


async def _main(behaviour: Behaviour) -> None:
    provider = Provider(behaviour)
    provider.keep_seen = False
    await provider.serve()
    print(provider.url, flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.read)  # until whoever started it goes away


if __name__ == "__main__":
    settings = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    for name in ("models", "later"):
        if settings.get(name) is not None:
            settings[name] = tuple(settings[name])
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=new_event_loop) as run:
        run.run(_main(Behaviour(**settings)))
