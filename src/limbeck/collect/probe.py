"""What a service can do, found out with a few small questions before many are paid for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import aiohttp
from pydantic_core import from_json

from limbeck.errors import InputError, LimbeckError, ServiceError
from limbeck.models.budget import Purse, bound
from limbeck.models.exchange import Result, broken_off, judge
from limbeck.models.pace import Pace, Ticket
from limbeck.models.routes import Route
from limbeck.models.wire import proxy_for
from limbeck.records import Message, Prompt, Sampling, TopLogprobs

TOP = 20  # log-probabilities asked for: no service that we know gives more
WORD = "alembic"
TRIES = 5
CONTEXT = (
    "max_model_len", "context_length", "context_window", "max_input_tokens", "max_context_length",
    "inputTokenLimit",
)  # fmt: skip
OUTPUT = ("max_output_tokens", "max_tokens", "outputTokenLimit")
TOKENS = 256  # room for a reasoning model to say a word
QUESTION = (
    Message("system", f'Begin your reply with the word "{WORD}", then answer in one sentence.'),
    Message("user", "Which colour do you like best, and why?"),
)


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found. None is for what could not be found out.

    `logprobs` is how many a token, 0 where there are none; `fake` says what is wrong with them.
    `tokens` are the bytes of those that its answer was written in, and of all that it named beside
    them, in hexadecimal.
    """

    streams: bool | None
    logprobs: int
    fake: str
    context: int | None
    output: int | None
    system: bool | None
    reasons: bool
    tokens_in: int
    tokens_out: int
    tokens: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def line(self) -> str:
        """What it found, for a person."""
        told = {True: "yes", False: "no", None: "not known"}
        logprobs = f"{self.logprobs} a token" if self.logprobs else self.fake or "none"
        context = f"{self.context:,}" if self.context else "not told"
        output = f"{self.output:,}" if self.output else "not told"
        return (
            f"streaming: {told[self.streams]}; log-probabilities: {logprobs}; context: {context}; "
            f"longest answer: {output}; heeds a system message: {told[self.system]}"
            + ("; reasons first" if self.reasons else "")
        )


def probe(route: Route, sampling: Sampling, purse: Purse, pace: Pace) -> Probe:
    """Ask the service two or three small questions, within the purse.

    Raises InputError for a wrong key, an unknown model or settings that it refuses, ServiceError
    where it does not answer.
    """
    return asyncio.run(_Prober(route, sampling, purse, pace).all())


class _Prober:
    def __init__(self, route: Route, sampling: Sampling, purse: Purse, pace: Pace) -> None:
        self.route, self.purse, self.pace = route, purse, pace
        self.key = route.key()
        self.sampling = replace(sampling, max_tokens=min(TOKENS, sampling.max_tokens))
        self.prompt = Prompt("", QUESTION, "probe", "train")
        self.used = [0, 0]

    async def all(self) -> Probe:
        timeout = aiohttp.ClientTimeout(total=None, connect=30, sock_read=300)
        headers = {"Content-Type": "application/json", **self.route.dialect.headers(self.key)}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as self.session:
            context, output = await self._limits()
            with_logprobs = self._body()
            self.route.dialect.logprobs(with_logprobs, TOP)
            result, raw = await self._ask(with_logprobs)
            told: list[TopLogprobs] = []
            if result.reply is not None:
                told = _logprobs(self.route, raw)
            else:
                result, raw = await self._ask(self._body())
            reply = result.reply
            if reply is None:
                raise InputError(
                    f"{self.route.teacher} refuses a plain question: {result.why}. Correct "
                    "[teacher] (temperature, top_p and max_tokens are not free with every model)."
                )
            streams = await self._streams()
        many, fake = genuine([[t.logprob, *(value for _, value in t.top)] for t in told])
        named = sorted({token.hex() for t in told for token, _ in t.top})
        tokens = (tuple(t.token.hex() for t in told), tuple(named)) if many else ((), ())
        heeds = reply.text.lstrip("\"'*# ").lower().startswith(WORD) if reply.text else None
        reasons = bool(reply.reasoning or (reply.usage and reply.usage.reasoning))
        return Probe(
            streams, many, fake, context, output, heeds, reasons, *self.used, tokens=tokens
        )

    def _body(self) -> dict[str, Any]:
        route = self.route
        return route.dialect.body(self.prompt, route.model, self.sampling, route.cap, route.seed)

    async def _ask(self, body: dict[str, Any]) -> tuple[Result, bytes]:
        """One question until it is answered, refused for good, or the service is given up."""
        most = bound(self.prompt, self.sampling.max_tokens)
        for tries in range(1, TRIES + 1):
            self.purse.refuse_too_little(most)
            self.purse.hold(most)
            result, raw, headers = await self._post(body)
            used = (result.reply.usage or most) if result.reply else most if result.paid else None
            self.purse.settle(most, used)
            if used is not None:
                self.used[0] += used.tokens_in
                self.used[1] += used.tokens_out
            if result.kind in ("good", "prompt"):
                return result, raw
            wait = self.pace.backoff(tries)
            if result.kind == "denied":
                wait = self.pace.refused(Ticket(0, self.pace.clock(), {}), headers, result.why)
            if tries < TRIES:
                await asyncio.sleep(wait)
        raise ServiceError(
            f"{self.route.name} gave no answer in {TRIES} tries; last: {result.why}. Check the "  # pyright: ignore[reportPossiblyUnboundVariable]
            "address, or try again later."
        )

    async def _post(self, body: dict[str, Any]) -> tuple[Result, bytes, Mapping[str, str]]:
        route = self.route
        proxy = None if route.local else proxy_for(route.url)
        try:
            async with self.session.post(
                route.url, json=body, allow_redirects=False, proxy=proxy
            ) as response:
                raw = await response.read()
                found = judge(route, self.key, response.status, response.headers, raw)
                return found, raw, response.headers
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return broken_off(route, self.key, error), b"", {}

    async def _limits(self) -> tuple[int | None, int | None]:
        """Context and longest answer, where the service's list of models tells them."""
        route = self.route
        gemini = "generateContent" in route.url
        path = f"/models/{route.model}" if gemini else "/models"
        proxy = None if route.local else proxy_for(route.url)
        try:
            async with self.session.get(
                route.base + path, allow_redirects=False, proxy=proxy
            ) as response:
                told: Any = from_json(await response.read()) if response.status == 200 else {}
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return None, None
        models = told.get("data") if isinstance(told, dict) and "data" in told else [told]
        for one in models if isinstance(models, list) else []:
            if isinstance(one, dict) and one.get("id", route.model) == route.model:
                return _first(one, *CONTEXT), _first(one, *OUTPUT)
        return None, None

    async def _streams(self) -> bool | None:
        """Whether it streams; asked of the dialects that say so in the question."""
        if "generateContent" in self.route.url:
            return None
        body = self._body() | {"stream": True}
        most = bound(self.prompt, self.sampling.max_tokens)
        if not self.purse.fits(most):
            return None
        proxy = None if self.route.local else proxy_for(self.route.url)
        try:
            async with self.session.post(
                self.route.url, json=body, allow_redirects=False, proxy=proxy
            ) as response:
                raw = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None
        self.purse.spend(most)  # at most: what it used is told in pieces
        self.used[0] += most.tokens_in
        self.used[1] += most.tokens_out
        if response.status != 200:
            return False if response.status in (400, 422) else None
        return raw.lstrip().startswith((b"data:", b"event:"))


def genuine(told: list[list[float]]) -> tuple[int, str]:
    """How many log-probabilities a token are real, and else what is wrong with them.

    Real ones differ among the likeliest of at least one token, are finite and at most 0, and their
    probabilities sum to at most 1. Some services answer with 0, or −9999, for every token.
    """
    tops = [row[1:] for row in told if len(row) > 2]
    if not tops:
        return 0, ""
    every = [value for row in told for value in row]
    if all(value == every[0] for value in every):
        return 0, f"fake: every one is {every[0]:g}"
    if not all(math.isfinite(value) and value <= 1e-6 for value in every):
        return 0, "fake: some are above 0 or not finite"
    spread = [row for row in tops if len({v for v in row if v > -9000}) > 1]
    if not spread:
        return 0, "fake: no two of a token differ"
    if any(sum(map(math.exp, row)) > 1.01 for row in tops):
        return 0, "fake: probabilities of a token sum to more than 1"
    return max(map(len, tops)), ""


def _logprobs(route: Route, raw: bytes) -> list[TopLogprobs]:
    try:
        return route.dialect.read_logprobs(from_json(raw))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, LimbeckError):
        return []


def _first(table: Mapping[str, Any], *names: str) -> int | None:
    return next((table[n] for n in names if isinstance(table.get(n), int) and table[n]), None)


def to_json(found: Probe) -> dict[str, Any]:
    """As a document of the run folder."""
    return asdict(found)
