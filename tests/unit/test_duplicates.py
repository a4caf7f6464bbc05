from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.collect.duplicates import earlier_twins, normalise, shingles


def jaccard(one: frozenset[str], other: frozenset[str]) -> Fraction:
    return Fraction(len(one & other), len(one | other))


def of(text: str) -> frozenset[str]:
    return shingles([("user", normalise(text))])


SETS = st.lists(st.frozensets(st.sampled_from("abcdefghijklmnop"), min_size=1), max_size=30)
BIG_SETS = st.lists(
    st.tuples(st.integers(0, 3), st.frozensets(st.integers(0, 30), max_size=4)), max_size=25
)


def brute_force(sets, threshold: str, comparable) -> list[int | None]:
    twins: list[int | None] = []
    for one, members in enumerate(sets):
        earlier = (
            other
            for other in range(one)
            if twins[other] is None
            and comparable(one, other)
            and jaccard(members, sets[other]) >= Fraction(threshold)
        )
        twins.append(next(earlier, None))
    return twins


@settings(max_examples=300, deadline=None)
@given(SETS, st.sampled_from(["0.1", "0.3", "0.5", "0.6", "0.7", "0.8", "0.9", "0.95", "1"]))
def test_join_equals_comparing_every_pair(sets, threshold):
    everyone = brute_force(sets, threshold, lambda one, other: True)
    assert earlier_twins(sets, float(threshold)) == everyone
    odd = brute_force(sets, threshold, lambda one, other: (one + other) % 3 > 0)
    assert earlier_twins(sets, float(threshold), lambda one, other: (one + other) % 3 > 0) == odd


@settings(max_examples=200, deadline=None)
@given(BIG_SETS, st.sampled_from(["0.8", "0.9", "0.95"]))
def test_join_equals_comparing_every_pair_near_the_threshold(edits, threshold):
    # A few families of 40 elements, each member with at most four elements exchanged.
    sets = []
    for family, gone in edits:
        whole = {f"{family}-{n}" for n in range(40)}
        changed = {f"{family}-{n}" for n in gone}
        sets.append(frozenset(whole ^ changed))
    expected = brute_force(sets, threshold, lambda one, other: True)
    assert earlier_twins(sets, float(threshold)) == expected


@given(st.text(max_size=40))
def test_normal_form_ignores_case_and_white_space(text):
    assert normalise(f" \t{text.upper()}\u00a0\n") == normalise(text.upper())
    assert normalise(normalise(text)) == normalise(text) or text != text.strip()


@pytest.mark.parametrize(
    ("one", "other"),
    [("Straße", "STRASSE"), ("ﬁle", "file"), ("ｆｕｌｌ width", "full  WIDTH"), ("e\u0301", "é")],
)
def test_same_text_in_other_codes(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is the capital of France?", "what is the capital of France", True),
        ("Name three fruits: apple, pear, plum.", "Name three fruits - apple, pear, plum", False),
        ("does a dog bite a man", "does a man bite a dog", False),
        ("Is 3 < 5?", "Is 3 > 5?", False),
        ("a book on C++", "a book on C", False),
        ("?", "!", False),
        ("日本の首都はどこですか", "日本の首都はどこですか。", True),
        ("日本の首都はどこですか", "日本の首相はどこですか", False),
    ],
)
def test_what_counts_as_the_same_words(one, other, same):
    assert (of(one) == of(other)) is same


def test_text_without_spaces_is_compared_letter_by_letter():
    assert 0 < jaccard(of("日本の首都はどこですか"), of("日本の首相はどこですか")) < 1


@given(st.integers(3, 80), st.data())
def test_one_exchanged_word_leaves_the_share_that_is_documented(length, data):
    words = [f"word{n}" for n in range(length)]
    place = data.draw(st.integers(0, length - 1))
    other = [*words[:place], "another", *words[place + 1 :]]
    share = jaccard(of(" ".join(words)), of(" ".join(other)))
    assert share == Fraction(length - 1, length + 3)
    assert (share >= Fraction(9, 10)) == (length >= 37)


def test_turns_are_told_apart():
    whole = shingles([("user", "one two three four")])
    split = shingles([("user", "one two"), ("assistant", "three four")])
    assert whole != split
    assert shingles([("user", "one"), ("user", "two")]) != shingles([("user", "one two")])
