from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asking import prompts
from limbeck.errors import InputError
from limbeck.models.budget import Price, Purse, bound, find_price, price_list, purse
from limbeck.recipe import PROVIDERS
from limbeck.records import Message, Prompt, Usage
from limbeck.sections import BudgetSection

NONE = BudgetSection()


def test_the_price_list_is_sound() -> None:
    """Every entry is of a provider that we speak to, with a source and a month, and no typo in it:
    output costs more than input, and a cache less."""
    shelves = price_list()
    assert set(shelves) <= set(PROVIDERS)
    for shelf in shelves.values():
        assert shelf["source"].startswith("https://") and shelf["read"] >= "2026-10"
        for entry in shelf["models"].values():
            assert entry["output"] > entry["input"] > entry.get("cached", 0) >= 0
            assert ("above" in entry) == ("long" in entry)
            if "long" in entry:
                assert entry["long"][0] > entry["input"] and entry["long"][1] > entry["output"]


def test_a_price_is_found_by_model_and_dated_version() -> None:
    plain = find_price("openai", "gpt-4.1-mini", NONE)
    assert plain is not None and plain == find_price("openai", "gpt-4.1-mini-2025-04-14", NONE)
    assert plain != find_price("openai", "gpt-4.1", NONE)
    for provider, model in (("openai", "gpt-4.1-mini-tuned"), ("", "gpt-4.1"), ("xai", "grok-9")):
        assert find_price(provider, model, NONE) is None


def test_the_recipe_s_price_goes_first() -> None:
    found = find_price("openai", "gpt-4.1", BudgetSection(input=7, output=9))
    assert found is not None and (found.input, found.output, found.cached) == (7, 9, 7)


def test_dollars_add_up() -> None:
    """By hand: 1,000 fresh at 2 and 500 cached at 0.5, 300 written at 8, lost ones in full."""
    price = Price(2, 8, 0.5, "here", above=2000, long=(4, 12))
    usage = Usage(1500, 300, 0, cached=500, reasoning=100, lost_in=100, lost_out=10)
    assert price.dollars(usage) * 1e6 == pytest.approx(1100 * 2 + 500 * 0.5 + 310 * 8)
    assert price.dollars(Usage(3000, 100)) * 1e6 == pytest.approx(3000 * 4 + 100 * 12)


def test_dollars_without_a_price_are_refused() -> None:
    with pytest.raises(InputError, match=r"price of grok-9 is not known.*budget\.input"):
        purse("xai", "grok-9", BudgetSection(dollars=5))
    assert purse("xai", "grok-9", BudgetSection(tokens=5)).price is None


@pytest.mark.parametrize(
    ("section", "told"),
    [
        (
            {"dollars": 0.001, "input": 10, "output": 50},
            r"budget\.dollars = 0\.001 is less than one",
        ),
        ({"tokens": 70}, r"budget\.tokens = 70 is less than one"),
    ],
)
def test_a_budget_below_one_question_is_refused(section: dict[str, float], told: str) -> None:
    held = purse("", "m", BudgetSection.model_validate(section))
    with pytest.raises(InputError, match=told):
        held.refuse_too_little(bound(next(prompts(1)), 64))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_purse_is_never_overdrawn(data: st.DataObject) -> None:
    """Whatever is held and however much of it is used, in whatever order it comes back."""
    price = Price(3, 15, 0.3, "here", above=50, long=(6, 22))
    held = Purse(price, data.draw(st.floats(1e-5, 1e-2)), data.draw(st.integers(1, 5000)))
    flying: list[Usage] = []
    for _ in range(data.draw(st.integers(1, 40))):
        most = Usage(data.draw(st.integers(1, 100)), data.draw(st.integers(1, 200)))
        if held.fits(most):
            held.hold(most)
            flying.append(most)
        elif flying:
            most = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
            used = Usage(
                data.draw(st.integers(0, most.tokens_in)),
                data.draw(st.integers(0, most.tokens_out)),
            )
            held.settle(most, data.draw(st.sampled_from([None, used, most])))
        assert held.dollars <= (held.most_dollars or 0) * (1 + 1e-9)
        assert held.tokens <= (held.most_tokens or 0)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_a_bound_is_no_less_than_a_token_a_byte(text: str) -> None:
    one = Prompt("", (Message("system", "Be brief."), Message("user", text)), "p:1", "train")
    assert bound(one, 9).tokens_in >= len(text.encode()) + len(b"Be brief.")
    assert bound(one, 9).tokens_out == 9
