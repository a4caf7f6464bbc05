"""When the next question may go out: limits learnt from headers and refusals, nothing sent twice.

Three things hold a question back. The window: how many may be in flight, which doubles with every
round of answers until the service shows strain, and then grows by one a round and shrinks by a
third on trouble (AIMD). The limits: a bucket each for requests and tokens, filled at the rate that
headers tell and set to what they say remains. And pauses that the service asks for.

A service that tells no limit shows it by refusing: between two refusals its bucket was empty twice,
so what it let through in between, divided by the time, is the rate itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from limbeck.errors import ServiceError
from limbeck.models.headers import limits_told, retry_after
from limbeck.progress import duration
from limbeck.records import Usage

FIRST_WINDOW = 16
HEED_ALL = 3  # refusals in a row after which everything waits, not the refused question alone
LIMITED = 5  # in a row, after which there is a limit: fewer are common where luck refuses a tenth
BRIEF = 2.0  # seconds: a longer Retry-After holds everything at once
SPAN = 60.0  # seconds over which a rate is measured
ABOVE = 0.005  # of a measured rate is added: a refusal in two hundred keeps the bucket empty
SHADE = 0.0005  # of a told rate is left out more after a refusal; of that, an answer ends a 1000th
RAISE = 0.02  # first step up from a measured rate, doubled while nothing is refused
RAISE_SECONDS = 1.0
STALL = 0.1  # seconds' worth of a told limit that may be made up for without being told again
BURST_SECONDS, BURST = 0.25, 32.0  # what may be made up for, of a rate that was only measured
LONGEST_PAUSE = 15.0  # of our own making
SLOWEST = 1.0  # questions a second of a measured rate: below, pauses do it


@dataclass(slots=True)
class Limit:
    """A bucket: `rate` units a second flow in up to `most`, and each question takes some out.

    `told` says that the service told it; else it was measured, and is only ever of requests.
    """

    name: str
    rate: float
    most: float
    level: float
    at: float
    told: bool
    spent: float = 0.0
    newest: int = -1  # the latest question whose answer set the level

    def fill(self, now: float) -> None:
        """Let in what came since the last look."""
        if now > self.at:  # a pause ends later than now
            self.level = min(self.most, self.level + self.rate * (now - self.at))
            self.at = now


@dataclass(slots=True)
class Ticket:
    """A question that went out: when, as which, and what had been taken from each limit by then."""

    number: int
    at: float
    spent: dict[str, float]


@dataclass(slots=True)
class _Row:
    """Trouble of one kind, and whether it is more than bad luck.

    `length` is how often in a row the very next question met it again; `thick` says that it hit
    `many` of ten questions.
    """

    many: int
    reacted: int = 0  # questions sent when it was last taken note of
    length: int = 0
    thick: bool = False
    _latest: deque[int] = field(default_factory=deque)

    @property
    def serious(self) -> bool:
        """Whether it is more than bad luck."""
        return self.thick or self.length >= LIMITED

    def note(self, ticket: Ticket, sent: int) -> bool:
        """Take note; False where it is old news, of a question sent before the last note."""
        self._latest.append(ticket.number)
        if len(self._latest) > self.many:
            self._latest.popleft()
        self.thick = len(self._latest) == self.many and (max(self._latest) - min(self._latest) < 10)
        if ticket.number <= self.reacted:
            return False
        alone = ticket.number == self.reacted + 1  # else those sent before it were let in
        self.length = self.length + 1 if alone else 1
        self.reacted = sent
        return True


@dataclass(slots=True)
class Pace:
    """The pace of one route. All times are in seconds of `clock`.

    Raises ServiceError, saying what is wrong and what to change, where waiting on makes no sense:
    the service asks for a pause longer than `patience`, or refuses for that long.
    """

    most: int = 256
    patience: float = 300.0
    clock: Callable[[], float] = time.monotonic
    random: Random = field(default_factory=Random)
    who: str = "The service"
    window: float = 0.0
    in_flight: int = 0
    limits: dict[str, Limit] = field(default_factory=dict)
    sent: int = 0
    denied: int = 0
    _paused: float = 0.0
    _starting: bool = True
    _grown: float = 0.0
    _refusals: _Row = field(default_factory=lambda: _Row(6))
    _strains: _Row = field(default_factory=lambda: _Row(8))
    _trouble: float | None = None  # when it began, if nothing was answered since
    _failed: int = 0
    _words: str = ""
    _mean: list[float] = field(default_factory=lambda: [0.0, 0.0])
    _anchors: deque[tuple[float, int]] = field(default_factory=deque)
    _answered: int = 0
    _history: deque[tuple[float, int]] = field(default_factory=deque)
    _raised: float = 0.0
    _step: float = RAISE
    _sure: float = 10.0  # questions that the rate was measured on, 10 to 2 / ABOVE
    _mark: tuple[int, int] = (0, 0)  # questions and refusals when the share was last looked at
    _share: float | None = None  # of questions refused, where that is not a matter of rate
    _shade: float = 0.0  # share of a told rate that is left out, after refusals in spite of it

    def __post_init__(self) -> None:
        self.window = float(min(FIRST_WINDOW, self.most))

    # -- before a question ---------------------------------------------------------------------

    def wait(self) -> float | None:
        """Seconds until the next question may go out: 0 is now, None once another comes back."""
        now = self.clock()
        for limit in self.limits.values():
            limit.fill(now)
        if self._starting and self._answered and now - self._grown > 1.0:
            self.window, self._grown = min(float(self.most), 2 * self.window), now
        if self.in_flight >= int(self.window):
            self._anchors.clear()  # it is not the limit that holds back: nothing to measure
            return None
        wait = max(0.0, self._paused - now)
        for limit in self.limits.values():
            short = min(self._cost(limit.name), limit.most) - limit.level
            if short > 1e-9:
                wait = max(wait, short / limit.rate)
        if wait > self.patience:
            self._too_long(wait)
        return wait

    def go(self) -> Ticket:
        """Count a question that goes out now."""
        now = self.clock()
        self.sent += 1
        self.in_flight += 1
        if self.sent == 1:
            self._grown = now
        if not self._history or now - self._history[-1][0] > BURST_SECONDS:
            self._history.append((now, self.sent - 1 - self.denied))
            if now - self._history[0][0] > SPAN:
                self._history.popleft()
        for limit in self.limits.values():
            cost = self._cost(limit.name)
            limit.level -= cost
            limit.spent += cost
        self._raise(now)
        return Ticket(self.sent, now, {n: limit.spent for n, limit in self.limits.items()})

    # -- after it ------------------------------------------------------------------------------

    def back(self) -> None:
        """A question is no longer in flight: refused, or its answer is safe."""
        self.in_flight -= 1

    def answered(self, ticket: Ticket, headers: Mapping[str, str], usage: Usage | None) -> None:
        """The service answered."""
        self._answered += 1
        self._trouble = None
        self._shade *= 0.999
        if usage is not None:
            share = max(0.02, 1 / self._answered)
            for i, tokens in enumerate((usage.tokens_in, usage.tokens_out)):
                self._mean[i] += share * (tokens - self._mean[i])
        if self.window < self.most:
            step = 1.0 if self._starting else 1 / self.window
            self.window = min(float(self.most), self.window + step)
        self._hear(ticket, headers)

    def refused(self, ticket: Ticket, headers: Mapping[str, str], why: str) -> float:
        """The service said "too many" (429); the seconds that this question has to wait."""
        now = self.clock()
        self.denied += 1
        self._hear(ticket, headers)
        told = retry_after(headers)
        self._trouble_at(now, why, told)
        news = self._refusals.note(ticket, self.sent)
        if any(limit.told for limit in self.limits.values()):
            self._shade = min(0.05, self._shade + SHADE * news)
        elif news if "requests" in self.limits else self._refusals.serious:
            self._measure(ticket)
        if told is None:
            told = self._pause_after(self._refusals.length - HEED_ALL)
        if told > BRIEF or self._refusals.length >= HEED_ALL:
            self._pause(now + told)
        return told

    def strained(self, ticket: Ticket, headers: Mapping[str, str], why: str) -> None:
        """The service failed (5xx, a reset, silence): fewer at once, and a pause if it asks."""
        now = self.clock()
        self._failed += 1
        self._starting = self._starting and not self._strains.thick
        told = retry_after(headers)
        self._trouble_at(now, why, told)
        if self._strains.note(ticket, self.sent) and self._strains.thick:
            self.window = max(1.0, self.window * 0.7)
        if told is None and self._strains.length >= 2 * HEED_ALL:
            told = self._pause_after(self._strains.length - 2 * HEED_ALL)
        if told is not None:
            self._pause(now + told)

    def backoff(self, tries: int) -> float:
        """Seconds before a failed question is tried again, doubled with every try, with jitter."""
        return min(30.0, 0.25 * 2.0**tries) * self._spread()

    # -- what it knows -------------------------------------------------------------------------

    def _cost(self, name: str) -> float:
        tokens_in, tokens_out = self._mean
        match name:
            case "requests":
                return 1.0
            case "input-tokens":
                return tokens_in
            case "output-tokens":
                return tokens_out
            case _:
                return tokens_in + tokens_out

    def _hear(self, ticket: Ticket, headers: Mapping[str, str]) -> None:
        """Take over what the headers tell of the limits."""
        now = self.clock()
        for name, most, left, reset in limits_told(headers):
            rate = most / 60 * (1 - self._shade)
            if reset and 0 < (slow := (most - left) / reset) < rate / 5:
                rate = slow  # a limit a day, or the start of a window
            limit = self.limits.get(name)
            if limit is None or not limit.told:
                limit = self.limits[name] = Limit(name, rate, most, left, now, told=True)
            if ticket.number < limit.newest:
                continue
            since = limit.spent - ticket.spent.get(name, limit.spent)
            limit.newest, limit.rate, limit.most, limit.at = (
                ticket.number,
                rate,
                max(1.0, left, min(most, rate * STALL)),  # to make up for a stall of ours
                now,
            )
            limit.level = min(limit.most, left - since + rate * (now - ticket.at))

    def _measure(self, ticket: Ticket) -> None:
        """Set the rate by what was let in since an earlier refusal (see the module's docstring)."""
        at, count = ticket.at, ticket.number - self.denied
        limit = self.limits.get("requests")
        if limit is None:
            limit = Limit("requests", self._lately(1.0), 1.0, 0.0, self.clock(), told=False)
            self.limits["requests"] = limit
            self._paused = max(self._paused, limit.at + BURST_SECONDS)
        elif self._refusals.length >= LIMITED:  # what was measured holds no longer
            limit.rate = max(limit.rate / 2, self._lately(SPAN))
        elif self._whatever_rate(ticket, limit):
            pass
        elif self._anchors:
            while len(self._anchors) > 1 and at - self._anchors[1][0] > SPAN:
                self._anchors.popleft()
            began, before = self._anchors[0]
            let_in = count - before
            if let_in > 0 and at - began >= 0.8 * BURST_SECONDS:
                limit.rate = (1 + max(ABOVE, 1 / let_in)) * let_in / (at - began)
                self._sure = min(max(let_in, 10.0), 2 / ABOVE)
        self._anchors.append((at, count))
        limit.most = max(1.0, min(limit.rate * BURST_SECONDS, BURST))
        limit.level = min(limit.level, 0.0)
        self._raised, self._step = at, RAISE

    def _whatever_rate(self, ticket: Ticket, limit: Limit) -> bool:
        """Whether questions are refused at any rate: as many of a hundred at twice the rate."""
        number, denied = self._mark
        asked = ticket.number - number
        if asked < 0 or self._sure < 50:
            self._mark = (max(number, ticket.number), self.denied)
        elif asked >= 100:
            share = (self.denied - denied) / asked
            self._mark = (ticket.number, self.denied)
            if share <= 0.03:
                self._share = None
            elif self._share is None or share < self._share + 0.05:
                self._share = share if self._share is None else self._share
                limit.rate *= 2
                self._anchors.clear()
            else:  # it is the rate, and is to be measured in peace
                self._share, self._mark = None, (ticket.number + 1000, self.denied)
                limit.rate /= 2
                self._anchors.clear()
        return self._share is not None

    def _lately(self, span: float) -> float:
        """Questions let in a second, over the last `span` seconds or since the first."""
        now, count = self.clock(), self.sent - self.denied
        began, before = next((one for one in self._history if now - one[0] <= span), (now, count))
        return max((count - before) / max(now - began, BURST_SECONDS), SLOWEST)

    def _raise(self, now: float) -> None:
        """Try a little more of a measured rate while nothing is refused."""
        limit = self.limits.get("requests")
        if limit is None or limit.told:
            return
        if now - self._raised > max(RAISE_SECONDS, self._sure / limit.rate):
            limit.rate *= 1 + self._step
            limit.most = max(1.0, min(limit.rate * BURST_SECONDS, BURST))
            self._raised, self._step = now, min(1.0, 2 * self._step)
            self._anchors.clear()

    def _pause(self, until: float) -> None:
        """Ask nothing until then, and then no burst; a full bucket gains nothing meanwhile."""
        if until - self.clock() > BURST_SECONDS:
            self._anchors.clear()
        self._paused = max(self._paused, until)
        limit = self.limits.get("requests")
        if limit is not None and not limit.told:
            limit.level, limit.at = min(limit.level, 0.0), self._paused

    def _trouble_at(self, now: float, why: str, told: float | None) -> None:
        """Give up where the pause asked for is too long, or trouble has lasted too long."""
        self._words = why
        if told is not None and told > self.patience:
            self._too_long(told)
        if self._trouble is None:
            self._trouble = now
        if now - self._trouble > self.patience:
            raise ServiceError(
                f"{self.who} has answered nothing for {duration(now - self._trouble)}: {why}. "
                f"{self._advice()}"
            )

    def _too_long(self, wait: float) -> None:
        limits = [one for one in self.limits.values() if one.told and one.level < 1]
        said = f" Its limit of {limits[0].name} is {limits[0].most:,.0f}." if limits else ""
        reason = f" It said: {self._words}." if self._words else ""
        raise ServiceError(
            f"{self.who} wants no further question for {duration(wait)}.{said}{reason} "
            f"{self._advice()}"
        )

    def _advice(self) -> str:
        return (
            "What was answered is kept. Run the same command again later; or raise the limit with "
            "the provider, or take another model or provider."
        )

    def _pause_after(self, row: int) -> float:
        """A pause of our own making, doubled with every further trouble in a row."""
        return min(LONGEST_PAUSE, 0.25 * 2.0 ** max(0, min(row, 10))) * self._spread()

    def _spread(self) -> float:
        return self.random.uniform(0.5, 1.5)
