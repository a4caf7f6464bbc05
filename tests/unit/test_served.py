"""A served model against a provider on loopback, with all that a provider does wrong."""

from __future__ import annotations

import itertools
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from asking import SAMPLING, collect, prompts, right, way
from limbeck.errors import InputError, ServiceError
from limbeck.models.budget import Price, Purse, bound
from limbeck.models.exchange import judge, redact
from limbeck.models.pace import Pace
from limbeck.models.routes import route
from limbeck.models.served import HOPELESS, MOST_TRIES, ServedModel
from limbeck.recipe import PROVIDERS, TeacherSection
from limbeck.records import Message, Prompt, Sampling
from provider import BROKEN, FAULTS, Behaviour, Provider

KEY = "sk-unit-4f1c88e2d0"


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


class Quick(Pace):
    """A pace whose questions wait hardly at all before they are tried again."""

    def backoff(self, tries: int) -> float:
        return 0.001 * tries


def quick(**options: Any) -> Pace:
    return Quick(64, random=Random(1), **options)


# -- dialects ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
def test_every_dialect_is_spoken(provider: Provider, dialect: str, tmp_path: Path) -> None:
    provider.change(reasoning="Let me think.")
    answers = collect(ServedModel(way(provider, dialect)), 30, tmp_path)
    assert right(answers, 30) == 30
    assert {a.reasoning for a in answers} == {"Let me think."}
    assert sum(a.usage.tokens_in for a in answers) == provider.counts.tokens_in
    assert sum(a.usage.tokens_out for a in answers) == provider.counts.tokens_out
    assert all(a.finish_reason == "stop" and a.usage.seconds > 0 for a in answers)
    assert {asked.dialect for asked in provider.seen} == {dialect}
    assert {asked.cap for asked in provider.seen} == {64}


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini"])
def test_turns_and_settings_arrive(provider: Provider, dialect: str) -> None:
    turns = (
        *(Message("system", "Be brief."), Message("user", "One?"), Message("assistant", "Two.")),
        Message("user", "Three?"),
    )
    one = Prompt(Prompt.identify(turns), turns, "p:1", "train")
    sampling = Sampling(17, 0.5, 0.9, 3)
    ((_,),) = ServedModel(way(provider, dialect)).generate([one], sampling)
    (asked,) = provider.seen
    assert (asked.system, asked.prompt, asked.cap, asked.model) == (
        *("Be brief.", "Three?", 17, "teacher"),
    )
    told = asked.body.get("generationConfig", asked.body)
    assert told["temperature"] == 0.5
    assert told.get("top_p", told.get("topP")) == 0.9
    assert told.get("seed") == (None if dialect == "anthropic" else 3)
    spoken = asked.body.get("messages") or asked.body["contents"]
    roles = [turn["role"] for turn in spoken if turn["role"] != "system"]
    assert roles == ["user", "model" if dialect == "gemini" else "assistant", "user"]


def test_a_service_s_own_settings_are_not_sent(provider: Provider) -> None:
    """Many models refuse a temperature, even the one that they use."""
    list(ServedModel(way(provider)).generate(prompts(1), Sampling(9, 1.0)))
    assert set(provider.seen[0].body) == {"model", "messages", "max_tokens"}


@pytest.mark.parametrize("name", PROVIDERS)
def test_providers_have_an_address_and_a_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = route(TeacherSection(model=f"{name}:some/model:tag"))
    assert found.base.startswith("https://") and found.model == "some/model:tag"
    assert found.teacher == f"{name}:some/model:tag" and found.name == name
    for variable in found.keys:
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InputError, match=found.keys[0]):
        found.key()
    monkeypatch.setenv(found.keys[-1], f" {KEY}\n")
    assert found.key() == KEY
    assert KEY not in repr(found)
    assert any(KEY in value for value in found.dialect.headers(KEY).values())


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://example.com/v1", "in the clear"),
        ("http://10.0.0.7:8000/v1", "in the clear"),
        ("https://user:hunter2@example.com/v1", "password"),
        ("https://example.com/v1?key=hunter2", "query"),
        ("ftp://example.com", "must be as"),
        ("127.0.0.1:8000", "must be as"),
        ("http://[::1/v1", "not a URL"),
    ],
)
def test_an_unsafe_address_is_refused(url: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        route(TeacherSection(model="m", url=url))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/v1", "http://localhost:8000/v1/", "http://[::1]:9/v1", "https://a.b/"],
)
def test_loopback_and_https_are_taken(url: str) -> None:
    assert route(TeacherSection(model="m", url=url)).url == url.rstrip("/") + "/chat/completions"


def test_plain_http_beyond_this_machine_if_the_user_says_so() -> None:
    told = TeacherSection(model="m", url="http://gpu-box:8000/v1", insecure=True)
    assert not route(told).local


# -- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_no_answer(provider: Provider, fault: str, tmp_path: Path) -> None:
    """Many tries meet it, at most four a prompt: every answer comes, none is paid twice."""
    provider.change(faults={fault: 0.15 if "429" in fault else 0.4}, latency=0.002)
    model = ServedModel(way(provider), pace=quick())
    answers = collect(model, 40, tmp_path)
    assert right(answers, 40) == 40
    assert provider.counts.faults[fault] > 1
    assert provider.counts.paid_twice == 0
    broken = sum(provider.counts.broken.values())
    assert broken == (provider.counts.faults[fault] if fault in BROKEN else 0)
    if fault in BROKEN:
        assert sum(a.usage.lost_in for a in answers) > 0
    if fault in ("wrong type", "slow"):
        assert provider.counts.requests == 40


@pytest.mark.parametrize("dialect", ["anthropic", "gemini"])
def test_all_faults_at_once_in_the_other_dialects(
    provider: Provider, dialect: str, tmp_path: Path
) -> None:
    provider.change(faults=dict.fromkeys(set(FAULTS) - {"429"}, 0.05))
    answers = collect(ServedModel(way(provider, dialect), pace=quick()), 60, tmp_path)
    assert right(answers, 60) == 60
    assert provider.counts.paid_twice == 0
    assert len(provider.counts.faults) > 6


@pytest.mark.parametrize(
    ("fault", "outcome", "why"),
    [
        ("length", "truncated", "longer than 64 tokens"),
        ("refusal", "refused", "begins with"),
        ("400", "failed", "not to our taste"),
        ("duplicate id", "kept", ""),
    ],
)
def test_what_is_no_fault_is_not_asked_again(
    provider: Provider, fault: str, outcome: str, why: str, tmp_path: Path
) -> None:
    provider.change(faults={fault: 0.5}, words=12)
    answers = collect(ServedModel(way(provider), pace=quick()), 40, tmp_path)
    met = provider.counts.faults[fault]
    assert 5 < met < 35
    assert provider.counts.requests == len(answers) == 40
    ended = [a for a in answers if a.outcome == outcome and why in a.why]
    assert len(ended) == (40 if outcome == "kept" else met)


def test_a_question_that_always_fails_is_given_up(provider: Provider, tmp_path: Path) -> None:
    provider.change(faults={"500": 0.1, "truncated": 0.1}, most_faults=99, seed=4)
    bad = prompts(1)
    provider.change(faults={"truncated": 1.0})
    (answer,) = collect(ServedModel(way(provider), pace=quick()), 1, tmp_path)
    assert next(bad).id == answer.prompt_id
    assert answer.outcome == "failed" and answer.finish_reason == "error"
    assert f"{MOST_TRIES} tries" in answer.why and "cut short" in answer.why
    assert provider.counts.requests == MOST_TRIES
    provider.change(faults={})
    (again,) = collect(ServedModel(way(provider), pace=quick()), 1, tmp_path)
    assert again.outcome == "kept"  # another run gives it another chance


def test_a_page_for_every_question_ends_the_run(provider: Provider, tmp_path: Path) -> None:
    provider.change(faults={"html 200": 1.0}, most_faults=99)
    with pytest.raises(ServiceError, match="an HTML page") as caught:
        collect(ServedModel(way(provider), pace=quick()), 5000, tmp_path)
    assert str(HOPELESS) in str(caught.value)
    assert provider.counts.requests < 6 * HOPELESS


def test_an_hour_s_retry_after_ends_the_run_cleanly(provider: Provider, tmp_path: Path) -> None:
    provider.change(faults={"hour": 0.02}, latency=0.01)
    with pytest.raises(ServiceError, match="no further question for 1 h 00 min"):
        collect(ServedModel(way(provider), in_flight=8), 500, tmp_path)
    done = provider.counts.requests
    assert 0 < sum(provider.counts.good.values()) < 500
    provider.change(faults={})
    answers = collect(ServedModel(way(provider)), 500, tmp_path)
    assert right(answers, 500) == 500
    assert provider.counts.requests - done == 500 - (done - provider.counts.faults["hour"])
    assert provider.counts.paid_twice == 0


# -- what ends a run at once ---------------------------------------------------------------------


def test_a_wrong_key_ends_it(provider: Provider, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    provider.change(key="the right one")
    monkeypatch.setenv("MY_KEY", KEY)
    with pytest.raises(InputError, match="MY_KEY") as caught:
        collect(ServedModel(way(provider, key="MY_KEY")), 10_000, tmp_path)
    assert KEY not in str(caught.value)
    assert provider.counts.requests <= 32


def test_an_unknown_model_ends_it(provider: Provider, tmp_path: Path) -> None:
    provider.change(models=("other",))
    with pytest.raises(InputError, match="'teacher'"):
        collect(ServedModel(way(provider)), 10_000, tmp_path)
    assert provider.counts.requests <= 32


def test_a_key_that_is_wanted_is_said(provider: Provider, tmp_path: Path) -> None:
    provider.change(key="some")
    with pytest.raises(InputError, match=r"teacher\.key"):
        collect(ServedModel(way(provider)), 5, tmp_path)


@pytest.mark.parametrize(
    ("status", "body", "error", "told"),
    [
        (429, b'{"error":{"code":"insufficient_quota","message":"m"}}', ServiceError, "no credit"),
        (429, b'{"error":{"type":"insufficient_quota"}}', ServiceError, "no credit"),
        (
            429,
            b'{"error":{"type":"x","details":{"error_code":"enforced_spend_limit_reached"}}}',
            ServiceError,
            "no credit",
        ),
        (402, b'{"error":{"message":"Insufficient Balance"}}', ServiceError, "Insufficient Bal"),
        (302, b"", ServiceError, "redirects to https://x"),
        (403, b"<html><title>Forbidden by proxy</title>", InputError, "Forbidden by proxy"),
    ],
)
def test_what_no_further_question_changes_is_raised(
    status: int, body: bytes, error: type[Exception], told: str
) -> None:
    where = route(TeacherSection(model="openai:gpt"))
    with pytest.raises(error, match=told):
        judge(where, KEY, status, {"Location": "https://x"}, body)


def test_an_error_in_a_good_status_is_an_error() -> None:
    where = route(TeacherSection(model="openrouter:a/b"))
    limited = b'{"error":{"code":429,"message":"upstream limit"}}'
    assert judge(where, KEY, 200, {}, limited).kind == "denied"
    assert judge(where, KEY, 200, {}, b'{"error":{"message":"oops"}}').kind == "strained"


def test_a_filtered_prompt_is_a_refusal() -> None:
    where = route(TeacherSection(model="openai:gpt"))
    body = b'{"error":{"code":"content_policy_violation","message":"Blocked by content policy"}}'
    found = judge(where, KEY, 400, {}, body)
    assert found.kind == "prompt" and found.refused


def test_keys_are_taken_out_of_what_is_said() -> None:
    assert redact(f"bad key {KEY}!", KEY) == "bad key [key]!"
    for shown in ("sk-proj-abcdef123456", "AIzaSyA1234567890abcdef", "sk-ab***********wxyz"):
        assert shown not in redact(f"Incorrect API key provided: {shown}.", "")


def test_a_certificate_that_nobody_vouches_for_is_named(tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with Provider(tls=context) as provider:
        with pytest.raises(ServiceError, match="certificate that cannot be trusted"):
            collect(ServedModel(way(provider)), 20, tmp_path)
        assert provider.counts.requests == 0


def test_a_server_that_is_not_there_is_waited_for_and_then_said(tmp_path: Path) -> None:
    with Provider() as gone:
        where = way(gone)
    with pytest.raises(ServiceError, match="no connection"):
        collect(ServedModel(where, pace=quick(patience=0.5)), 20, tmp_path)


# -- in flight -----------------------------------------------------------------------------------


def test_answers_count_as_in_flight_until_they_are_safe(provider: Provider) -> None:
    model = ServedModel(way(provider), in_flight=5)
    lists = model.generate(prompts(100), SAMPLING)
    first = next(lists)
    time.sleep(0.1)
    assert model.pace.in_flight <= 5
    asked = provider.counts.requests
    assert asked <= 5 and len(first) <= 5
    rest = list(itertools.chain(*lists))
    assert len(first) + len(rest) == provider.counts.requests == 100
    assert provider.counts.most_in_flight <= 5


def test_prompts_are_drawn_as_they_are_needed(provider: Provider) -> None:
    drawn = 0

    def counted() -> Iterator[Prompt]:
        nonlocal drawn
        for prompt in prompts(10_000):
            drawn += 1
            yield prompt

    lists = ServedModel(way(provider), in_flight=8).generate(counted(), SAMPLING)
    next(lists)
    lists.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert drawn <= 2 * 8


def test_hundreds_are_in_flight(provider: Provider, tmp_path: Path) -> None:
    provider.change(latency=0.5)
    collect(ServedModel(way(provider)), 500, tmp_path)
    assert provider.counts.most_in_flight > 100


# -- the purse -----------------------------------------------------------------------------------


def test_a_budget_of_tokens_is_never_passed_and_goes_on_when_raised(
    provider: Provider, tmp_path: Path
) -> None:
    provider.change(latency=0.01, faults={"truncated": 0.1, "reset inside": 0.1})
    cap = 4000
    model = ServedModel(way(provider), purse=Purse(None, None, cap), pace=quick())
    with pytest.raises(ServiceError, match=r"budget is spent: [\d,]+ tokens of 4,000"):
        collect(model, 300, tmp_path)
    used = provider.counts.tokens_in + provider.counts.tokens_out
    one = bound(next(prompts(1)), SAMPLING.max_tokens)
    assert used <= model.purse.tokens <= cap
    assert model.purse.tokens > cap - 2 * (one.tokens_in + one.tokens_out)
    there = sum(provider.counts.good.values())
    more = ServedModel(way(provider), purse=Purse(None, None, 10**9), pace=quick())
    assert right(collect(more, 300, tmp_path), 300) == 300
    assert there > 0 and provider.counts.paid_twice == 0


def test_a_budget_of_dollars_is_never_passed(provider: Provider, tmp_path: Path) -> None:
    price = Price(3.0, 15.0, 0.3, "here")
    provider.change(words=60)  # nearly as long as may be
    model = ServedModel(way(provider), purse=Purse(price, 0.05), pace=quick())
    with pytest.raises(ServiceError, match=r"\$0\.0\d+ of \$0\.05"):
        collect(model, 5000, tmp_path)
    counts = provider.counts
    dollars = (3 * counts.tokens_in + 15 * counts.tokens_out) / 1e6
    assert 0.045 < dollars <= 0.05
    assert model.purse.dollars == pytest.approx(dollars)


def test_usage_that_is_not_told_is_counted_at_its_most(provider: Provider, tmp_path: Path) -> None:
    provider.change(usage=False)
    model = ServedModel(way(provider))
    answers = collect(model, 10, tmp_path)
    assert right(answers, 10) == 10
    real = provider.counts.tokens_in + provider.counts.tokens_out
    assert model.purse.tokens >= real
    assert all(a.usage.tokens_out >= len(a.text.split()) for a in answers)


# -- bodies by hand ------------------------------------------------------------------------------


def chat(message: dict[str, Any], finish: str | None = "stop") -> bytes:
    from pydantic_core import to_json

    return to_json({"choices": [{"message": message, "finish_reason": finish}]})


@pytest.mark.parametrize(
    ("body", "text", "reasoning", "finish"),
    [
        (chat({"content": "Yes."}), "Yes.", "", "stop"),
        (chat({"content": "Yes.", "reasoning_content": "Hm."}), "Yes.", "Hm.", "stop"),
        (chat({"content": "Yes.", "reasoning": "Hm."}), "Yes.", "Hm.", "stop"),
        (chat({"content": "<think>\nHm.\n</think>\n\nYes."}), "Yes.", "Hm.", "stop"),
        (chat({"content": "a < b <think> c"}), "a < b <think> c", "", "stop"),
        (
            chat(
                {
                    "content": [
                        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                        {"type": "text", "text": "Yes."},
                    ]
                }
            ),
            *("Yes.", "Hm.", "stop"),
        ),
        (chat({"content": None, "reasoning_content": "Hm"}, "length"), "", "Hm", "length"),
        (chat({"content": None, "refusal": "I won't."}), "I won't.", "", "refusal"),
        (chat({"content": ""}, "content_filter"), "", "", "refusal"),
        (chat({"content": "Yes."}, None), "Yes.", "", "stop"),
    ],
)
def test_bodies_of_the_openai_dialect(body: bytes, text: str, reasoning: str, finish: str) -> None:
    reply = judge(route(TeacherSection(model="openai:gpt")), KEY, 200, {}, body).reply
    assert reply is not None
    assert (reply.text, reply.reasoning, reply.finish) == (text, reasoning, finish)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"[]", b'"text"', b"{}", b'{"choices": null}', b'{"choices": [1]}'),
        *(b'{"choices": [{}]}', chat({"content": "cut"})[:-3], chat({"content": None})),
        *(
            chat({"content": "x"}, "error"),
            chat({"content": "It \xff"}).replace(b"\xc3\xbf", b"\xff"),
        ),
        b'{"choices": [{"message": {"content": "\\ud800"}}]}',
        b"<!doctype html><title>Log in</title>",
    ],
)
def test_bodies_that_are_no_answer(body: bytes) -> None:
    found = judge(route(TeacherSection(model="openai:gpt")), KEY, 200, {}, body)
    assert (found.kind, found.paid) == ("broken", True)


def test_a_blocked_prompt_of_gemini_is_a_refusal() -> None:
    where = replace(route(TeacherSection(model="gemini:g")), base="http://127.0.0.1/v1beta")
    body = b'{"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}'
    reply = judge(where, KEY, 200, {}, body).reply
    assert reply is not None and reply.finish == "refusal" and "PROHIBITED" in reply.text


def test_behaviour_can_be_told_as_json() -> None:
    """The benchmark's provider is a process of its own, which is told so."""
    assert Behaviour(**{"latency": 0.1, "faults": {"429": 0.05}}).faults["429"] == 0.05
