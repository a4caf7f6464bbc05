from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from test_store import answer

from limbeck.collect.choose import beyond_best, outvoted
from limbeck.records import Answer


def samples(texts: list[str]) -> list[Answer]:
    return [replace(answer("p", text), id=f"{n}") for n, text in enumerate(texts)]


def final(one: Answer) -> str | None:
    return one.text or None


@given(st.lists(st.sampled_from(["4", "5", "six", ""]), max_size=9))
def test_only_what_more_than_half_say_is_left(texts: list[str]) -> None:
    out = outvoted(samples(texts), final)
    left = [text for n, text in enumerate(texts) if str(n) not in out]
    if left:
        assert len(set(left)) == 1 and left[0] and 2 * len(left) > len(texts)
        assert len(left) == texts.count(left[0])
    else:
        assert all(2 * texts.count(t) <= len(texts) for t in set(texts) if t)


def test_what_most_say_is_told() -> None:
    assert outvoted(samples(["4", "4", "5"]), final) == {
        "2": "majority: 2 of 3 agree, on another answer"
    }
    assert outvoted(samples(["4", "5"]), final) == dict.fromkeys("01", "majority: 1 of 2 agree")
    assert outvoted([], final) == {}


@given(st.lists(st.floats(-9, 9), max_size=8), st.integers(1, 9))
def test_the_best_are_those_that_no_other_beats(scores: list[float], best: int) -> None:
    answers = samples(["x"] * len(scores))
    out = beyond_best(answers, {str(n): s for n, s in enumerate(scores)}, best)
    assert len(out) == max(0, len(scores) - best)
    left = [s for n, s in enumerate(scores) if str(n) not in out]
    assert all(scores[int(n)] <= min(left) for n in out)


def test_of_equals_the_earlier_are_kept() -> None:
    assert list(beyond_best(samples(["a", "b", "c"]), {}, 1)) == ["1", "2"]
    assert list(beyond_best(samples(["a", "b", "c"]), {"1": 1.0}, 1)) == ["0", "2"]
