"""What the terms say, read by a person and written down case by case; then what holds for all."""

from __future__ import annotations

import itertools
from datetime import date
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import GateError, InputError
from limbeck.permit.decide import STRICTNESS, Route, decide
from limbeck.permit.gate import explain, gate, line
from limbeck.permit.recorded import Recorded, Word
from limbeck.permit.register import PURPOSES
from limbeck.records import Permission

TODAY = date(2026, 11, 21)


def api(provider: str, model: str = "some-model", role: str = "teacher") -> Route:
    return Route("api", provider, model, role=role)


def app(provider: str) -> Route:
    return Route("consumer", provider, "some-model")


def via(provider: str, model: str) -> Route:
    return Route("resale", provider, model)


def tagged(licence: str | None, model: str = "weights", role: str = "teacher") -> Route:
    """Weights that state this licence."""
    return Route("weights", "", model, licence, role=role)


def hub(model: str) -> Route:
    """Weights by their hub id, whose card says `other`, as that of many with terms of their own."""
    return Route("weights", "", model, "other")


def ask(*routes: Route, purpose: Any = "product", today: date = TODAY, **facts: Any) -> Permission:
    return decide(routes, purpose, today=today, **facts)


Said: TypeAlias = dict[str, Any]
YES: Said = {"competes": True}
NO: Said = {"competes": False}
HOUSE: Said = {"distribution": "none"}
OUT: Said = {"distribution": "weights"}
SERVED: Said = {"distribution": "service"}
STUDY: Said = {"purpose": "research"}
WORK: Said = {"purpose": "internal"}

# routes, purpose and facts, decision, the entry that decides, words of the clause that does
CASES: dict[str, tuple[list[Route], Said, str, str, str]] = {
    # OpenAI 3.3(e): outputs develop no competing models; the purpose does not matter.
    "openai, nothing said": ([api("openai")], {}, "conditional", "openai-api", "3.3(e)"),
    "openai, competing": ([api("openai")], YES, "deny", "openai-api", "3.3(e)"),
    "openai, not competing": ([api("openai")], NO, "allow", "openai-api", "3.3(e)"),
    "openai, competing research": ([api("openai")], STUDY | YES, "deny", "openai-api", "compete"),
    "openai, research": ([api("openai")], STUDY, "conditional", "openai-api", "compete"),
    # ChatGPT forbids taking outputs by a program, whatever for.
    "chatgpt": ([app("chatgpt")], NO, "deny", "chatgpt-app", "by a program"),
    # Anthropic's usage policy bars training on outputs without authorisation, competing or not.
    "anthropic": ([api("anthropic")], {}, "deny", "anthropic-api", "authorisation"),
    "anthropic, not competing": ([api("anthropic")], NO, "deny", "anthropic-api", "Usage policy"),
    "anthropic, research": ([api("anthropic")], STUDY, "deny", "anthropic-api", "distillation"),
    "claude app": ([app("claude.ai")], STUDY, "deny", "claude-app", "training of models"),
    # Gemini: no models that compete with the service.
    "gemini": ([api("gemini")], {}, "conditional", "gemini-api", "compete"),
    "gemini, competing": ([api("gemini")], YES, "deny", "gemini-api", "compete"),
    "gemini, in the house": ([api("google")], WORK | NO, "allow", "gemini-api", "Use restrictions"),
    # xAI 3.1: outputs train no models, unless the order form says otherwise.
    "xai": ([api("xai")], NO, "deny", "xai-api", "order form"),
    "xai, research": ([api("x-ai")], STUDY, "deny", "xai-api", "3.1"),
    "grok app": ([app("grok-app")], {}, "deny", "grok-app", "distilling"),
    "grok-2 weights": ([hub("xai-org/grok-2")], STUDY, "deny", "grok-2", "general-purpose"),
    "grok-1 weights": ([hub("xai-org/grok-1")], {}, "allow", "apache-2.0", "any purpose"),
    # DeepSeek 4.2(3) names distillation as allowed; the older weights count it as a derivative.
    "deepseek api": ([api("deepseek")], YES | OUT, "allow", "deepseek-api", "4.2(3)"),
    "deepseek app": ([app("deepseek-app")], {}, "conditional", "deepseek-app", "robots"),
    "deepseek r1": ([hub("deepseek-ai/DeepSeek-R1")], {}, "allow", "mit", "outputs are not"),
    "deepseek v4": ([hub("deepseek-ai/DeepSeek-V4-Pro")], {}, "allow", "mit", "outputs are not"),
    "deepseek v3": ([hub("deepseek-ai/DeepSeek-V3")], {}, "conditional", "deepseek", "derivative"),
    "deepseek v3, kept": ([hub("deepseek-ai/DeepSeek-V3")], HOUSE, "allow", "deepseek", "given"),
    "deepseek v3, served": (
        [hub("deepseek-ai/DeepSeek-V3")], SERVED, "conditional", "deepseek", "hosted service",
    ),
    # Moonshot's and MiniMax's clauses could not be read; competing is barred by all accounts.
    "moonshot api": ([api("moonshot", "kimi-k3")], {}, "unknown", "moonshot-api", "3.2(5)"),
    "moonshot api, competing": ([api("moonshot")], YES, "deny", "moonshot-api", "compete"),
    "moonshot api, not competing": ([api("moonshot")], NO, "unknown", "moonshot-api", "ask"),
    "minimax api": ([api("minimax")], STUDY | NO, "unknown", "minimax-api", "No clause"),
    "kimi app, research": ([app("kimi-app")], STUDY, "conditional", "kimi-app", "compete"),
    "kimi app, product": ([app("kimi-app")], NO, "deny", "kimi-app", "commercial"),
    "kimi k2": ([hub("moonshotai/Kimi-K2-Instruct")], {}, "allow", "kimi-k2", "shows their name"),
    "kimi k3": ([hub("moonshotai/Kimi-K3")], {}, "conditional", "kimi-k3", "20 million"),
    "minimax m3": (
        [hub("MiniMaxAI/MiniMax-M3")], {}, "conditional", "minimax-community", "notified",
    ),
    "minimax m2.7, product": (
        [hub("MiniMaxAI/MiniMax-M2.7")], {}, "deny", "minimax-m2.7", "written permission",
    ),
    # Mistral: text outputs are free, and whether distillation is reverse engineering is unclear.
    "mistral api": ([api("mistral")], NO, "conditional", "mistral-api", "reverse engineering"),
    "mistral small 4": ([hub("mistralai/Mistral-Small-4-119B")], {}, "allow", "apache-2.0", "any"),
    "mistral research": ([tagged("mrl")], STUDY, "allow", "mrl", "research"),
    "mistral research, sold": ([tagged("mrl")], {}, "deny", "mrl", "needs a licence"),
    # Llama: up to 3 outputs improve no other model; from 3.1 on they may, with name and display.
    "llama 2": ([hub("meta-llama/Llama-2-7b-hf")], {}, "conditional", "llama2", "1.b.v"),
    "llama 3": ([tagged("llama3")], STUDY, "conditional", "llama3", "1.b.v"),
    "llama 3.1": ([hub("meta-llama/Llama-3.1-8B")], YES, "allow", "llama3.1", "may train another"),
    "llama 3.3": ([tagged("llama3.3")], OUT, "allow", "llama3.3", "is called Llama"),
    "llama 4": ([tagged("llama4")], {}, "allow", "llama4", "European Union"),
    "meta api, competing": ([api("meta")], YES, "deny", "meta-api", "(ix)"),
    # Gemma to 3n: the student is a derivative where it is given out; Gemma 4 is Apache.
    "gemma 3": ([tagged("gemma")], {}, "conditional", "gemma", "derivative"),
    "gemma 3, kept": ([tagged("gemma")], HOUSE, "allow", "gemma", "when it is given out"),
    "gemma 3, given out": ([tagged("gemma")], OUT, "conditional", "gemma", "inherits"),
    "gemma 4": ([hub("google/gemma-4-31b-it")], OUT, "allow", "apache-2.0", "any purpose"),
    # Qwen: small ones Apache, 72B with a display, 3B for research, the first as Llama 2.
    "qwen 7b": ([hub("Qwen/Qwen2.5-7B-Instruct")], {}, "allow", "apache-2.0", "any purpose"),
    "qwen 72b": ([hub("Qwen/Qwen2.5-72B-Instruct")], {}, "allow", "qwen", "show where"),
    "qwen 3b": ([hub("Qwen/Qwen2.5-3B-Instruct")], {}, "deny", "qwen-research", "commerce"),
    "qwen 1": ([hub("Qwen/Qwen-7B-Chat")], {}, "conditional", "tongyi-qianwen", "5.b"),
    "qwen chat": ([app("qwen-chat")], STUDY, "deny", "qwen-app", "distilled"),
    # Freely licensed weights, and none.
    "gpt-oss": ([hub("openai/gpt-oss-20b")], YES | OUT, "allow", "apache-2.0", "any purpose"),
    "smollm2": ([tagged("apache-2.0")], {}, "allow", "apache-2.0", "any purpose"),
    "non-commercial at work": ([tagged("cc-by-nc-4.0")], WORK, "deny", "cc-by-nc-4.0", "research"),
    "share alike, kept": ([tagged("cc-by-sa-4.0")], HOUSE, "allow", "cc-by-sa-4.0", "nobody"),
    "gpl, served": ([tagged("gpl-3.0")], SERVED, "allow", "gpl-3.0", "over a network"),
    "agpl, served": ([tagged("agpl-3.0")], SERVED, "conditional", "agpl-3.0", "over a network"),
    "no licence": ([tagged(None)], STUDY, "unknown", "", "state no licence"),
    "modified mit": ([tagged("modified-mit")], {}, "unknown", "modified-mit", "not one text"),
    "stranger's api": ([api("api.example.com")], NO, "unknown", "", "no terms of api.example.com"),
    # A reseller's terms and the model's both speak.
    "openrouter, llama": (
        [via("openrouter", "meta-llama/llama-3.3-70b-instruct")], {},
        "conditional", "openrouter", "host",
    ),
    "openrouter, claude": (
        [via("openrouter", "anthropic/claude-opus")], NO, "deny", "anthropic-api", "Usage policy",
    ),
    "openrouter, kimi k2.6": (
        [via("openrouter", "moonshotai/kimi-k2.6")], NO, "unknown", "moonshot-api", "ask",
    ),
    "together, llama": (
        [via("together", "meta-llama/Llama-3.3-70B-Instruct-Turbo")], NO,
        "allow", "together", "third-party models",
    ),
    "together, competing": (
        [via("together", "openai/gpt-oss-120b")], YES, "deny", "together", "competes with",
    ),
    "bedrock, competing": ([via("bedrock", "x")], YES, "deny", "bedrock", "compete"),
    "openrouter, stranger": (
        [via("openrouter", "some/model")], NO, "unknown", "", "neither terms nor a licence",
    ),
    "azure": ([via("azure", "gpt-5")], NO, "unknown", "azure", "Microsoft"),
    # Mixtures: every model that shaped the rows counts, whatever its role.
    "apache teacher, claude judge": (
        [tagged("apache-2.0"), api("anthropic", role="judge")], NO,
        "deny", "anthropic-api", "distillation",
    ),
    "deepseek teacher, gpt user": (
        [api("deepseek"), api("openai", role="user")], {}, "conditional", "openai-api", "3.3(e)",
    ),
    "deepseek teacher, gpt user, not competing": (
        [api("deepseek"), api("openai", role="user")], NO, "allow", "openai-api", "3.3(e)",
    ),
    "conditional and unknown": (
        [api("openai"), api("minimax", role="paraphraser")], NO,
        "unknown", "minimax-api", "No clause",
    ),
    "unknown and denied": (
        [api("minimax"), tagged("grok-2", role="paraphraser")], {}, "deny", "grok-2", "outputs",
    ),
    "llama teacher, gemma paraphraser, given out": (
        [tagged("llama3.1"), tagged("gemma", "gemma", "paraphraser")], OUT,
        "conditional", "gemma", "inherits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_the_terms_say(case: str):
    routes, facts, decision, entry, words = CASES[case]
    permission = ask(*routes, **facts)
    assert permission.decision == decision
    deciding = [r for r in permission.reasons if r.decision == decision]
    assert entry in [reason.entry for reason in deciding]
    assert any(words in reason.clause for reason in deciding if reason.entry == entry)
    assert words in permission.clause
    assert len(permission.reasons) >= len(routes)


def test_the_table_is_large_enough():
    assert len(CASES) >= 40
    kinds = {route.kind for routes, *_ in CASES.values() for route in routes}
    assert kinds == {"weights", "api", "consumer", "resale"}
    assert {decision for _, _, decision, *_ in CASES.values()} == set(STRICTNESS)


@pytest.mark.parametrize(
    ("weights", "served"),
    [
        (hub("deepseek-ai/DeepSeek-V3"), api("deepseek", "deepseek-chat")),
        (hub("openai/gpt-oss-120b"), via("openrouter", "openai/gpt-oss-120b")),
        (hub("moonshotai/Kimi-K3"), api("moonshot", "kimi-k3")),
        (hub("MiniMaxAI/MiniMax-M3"), api("minimax", "MiniMax-M3")),
        (hub("mistralai/Mistral-Large-3-675B"), api("mistral", "mistral-large-3")),
        (hub("google/gemma-4-31b-it"), api("gemini", "gemma-4-31b-it")),
    ],
    ids=lambda route: route.name,
)
def test_the_same_model_by_weights_and_by_api_is_decided_apart(weights: Route, served: Route):
    assert ask(weights).decision != ask(served).decision


# Facts


@pytest.mark.parametrize(
    ("route", "key"),
    [
        (api("openai"), "permit.competes"),
        (api("gemini"), "permit.competes"),
        (via("together", "openai/gpt-oss-20b"), "permit.competes"),
        (tagged("gemma"), "permit.distribution"),
        (tagged("gpl-3.0"), "permit.distribution"),
        (tagged("bigcode-openrail-m"), "permit.distribution"),
    ],
)
def test_a_fact_that_matters_is_asked_for_by_its_key(route: Route, key: str):
    permission = ask(route)
    assert permission.decision == "conditional"
    assert [key in question for question in permission.missing] == [True]
    assert key in explain(permission)
    with pytest.raises(GateError, match=key):
        gate(permission)


def test_a_fact_is_not_asked_for_where_it_would_not_help():
    for route in (api("anthropic"), api("moonshot"), api("deepseek"), tagged("llama2")):
        assert ask(route).missing == ()
    assert ask(api("openai"), api("anthropic", role="judge")).missing == ()
    assert ask(api("openai"), **NO).missing == ask(api("openai"), **YES).missing == ()


def test_what_was_said_stands_in_the_permission():
    assert "not to compete" in ask(api("openai"), **NO).clause
    assert "said to compete" in ask(api("openai"), **YES).clause
    assert "stay in the house" in ask(tagged("gemma"), **HOUSE).clause
    assert ask(tagged("mit"), **NO, **OUT).id == ask(tagged("mit")).id, "it does not matter there"


# Every mixture

ROUTES = sorted({route for routes, *_ in CASES.values() for route in routes}, key=str)
MIXTURES = st.lists(st.sampled_from(ROUTES), min_size=1, max_size=4)
FACTS = st.fixed_dictionaries(
    {
        "purpose": st.sampled_from(PURPOSES),
        "competes": st.sampled_from([None, True, False]),
        "distribution": st.sampled_from([None, "none", "weights", "service"]),
    }
)


@given(MIXTURES, FACTS)
def test_the_strictest_wins_and_all_duties_add_up(routes: list[Route], facts: Said):
    mixed, alone = ask(*routes, **facts), [ask(route, **facts) for route in routes]
    assert mixed.decision == max((one.decision for one in alone), key=STRICTNESS.index)
    assert set(mixed.duties) == {duty for one in alone for duty in one.duties}
    assert set(mixed.reasons) == {reason for one in alone for reason in one.reasons}


@given(MIXTURES, FACTS)
def test_order_and_repetition_change_no_decision(routes: list[Route], facts: Said):
    there, back = ask(*routes, **facts), ask(*reversed(routes), *routes, **facts)
    assert there.decision == back.decision
    assert set(there.reasons) == set(back.reasons)


@given(MIXTURES, FACTS)
def test_the_same_question_gets_the_same_answer(routes: list[Route], facts: Said):
    assert ask(*routes, **facts) == ask(*routes, **facts)


@given(MIXTURES, FACTS)
def test_it_is_told_in_words(routes: list[Route], facts: Said):
    permission = ask(*routes, **facts)
    assert line(permission).isprintable()
    told = explain(permission)
    assert told.endswith("Not legal advice.")
    for reason in permission.reasons:
        assert reason.model in told and reason.title.split()[0] in told


@given(MIXTURES, FACTS)
def test_saying_more_never_turns_allow_into_a_question(routes: list[Route], facts: Said):
    if ask(*routes, **facts).decision == "allow":
        for competes, way in itertools.product((True, False), ("none", "weights", "service")):
            said = {"competes": competes, "distribution": way}
            fixed = {key: value for key, value in facts.items() if value is not None}
            more = ask(*routes, **(said | fixed))
            assert not more.missing


# Stale texts


@pytest.mark.parametrize(
    ("route", "facts", "fresh", "stale"),
    [
        (api("deepseek"), {}, "allow", "unknown"),
        (api("openai"), NO, "allow", "unknown"),
        (api("openai"), {}, "conditional", "unknown"),
        (api("openai"), YES, "deny", "deny"),
        (api("anthropic"), {}, "deny", "deny"),
        (tagged("gemma"), HOUSE, "allow", "unknown"),
        (tagged("apache-2.0"), {}, "allow", "allow"),
        (tagged("llama3.1"), {}, "allow", "allow"),
    ],
    ids=str,
)
def test_after_a_year_terms_that_may_be_rewritten_allow_nothing(
    route: Route, facts: Said, fresh: str, stale: str
):
    later = ask(route, today=date(2027, 11, 21), **facts)
    assert (ask(route, **facts).decision, later.decision) == (fresh, stale)
    assert ("Stale since 2027-" in later.clause) == (
        route != tagged("apache-2.0")
    ) or stale == fresh
    assert later.missing == ()


def test_a_text_goes_stale_on_its_day():
    stale_on = date(2027, 5, 20)  # 180 days after 21 November 2026
    before, after = (ask(api("deepseek"), today=day) for day in (date(2027, 5, 19), stale_on))
    assert (before.decision, after.decision) == ("allow", "unknown")
    assert str(stale_on) in after.clause and "2026-11-21" in after.clause


# A recorded permission in a mixture


def word(*teachers: str) -> Recorded:
    said = Word(
        teacher=teachers, allowed_by="Ada Lovelace", until=date(2027, 1, 1), purpose="product"
    )
    return Recorded(said, Path("permission.toml"), "ab" * 32)


def test_a_record_frees_the_model_that_it_names_and_no_other():
    routes = [api("anthropic", "claude"), api("xai", "grok", role="judge")]
    half = ask(*routes, recorded=word("anthropic:claude"))
    assert half.decision == "deny"
    assert "xai:grok" in half.clause and "Usage policy" not in half.clause
    with pytest.raises(GateError, match=r"teacher = \"xai:grok\""):
        gate(half)
    whole = ask(*routes, recorded=word("anthropic:claude", "xai:grok"))
    assert whole.decision == "allow"
    gate(whole)
    assert [(r.model, r.entry, r.decision) for r in whole.reasons] == [
        ("anthropic:claude", "anthropic-api", "deny"),
        ("anthropic:claude", "recorded permission", "allow"),
        ("xai:grok", "xai-api", "deny"),
        ("xai:grok", "recorded permission", "allow"),
    ], "the chain keeps what the word stands against"
    assert "ab" * 32 in whole.clause


def test_two_that_stop_are_asked_for_in_one_file():
    stopped = ask(api("anthropic", "claude"), api("xai", "grok", role="judge"))
    with pytest.raises(GateError, match=r'teacher = \[ *"anthropic:claude", *"xai:grok",? *\]'):
        gate(stopped)


def test_a_record_about_a_model_that_shaped_nothing_is_refused():
    with pytest.raises(InputError, match="'openai:gpt-5'"):
        ask(api("anthropic", "claude"), recorded=word("anthropic:claude", "openai:gpt-5"))


def test_a_record_outlives_a_stale_text_until_its_own_last_day():
    route = api("deepseek", "deepseek-chat")
    kept = ask(route, recorded=word("deepseek:deepseek-chat"), today=date(2027, 1, 1))
    assert kept.decision == "allow"
    with pytest.raises(InputError, match="ran out on 2027-01-01"):
        ask(route, recorded=word("deepseek:deepseek-chat"), today=date(2027, 1, 2))
