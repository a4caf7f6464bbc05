"""The pace against services simulated in virtual time: no test waits, and none depends on load."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from random import Random
from typing import Any

import pytest

from limbeck.errors import ServiceError
from limbeck.models.headers import limits_told, retry_after
from limbeck.models.pace import Pace


@dataclass
class Service:
    """Lets in `rate` questions a second and answers after `latency`; a bucket, or whole windows."""

    rate: float = 50.0
    kind: str = "bucket"
    burst: float = 1.0  # seconds' worth that a bucket holds
    period: float = 60.0
    latency: float = 0.2
    headers: bool = True
    retry: bool = True
    luck: float = 0.0  # share refused for no reason
    fails: float = 0.0  # share of those let in that it fails
    change: tuple[float, float] | None = None
    now: float = 0.0
    level: float = 0.0
    filled: float = -1e9
    random: Random = field(default_factory=lambda: Random(1))

    def lets_in(self) -> bool:
        if self.change and self.now > self.change[0]:
            self.rate, self.change = self.change[1], None
        if self.random.random() < self.luck:
            return False
        if self.kind == "window":
            if self.now - self.filled >= self.period:
                self.filled, self.level = self.now, self.rate * self.period
        else:
            most = max(1.0, self.rate * self.burst)
            self.level = min(most, self.level + (self.now - self.filled) * self.rate)
            self.filled = self.now
        if self.level < 1:
            return False
        self.level -= 1
        return True

    def told(self, refused: bool) -> dict[str, str]:
        wait = (1 - self.level) / self.rate
        if self.kind == "window":
            wait = self.filled + self.period - self.now
        headers: dict[str, str] = {}
        if self.headers:
            reset = f"{max(wait, 0):.3f}s" if self.kind == "window" else "20ms"
            headers = {
                "x-ratelimit-limit-requests": str(self.rate * 60),
                "x-ratelimit-remaining-requests": str(max(0, int(self.level))),
                "x-ratelimit-reset-requests": reset,
            }
        if refused and self.retry:
            headers["Retry-After"] = f"{wait:.3f}" if wait < 1 else str(int(wait + 0.999))
        return headers


@dataclass
class Run:
    seconds: float
    asked: int
    refused: int
    pace: Pace

    @property
    def share_refused(self) -> float:
        return self.refused / self.asked


def ask(service: Service, questions: int, most: int = 256) -> Run:
    """Ask so many questions in virtual time, as the dispatcher does."""
    pace = Pace(most, clock=lambda: service.now, random=Random(2))
    number, wobble = itertools.count(), Random(3)
    events: list[tuple[float, int, Callable[[], None]]] = []
    later: list[tuple[float, int]] = []
    left, answered, refused = questions, 0, 0

    def at(seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(events, (service.now + seconds, next(number), what))

    def arrive(ticket: Any) -> None:
        nonlocal refused
        if service.lets_in():
            if service.random.random() < service.fails:
                pace.back()
                pace.strained(ticket, {}, "500")
                heapq.heappush(later, (service.now + pace.backoff(1), next(number)))
                return
            told = service.told(False)
            at(service.latency * wobble.uniform(0.95, 1.05), lambda: answer(ticket, told))
            return
        refused += 1
        pace.back()
        wait = pace.refused(ticket, service.told(True), "too many")
        heapq.heappush(later, (service.now + wait, next(number)))

    def answer(ticket: Any, told: dict[str, str]) -> None:
        nonlocal answered
        pace.answered(ticket, told, None)
        pace.back()
        answered += 1

    while answered < questions:
        assert service.now < 10_000, "it stalls"
        wait: float | None = None
        while left or (later and later[0][0] <= service.now):
            wait = pace.wait()
            if wait is None or wait > 0:
                break
            if later and later[0][0] <= service.now:
                heapq.heappop(later)
            else:
                left -= 1
            ticket = pace.go()
            at(wobble.uniform(0.0005, 0.002), lambda ticket=ticket: arrive(ticket))
        moments = [events[0][0]] if events else []
        moments += [later[0][0]] if later and later[0][0] > service.now else []
        moments += [service.now + wait + 1e-5] if wait else []
        service.now = max(service.now, min(moments))
        while events and events[0][0] <= service.now:
            heapq.heappop(events)[2]()
    return Run(service.now, questions + refused, refused, pace)


@pytest.mark.parametrize("retry", [True, False])
@pytest.mark.parametrize(
    "service", [{"burst": 0.1}, {"burst": 1.0}, {"burst": 60.0}, {"kind": "window"}], ids=str
)
def test_a_told_limit_is_reached_and_hardly_passed(service: dict[str, Any], retry: bool) -> None:
    run = ask(Service(retry=retry, **service), 3000)
    assert run.seconds <= 3000 / 50 / 0.995 + 0.4  # the last answer takes its time
    assert run.share_refused <= 0.02


@pytest.mark.parametrize("burst", [0.25, 1.0, 60.0])
def test_an_untold_limit_is_found(burst: float) -> None:
    run = ask(Service(headers=False, burst=burst), 5000)
    assert run.seconds <= 5000 / 50 / 0.99 + 0.4
    assert run.share_refused <= 0.04
    if burst < 60:
        assert run.pace.limits["requests"].rate == pytest.approx(50, rel=0.02)


def test_an_untold_window_is_waited_for() -> None:
    run = ask(Service(headers=False, kind="window"), 5000)
    assert run.seconds <= 2 * 60 + 1
    assert run.share_refused <= 0.02


@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("after", [25.0, 100.0])
def test_a_limit_that_changes_is_followed(headers: bool, after: float) -> None:
    run = ask(Service(headers=headers, change=(20.0, after)), 4000)
    ideal = 20 + (4000 - 20 * 50) / after
    assert run.seconds <= 1.1 * ideal
    assert run.share_refused <= 0.1


def test_a_slow_service_without_limit_gets_the_whole_window() -> None:
    run = ask(Service(rate=1e9, latency=5.0, headers=False), 4000)
    assert run.pace.window == 256
    assert run.seconds <= 4000 / 256 * 5.25 + 15
    assert run.refused == 0


def test_refusals_that_are_bad_luck_do_not_slow_it_down() -> None:
    """A tenth is refused at any rate: no limit is to be seen in that, and none is made of it."""
    clean = ask(Service(rate=1e9, headers=False, retry=False), 4000)
    run = ask(Service(rate=1e9, headers=False, retry=False, luck=0.1), 4000)
    assert run.seconds <= 3 * clean.seconds


def test_bad_luck_among_failures_is_no_limit_either() -> None:
    """A tenth refused, a quarter failed: now and then one made a limit of it that only fell."""
    for seed in range(24):
        service = Service(
            rate=1e9, headers=False, retry=False, luck=0.1, fails=0.25, random=Random(seed)
        )
        assert ask(service, 1500).seconds <= 40, seed


def test_the_window_is_never_passed() -> None:
    service = Service(rate=1e9, headers=False)
    assert ask(service, 500, most=7).pace.window == 7


def test_a_failing_service_gets_fewer_and_then_more_again() -> None:
    now = [0.0]
    pace = Pace(64, clock=lambda: now[0])
    for _ in range(200):
        pace.answered(pace.go(), {}, None)
        pace.back()
    assert pace.window == 64
    for _ in range(30):
        pace.strained(pace.go(), {}, "503")
        pace.back()
        now[0] += 1
    low = pace.window
    assert low < 32
    for _ in range(5000):
        pace.answered(pace.go(), {}, None)
        pace.back()
    assert pace.window > low


def test_a_long_retry_after_is_said_and_not_waited_for() -> None:
    pace = Pace(who="openai:gpt")
    with pytest.raises(ServiceError, match=r"openai:gpt wants no further question for 1 h 00 min"):
        pace.refused(pace.go(), {"Retry-After": "3600"}, "429: slow down")


def test_lasting_refusal_is_said_with_advice() -> None:
    now = [0.0]
    pace = Pace(patience=60, clock=lambda: now[0], who="mistral:large")
    with pytest.raises(ServiceError) as caught:
        for _ in range(1000):
            pace.refused(pace.go(), {}, "429: capacity exceeded")
            pace.back()
            now[0] += 1
    assert now[0] == pytest.approx(61)
    told = str(caught.value)
    assert "mistral:large" in told and "capacity exceeded" in told
    assert "raise the limit" in told and "kept" in told


def test_an_answer_ends_the_trouble() -> None:
    now = [0.0]
    pace = Pace(patience=60, clock=lambda: now[0])
    for second in range(500):
        if second % 50 == 49:
            pace.answered(pace.go(), {}, None)
        else:
            pace.strained(pace.go(), {}, "503")
        pace.back()
        now[0] += 1


def test_backoff_doubles_with_jitter() -> None:
    pace = Pace(random=Random(5))
    means = [sum(pace.backoff(n) for _ in range(400)) / 400 for n in range(1, 6)]
    for shorter, longer in itertools.pairwise(means):
        assert longer == pytest.approx(2 * shorter, rel=0.15)
    assert len({pace.backoff(3) for _ in range(50)}) == 50


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "2"}, 2),
        ({"Retry-After": "0.25"}, 0.25),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"Retry-After": "-3"}, 0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    found = retry_after({"Retry-After": formatdate(time.time() + 90, usegmt=True)})
    assert found is not None and 85 < found <= 90


def test_headers_of_the_providers_are_read() -> None:
    openai = {
        "x-ratelimit-limit-requests": "5000",
        "x-ratelimit-remaining-requests": "4999",
        "x-ratelimit-reset-requests": "12ms",
        "x-ratelimit-limit-tokens": "160000",
        "x-ratelimit-remaining-tokens": "159976",
        "x-ratelimit-reset-tokens": "6m1.5s",
    }
    assert limits_told(openai) == [
        ("requests", 5000, 4999, 0.012),
        ("tokens", 160000, 159976, 361.5),
    ]
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 30))
    anthropic = {
        "anthropic-ratelimit-input-tokens-limit": "2000000",
        "anthropic-ratelimit-input-tokens-remaining": "1500000",
        "anthropic-ratelimit-input-tokens-reset": stamp,
    }
    ((name, most, left, reset),) = limits_told(anthropic)
    assert (name, most, left) == ("input-tokens", 2e6, 1.5e6)
    assert 28 < reset <= 30
    azure = {"x-ratelimit-limit-tokens": "-1", "x-ratelimit-remaining-tokens": "-1"}
    assert limits_told(azure) == []


def test_a_limit_of_tokens_holds_back_too() -> None:
    """1,000 tokens a minute, 100 a question: ten at once, and then one in six seconds."""
    from limbeck.records import Usage

    now = [0.0]
    pace = Pace(64, clock=lambda: now[0])
    headers = {"x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "900"}
    pace.answered(pace.go(), headers, Usage(60, 40))
    pace.back()
    sent = 0
    while pace.wait() == 0:
        pace.go()
        sent += 1
    assert sent == 9
    assert pace.wait() == pytest.approx(6, rel=0.01)
