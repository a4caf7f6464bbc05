"""A model behind a service: hundreds of questions in flight from one thread, none paid twice."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from pydantic_core import to_json

from limbeck.errors import InputError, LimbeckError, ServiceError
from limbeck.models.budget import Purse, bound
from limbeck.models.dialects.base import NOTHING, Reply
from limbeck.models.exchange import SILENCE, Result, broken_off, judge, unfit
from limbeck.models.pace import Pace, Ticket
from limbeck.models.protocol import QUIET, Asked, OnTokens
from limbeck.models.routes import Route
from limbeck.models.wire import in_a_thread, proxy_for
from limbeck.progress import duration, say
from limbeck.records import Answer, Outcome, Prompt, Sampling, Targets, Usage

MOST_TRIES = 8  # of a question that broken answers or a failing service spoil
HOPELESS = 50  # answers in a row that are none: something else is wrong than bad luck
LINGER = 0.005  # seconds in which answers are gathered, to be made safe in one go
MEAN_PAUSE = 5.0  # seconds: a longer pause is said


class ServedModel:
    """A service behind the one `Model` protocol.

    `fingerprint` is the model's name at the service: nothing else of what it is can be known.

    Args:
        route: how it is reached.
        in_flight: most questions at once.
        purse: what may be spent; default: without end.
        pace: when questions may go out; default: learnt from nothing.
        logprobs: how many log-probabilities a token to ask for with each answer.
    """

    def __init__(
        self,
        route: Route,
        *,
        in_flight: int = 256,
        purse: Purse | None = None,
        pace: Pace | None = None,
        logprobs: int = 0,
    ) -> None:
        self.where, self.name = route, route.teacher
        self.route, self.fingerprint = route.name, route.model
        self.purse = purse or Purse(None)
        self.pace = pace or Pace(in_flight, who=route.teacher)
        self.logprobs = logprobs

    def generate(
        self, prompts: Iterable[Prompt], sampling: Sampling, on_tokens: OnTokens = QUIET
    ) -> Iterator[list[Answer]]:
        """Ask every prompt; lists come as answers do.

        An answer counts as in flight until the next list is asked for, by when it has to be safe.
        `prompts` are drawn as they are needed, by the thread that asks for the lists: while it
        makes one safe, another thread sends and receives. What ends the run (a wrong key, an empty
        purse, a service that is worn out) is raised after the last answer in flight has come.
        """
        desk, remaining = _Desk(self, sampling), iter(prompts)
        with in_a_thread() as run:
            try:
                desk.feed(remaining)
                run(desk.open())
                while (answers := run(desk.gather())) is not None:
                    if answers:
                        on_tokens(sum(answer.usage.tokens_out for answer in answers))
                        yield answers
                    desk.feed(remaining)
                    run(desk.made_safe(len(answers)))
            finally:
                run(desk.close())

    def score(
        self, asked: Sequence[Asked], top_k: int, temperature: float, tail_samples: int = 0
    ) -> Iterator[Targets]:
        """A service's distributions over its answers are not to be had."""
        raise InputError(f"{self.name} is behind a service and cannot score answers")


@dataclass(slots=True)
class _Job:
    """A question on its way, with what it may cost at most and what earlier tries may have."""

    prompt: Prompt
    body: bytes
    most: Usage
    tries: int = 0
    lost: Usage = field(default_factory=lambda: Usage(0, 0))
    began: float = 0.0


class _Desk:
    """One call of `generate`: sends, retries and gathers, all on one event loop.

    `feed` alone is for another thread than the loop's.
    """

    def __init__(self, model: ServedModel, sampling: Sampling) -> None:
        self.route, self.pace, self.purse = model.where, model.pace, model.purse
        self.sampling = sampling
        self.drawn: deque[Prompt] = deque()
        self.all_drawn = False
        self.key = self.route.key()
        self.model = model
        self.later: list[tuple[float, int, _Job]] = []  # what is tried again, and when
        self.next: _Job | None = None  # drawn from the prompts, not yet sent
        self.answers: list[Answer] = []
        self.stop: Exception | None = None
        self.tries: set[asyncio.Task[None]] = set()
        self.useless = 0  # answers in a row that are none
        self._number = itertools.count()
        self._sender: asyncio.Task[None] | None = None
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._said = 0.0

    # -- the outside -------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the connections and begin to send."""
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=60, sock_read=SILENCE),
            headers={"Content-Type": "application/json", **self.route.dialect.headers(self.key)},
            skip_auto_headers=("User-Agent",),
        )
        self.proxy = None if self.route.local else proxy_for(self.route.url)
        self._sender = asyncio.create_task(self._send_all())

    def feed(self, prompts: Iterator[Prompt]) -> None:
        """Draw as many prompts as may be sent before the next answers are safe."""
        room = self.pace.most - len(self.drawn)
        some = list(itertools.islice(prompts, room))
        self.drawn.extend(some)
        self.all_drawn = self.all_drawn or len(some) < room

    async def gather(self) -> list[Answer] | None:
        """The answers since the last call; none where prompts are wanted, None at the end."""
        sender = self._sender
        assert sender is not None
        while not (self.answers or self._hungry or (sender.done() and not self.tries)):
            await self._wait("gather")
        if self.answers and not sender.done():
            await asyncio.sleep(LINGER)
        found, self.answers = self.answers, []
        if found or not sender.done():
            return found
        sender.result()  # a mistake of ours is not hidden
        if self.stop is not None:
            raise self.stop
        return None

    async def made_safe(self, answers: int) -> None:
        """So many answers are safe, and no longer in flight; and there may be more prompts."""
        for _ in range(answers):
            self.pace.back()
        self._wake("send")

    async def close(self) -> None:
        """Drop what is still in flight, and the connections."""
        tasks = [task for task in (*self.tries, self._sender) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if hasattr(self, "session"):
            await self.session.close()

    # -- sending -----------------------------------------------------------------------------

    async def _send_all(self) -> None:
        """Send questions as pace and purse allow, until there are none and nothing is tried."""
        loop = asyncio.get_running_loop()
        try:
            while self.stop is None:
                job, wait = self._due(loop.time())
                if job is None:
                    if wait is None and not self.tries and self.all_drawn:
                        return
                    if self._hungry:
                        self._wake("gather")
                    await self._wait("send", wait)
                    continue
                wait = self._held_back(job)
                if wait is None or wait > 0:
                    self._put_back(job)
                    await self._wait("send", wait)
                    continue
                self._send(job)
        except LimbeckError as error:
            self.stop = self.stop or error
        finally:
            self._wake("gather")

    @property
    def _hungry(self) -> bool:
        return not self.drawn and not self.all_drawn and self.stop is None

    def _due(self, now: float) -> tuple[_Job | None, float | None]:
        """The next question, those tried again first; or None and the seconds until one is due."""
        if self.later and self.later[0][0] <= now:
            return heapq.heappop(self.later)[2], None
        if self.next is None and self.drawn:
            self.next = self._job(self.drawn.popleft())
        if self.next is not None:
            job, self.next = self.next, None
            return job, None
        return None, self.later[0][0] - now if self.later else None

    def _put_back(self, job: _Job) -> None:
        if job.tries or self.next is not None:
            heapq.heappush(self.later, (0.0, next(self._number), job))
        else:
            self.next = job

    def _job(self, prompt: Prompt) -> _Job:
        route = self.route
        body = route.dialect.body(prompt, route.model, self.sampling, route.cap, route.seed)
        if self.model.logprobs:
            route.dialect.logprobs(body, self.model.logprobs)
        return _Job(prompt, to_json(body), bound(prompt, self.sampling.max_tokens))

    def _held_back(self, job: _Job) -> float | None:
        """Seconds that pace or purse hold a question back; None until something comes back."""
        wait = self.pace.wait()
        if wait:
            now = time.monotonic()
            if wait > MEAN_PAUSE and now > self._said:
                self._said = now + max(wait, 60)
                say(f"{'collect':>9}  waiting {duration(wait)}, as {self.model.name} asks")
            return wait
        if wait == 0 and self.purse.capped and not self.purse.fits(job.most):
            if self.pace.in_flight:
                return None
            self.stop = ServiceError(
                f"The budget is spent: {self.purse.told()}, and the next question may take "
                f"{job.most.tokens_in:,} tokens read and {job.most.tokens_out:,} written. What was "
                "answered is kept: raise [budget] and run the same command again."
            )
            raise self.stop
        return wait

    def _send(self, job: _Job) -> None:
        ticket = self.pace.go()
        self.purse.hold(job.most)
        job.began = job.began or time.monotonic()
        task = asyncio.get_running_loop().create_task(self._try(job, ticket))
        self.tries.add(task)
        task.add_done_callback(self._tried)

    def _tried(self, task: asyncio.Task[None]) -> None:
        self.tries.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.stop = self.stop or (error if isinstance(error, Exception) else None)
        self._wake("send")
        self._wake("gather")

    # -- one try -----------------------------------------------------------------------------

    async def _try(self, job: _Job, ticket: Ticket) -> None:
        headers: Any = {}
        try:
            try:
                async with self.session.post(
                    self.route.url, data=job.body, allow_redirects=False, proxy=self.proxy
                ) as response:
                    headers = response.headers
                    raw = await response.read()
                    result = judge(self.route, self.key, response.status, headers, raw)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                result = broken_off(self.route, self.key, error)
        except LimbeckError:
            self.purse.settle(job.most, None)
            self.pace.back()
            raise
        self._settle(job, ticket, headers, result)

    def _settle(self, job: _Job, ticket: Ticket, headers: Any, result: Result) -> None:
        """Book what a try cost and brought, and decide what becomes of the question."""
        reply, spent = result.reply, None
        if reply is not None:
            written = len(to_json([reply.text, reply.reasoning, *reply.calls]))
            spent = reply.usage or replace(job.most, tokens_out=written)
        elif result.paid:
            spent = job.most
            job.lost = Usage(
                job.lost.tokens_in + spent.tokens_in, job.lost.tokens_out + spent.tokens_out
            )
        self.purse.settle(job.most, spent)
        if result.kind == "good":
            self.useless = 0
        self.useless += result.kind in ("broken", "prompt")
        if self.useless >= HOPELESS:
            self.pace.back()
            raise ServiceError(
                f"{self.useless} times in a row {self.model.name} gave no answer; last: "
                f"{result.why}. What was answered is kept."
            )
        if reply is not None and spent is not None:
            self.pace.answered(ticket, headers, spent)
            why = unfit(reply, job.prompt)
            self._answered(job, reply.finish, spent, "rejected" if why else "kept", why, reply)
        elif result.kind == "prompt":
            self.pace.answered(ticket, headers, None)
            outcome: Outcome = "refused" if result.refused else "failed"
            self._answered(job, "denied", Usage(0, 0), outcome, result.why)
        else:
            self._again(job, ticket, headers, result)

    def _again(self, job: _Job, ticket: Ticket, headers: Any, result: Result) -> None:
        """Put a question off, or give it up after too many tries."""
        now = asyncio.get_running_loop().time()
        if result.kind == "denied":
            self.pace.back()
            wait = self.pace.refused(ticket, headers, result.why)
            heapq.heappush(self.later, (now + wait, next(self._number), job))
            return
        job.tries += 1
        if result.kind == "broken":
            self.pace.answered(ticket, headers, None)
        else:
            self.pace.strained(ticket, headers, result.why)
        if job.tries >= MOST_TRIES:
            why = f"{job.tries} tries, last: {result.why}"
            self._answered(job, "error", Usage(0, 0), "failed", why)
            return
        self.pace.back()
        wait = self.pace.backoff(job.tries)
        heapq.heappush(self.later, (now + wait, next(self._number), job))

    def _answered(
        self,
        job: _Job,
        finish: str,
        usage: Usage,
        outcome: Outcome,
        why: str,
        reply: Reply = NOTHING,
    ) -> None:
        model = self.model
        seconds = round(time.monotonic() - job.began, 4)
        self.answers.append(
            Answer(
                id=Answer.identify(job.prompt.id, model.fingerprint, model.route, self.sampling),
                prompt_id=job.prompt.id,
                model=model.fingerprint,
                route=model.route,
                sampling=self.sampling,
                text=reply.text,
                reasoning=reply.reasoning,
                tool_calls=reply.calls,
                token_ids=(),
                finish_reason=finish,
                usage=replace(
                    usage,
                    seconds=seconds,
                    lost_in=job.lost.tokens_in,
                    lost_out=job.lost.tokens_out,
                ),
                outcome=outcome,
                why=why,
                logprobs=reply.logprobs,
            )
        )
        self._wake("gather")

    # -- waiting -----------------------------------------------------------------------------

    async def _wait(self, who: str, seconds: float | None = None) -> None:
        """Sleep until woken, or for so long."""
        loop = asyncio.get_running_loop()
        future = self._waiting[who] = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, self._wake, who)
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()

    def _wake(self, who: str) -> None:
        future = self._waiting.get(who)
        if future is not None and not future.done():
            future.set_result(None)
