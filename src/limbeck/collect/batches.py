"""Answers through a provider's batch queue: it is on record before it is handed over.

Beside the store lies a folder `….batches` with a file for each batch that is under way: its id at
the provider, and the ids of its answers and prompts. It is written before the hand-over and removed
once the answers are in the store, so any later process can go on from any moment.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from limbeck.collect.ask import Asking, missing
from limbeck.collect.store import AnswerStore
from limbeck.collect.verify import verified
from limbeck.errors import InputError, LimbeckError, ServiceError
from limbeck.files import write_text
from limbeck.models.batches import (
    FULL_QUEUE,
    MOST_BYTES,
    MOST_LINES,
    BatchService,
    Line,
    Sign,
    Status,
)
from limbeck.models.budget import Purse, bound
from limbeck.models.dialects.base import NOTHING, Reply
from limbeck.models.exchange import Result, unfit
from limbeck.models.routes import Route
from limbeck.progress import duration, say
from limbeck.records import Answer, Outcome, Prompt, Sampling, Usage

ROUNDS = 3  # times that a question which the queue spoilt is handed over
FIRST_LOOK, LAST_LOOK = 1.0, 60.0  # seconds between two looks, growing
TOGETHER = 500  # answers written at once


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch under way. `asked` are its answers' ids with their prompts', `most` what they cost.

    `id` is the provider's, "" until it is known to have arrived.
    """

    name: str
    model: str
    route: str
    sampling: Sampling
    since: float
    asked: dict[str, str]
    most: Usage
    id: str = ""


class Queue:
    """The batches of one route under way, in the folder beside a store."""

    def __init__(self, store: Path, where: Route) -> None:
        self.folder, self.where = store.with_name(f"{store.name}.batches"), where

    def batches(self) -> list[Batch]:
        """Those of this route and model, oldest first; InputError for a damaged record."""
        found: list[Batch] = []
        for path in self.folder.glob("*.json"):
            try:
                told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                told |= {"sampling": Sampling(**told["sampling"]), "most": Usage(**told["most"])}
                one = Batch(**told)
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path} is damaged ({error}). It tells of a batch that may be paid for: put "
                    "it back from a copy, or remove it to ask for its answers again."
                ) from None
            if (one.model, one.route) == (self.where.model, self.where.name):
                found.append(one)
        return sorted(found, key=lambda one: one.since)

    def write(self, batch: Batch) -> None:
        """Put a batch on record."""
        write_text(self.folder / f"{batch.name}.json", json.dumps(asdict(batch)) + "\n")

    def remove(self, batch: Batch) -> None:
        """Take a batch off the record."""
        (self.folder / f"{batch.name}.json").unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def refuse_live(self, store: AnswerStore) -> None:
        """Raise InputError where live questions would be asked besides a batch under way."""
        number = 0
        for one in self.batches():
            left = one.asked.keys() - store.have(list(one.asked))
            number += len(left)
            if not left:  # it was stopped between the two
                self.remove(one)
        if number:
            raise InputError(
                f"{number:,} questions to {self.where.teacher} are in batches under way, and will "
                'be billed: set teacher.batch = "wait" to collect them first.'
            )


class Desk:
    """One process at the queue: hands over, looks, takes in."""

    def __init__(
        self, where: Route, asking: Asking, store: AnswerStore, money: Purse, service: BatchService
    ) -> None:
        self.where, self.asking, self.store = where, asking, store
        self.money, self.service = money, service
        self.queue = Queue(store.path, where)
        self.under_way = self.queue.batches()
        self._prompts: Callable[[], Iterator[Prompt]] = lambda: iter(())
        for one in self.under_way:
            money.hold(one.most)
        self.rounds: Counter[str] = Counter()
        self.lost: dict[str, Usage] = {}
        self.full = ""  # why the queue takes no more, until a batch has ended

    def collect(self, prompts: Callable[[], Iterator[Prompt]], *, leave: bool) -> None:
        """Hand over what is missing and take in what is done, until nothing is under way.

        With `leave`, it only looks once; raises ServiceError while something is under way.
        """
        self._prompts = prompts
        pause, first = FIRST_LOOK, True
        while True:
            took = self._take_in()
            if took or first:
                first, self.full = False, ""
                self._hand_over(prompts())
            elif not self.under_way:
                raise ServiceError(
                    f"{self.where.name} takes no batch: {self.full} Ask fewer with prompts.limit, "
                    "or live."
                )
            if not self.under_way:
                return
            number = sum(len(one.asked) for one in self.under_way)
            if leave:
                raise ServiceError(
                    f"{number:,} questions are in {len(self.under_way)} batches under way at "
                    f"{self.where.name}, for a day at most: come back with the same command."
                )
            pause = FIRST_LOOK if took else min(1.5 * pause, LAST_LOOK)
            if pause >= LAST_LOOK / 2:
                say(f"{'batch':>9}  {number:,} questions under way; next look in {duration(pause)}")
            time.sleep(pause)

    # -- handing over ------------------------------------------------------------------------

    def _hand_over(self, prompts: Iterator[Prompt]) -> None:
        """Batches of all that is missing and not under way, as far as the budget reaches."""
        busy = {id_ for one in self.under_way for id_ in one.asked}
        some: list[Prompt] = []
        size = 0
        for prompt in missing(prompts, self.asking, self.store):
            key = self.asking.key(prompt)
            if key in busy or self.rounds[key] >= ROUNDS:
                continue
            most = self._most([prompt])
            if self.money.capped and not self.money.fits(most):
                if not some and not self.under_way:
                    raise self._spent(most)
                break
            self.money.hold(most)
            some.append(prompt)
            size += most.tokens_in
            if len(some) >= MOST_LINES or size >= MOST_BYTES:
                self._submit(some)
                some, size = [], 0
        if some:
            self._submit(some)

    def _spent(self, most: Usage) -> ServiceError:
        return ServiceError(
            f"The budget is spent: {self.money.told()}, and the next question may take "
            f"{most.tokens_in:,} tokens read and {most.tokens_out:,} written. What was answered "
            "is kept: raise [budget] and run the same command again."
        )

    def _submit(self, prompts: list[Prompt]) -> None:
        asking, most = self.asking, self._most(prompts)
        for prompt in prompts:
            self.money.settle(self._most([prompt]), None)
        self.money.hold(most)
        asked = {asking.key(p): p.id for p in prompts}
        batch = Batch(
            f"limbeck-{uuid4().hex}", asking.model, asking.route, asking.sampling, time.time(),
            asked, most,
        )  # fmt: skip
        self.queue.write(batch)
        try:
            id_ = self.service.submit(map(self._line, prompts), self._sign(batch))
        except InputError:
            self.queue.remove(batch)  # there is no queue, or no entry
            raise
        batch = replace(batch, id=id_)
        self.queue.write(batch)
        self.under_way.append(batch)
        say(f"{'batch':>9}  {id_}: {len(prompts):,} questions handed over")

    def _most(self, prompts: list[Prompt]) -> Usage:
        """What these questions take at most."""
        bounds = [bound(p, self.asking.sampling.max_tokens) for p in prompts]
        read, written = sum(b.tokens_in for b in bounds), sum(b.tokens_out for b in bounds)
        return Usage(read, written, batch=True)

    def _sign(self, batch: Batch) -> Sign:
        """What a batch can be told from others by."""
        ours = frozenset(one.id for one in self.under_way if one.id)
        return Sign(batch.name, len(batch.asked), batch.since, ours)

    def _line(self, prompt: Prompt) -> Line:
        route = self.where
        asked = route.dialect.body(prompt, route.model, self.asking.sampling, route.cap, route.seed)
        return self.asking.key(prompt), asked

    # -- taking in ---------------------------------------------------------------------------

    def _take_in(self) -> bool:
        """Store the answers of every batch that has ended; whether there was one."""
        took = False
        for batch in self.under_way:
            id_ = batch.id or self.service.find(self._sign(batch))
            if id_ is None:
                self._done(batch)  # it never arrived
                continue
            if not batch.id:
                self.queue.write(replace(batch, id=id_))
            status = self.service.look(id_)
            if status.state == "failed":
                self._failed(batch, status)
            elif status.state == "ended":
                self._ended(batch, status)
                took = True
        return took

    def _failed(self, batch: Batch, status: Status) -> None:
        """Nothing of a failed batch was done or billed."""
        self._done(batch)
        if status.code != FULL_QUEUE:
            raise ServiceError(f"{self.where.name} refused the batch {status.id}: {status.why}.")
        self.full = status.why

    def _ended(self, batch: Batch, status: Status) -> None:
        left, some = batch.asked.keys() - self.store.have(list(batch.asked)), list[Answer]()
        bound_to = self._bound_to(batch)
        ends: LimbeckError | None = None
        results = self.service.results(status)
        while True:
            try:
                id_, result = next(results)
            except StopIteration:
                break
            except LimbeckError as error:  # what ends a run, after what was answered is safe
                ends = error
                break
            if id_ not in left:
                continue
            if (answer := self._answer(batch, id_, result, bound_to.get(id_))) is not None:
                left.discard(id_)
                some.append(verified(answer))
            if len(some) >= TOGETHER:
                self.store.add(some)
                some = []
        for id_ in left if ends is None else ():
            self.rounds[id_] += 1
            if self.rounds[id_] >= ROUNDS:
                why = f"handed over {ROUNDS} times, and never answered"
                none = replace(self._lost(id_), batch=True)
                some.append(self._made(batch, id_, NOTHING, "error", none, "failed", why))
        self.store.add(some)
        if ends is not None:
            raise ends
        came = len(batch.asked) - len(left)
        self._done(batch)
        say(f"{'batch':>9}  {status.id}: {came:,} of {len(batch.asked):,} answered"
            + (f", {len(left):,} to be handed over again" if left else ""))  # fmt: skip

    def _done(self, batch: Batch) -> None:
        self.money.settle(batch.most, None)
        self.queue.remove(batch)
        self.under_way = [one for one in self.under_way if one.name != batch.name]

    def _bound_to(self, batch: Batch) -> dict[str, Prompt]:
        """The prompts of a batch that say what calls or JSON an answer may hold, by its id."""
        named = ((p, Answer.identify(p.id, batch.model, batch.route, batch.sampling))
                 for p in self._prompts() if p.tools or p.schema)  # fmt: skip
        return {id_: prompt for prompt, id_ in named if id_ in batch.asked}

    def _answer(
        self, batch: Batch, id_: str, result: Result, prompt: Prompt | None
    ) -> Answer | None:
        """The answer to store; None where the question is to be handed over again."""
        if result.reply is not None:
            reply = result.reply
            used = reply.usage or Usage(len(reply.text), len(reply.text.encode()))
            self.money.spend(replace(used, batch=True))
            lost = self._lost(id_)
            used = replace(used, batch=True, lost_in=lost.lost_in, lost_out=lost.lost_out)
            why = unfit(reply, prompt) if prompt else ""
            ended: Outcome = "rejected" if why else "kept"
            return self._made(batch, id_, reply, reply.finish, used, ended, why)
        if result.kind == "prompt":
            outcome: Outcome = "refused" if result.refused else "failed"
            none = replace(self._lost(id_), batch=True)
            return self._made(batch, id_, NOTHING, "denied", none, outcome, result.why)
        if result.paid:
            read, written = batch.most.tokens_in // len(batch.asked), batch.sampling.max_tokens
            self.money.spend(Usage(read, written, batch=True))
            lost = self._lost(id_)
            self.lost[id_] = replace(
                lost, lost_in=lost.lost_in + read, lost_out=lost.lost_out + written
            )
        return None

    def _lost(self, id_: str) -> Usage:
        """What earlier tries of a question may have been billed that brought nothing."""
        return self.lost.get(id_, Usage(0, 0))

    def _made(
        self,
        batch: Batch,
        id_: str,
        reply: Reply,
        finish: str,
        usage: Usage,
        outcome: Outcome,
        why: str,
    ) -> Answer:
        return Answer(
            id=id_, prompt_id=batch.asked[id_], model=batch.model, route=batch.route,
            sampling=batch.sampling, text=reply.text, reasoning=reply.reasoning,
            tool_calls=reply.calls, token_ids=(), finish_reason=finish, usage=usage,
            outcome=outcome, why=why,
        )  # fmt: skip
