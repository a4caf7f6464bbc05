from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.validate.metrics import longest_common_subsequence, rouge_l, words

SENTENCES = [
    "The parcel left our warehouse on Tuesday and should reach you by Friday at the latest.",
    "Your parcel left the warehouse on Tuesday; it should be with you on Friday, at the latest.",
    "We don't refund opened software, but we'll gladly exchange a faulty disc (see section 4.2).",
    "Opened software isn't refundable. A faulty disc is exchanged: section 4.2 says how.",
    "e-mail: help@example.org -- reply within 24h!!",
    "def area(r):\n    return 3.14 * r ** 2  # snake_case_name",
    "No, we do not exchange opened software; no refund either.",
    "The disc left our warehouse on Friday. No refund, no exchange, no reply!",
    "No, no, NO.",
]
WORD = st.sampled_from("abcde")


def brute_force(left: list[str], right: list[str]) -> int:
    def holds(part: tuple[str, ...]) -> bool:
        rest = iter(right)
        return all(word in rest for word in part)

    sizes = range(len(left), 0, -1)
    return next((k for k in sizes if any(map(holds, combinations(left, k)))), 0)


def by_table(left: list[str], right: list[str]) -> int:
    table = np.zeros((len(left) + 1, len(right) + 1), dtype=int)
    for i, one in enumerate(left, 1):
        for j, other in enumerate(right, 1):
            near = max(table[i - 1, j], table[i, j - 1])
            table[i, j] = table[i - 1, j - 1] + 1 if one == other else near
    return int(table[-1, -1])


@given(st.lists(WORD, max_size=9), st.lists(WORD, max_size=9))
def test_lcs_is_the_brute_force_one(left: list[str], right: list[str]):
    assert longest_common_subsequence(left, right) == brute_force(left, right)


@pytest.mark.parametrize("vocabulary", [2, 30, 400])
def test_lcs_of_long_texts_is_the_textbook_table(vocabulary: int):
    rng = np.random.default_rng(vocabulary)
    left = [str(w) for w in rng.integers(vocabulary, size=300)]
    right = [str(w) for w in rng.integers(vocabulary, size=237)]
    assert longest_common_subsequence(left, right) == by_table(left, right) > 0


@given(st.lists(WORD, min_size=1, max_size=12), st.lists(WORD, min_size=1, max_size=12))
def test_f1_is_the_harmonic_mean_and_symmetric(left: list[str], right: list[str]):
    common = brute_force(left, right)
    precision, recall = common / len(left), common / len(right)
    f1 = 2 * precision * recall / (precision + recall) if common else 0.0
    assert rouge_l(" ".join(left), " ".join(right)) == pytest.approx(f1, abs=1e-12)
    assert rouge_l(" ".join(left), " ".join(right)) == rouge_l(" ".join(right), " ".join(left))


def test_agrees_with_rouge_score_on_real_sentences():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    seen = set()
    for candidate in SENTENCES:
        for reference in SENTENCES:
            theirs = scorer.score(reference, candidate)["rougeL"].fmeasure
            assert rouge_l(candidate, reference) == pytest.approx(theirs, abs=1e-12)
            seen.add(round(theirs, 3))
    assert len(seen - {0.0, 1.0}) > 5


@pytest.mark.parametrize(
    ("candidate", "reference", "expected"),
    [
        ("", "", 1.0),
        (" \n", "", 1.0),
        ("", "a word", 0.0),
        ("a word", "?!", 0.0),
        ("👍", "👎", 0.0),
        ("👍", "👍\n", 1.0),
        ("YES!", "yes", 1.0),
        ("one two three", "three two one", 1 / 3),
    ],
)
def test_empty_texts_case_and_order(candidate: str, reference: str, expected: float):
    assert rouge_l(candidate, reference) == pytest.approx(expected)


def test_words_of_other_scripts_are_words():
    assert words("Déjà-vu, naïve_x") == ["déjà", "vu", "naïve", "x"]
    assert words("हिन्दी में।") == ["हिन्दी", "में"]
    assert words("東京へ行く v2") == ["東", "京", "へ", "行", "く", "v2"]
    assert words("cafe\u0301") == words("café")
    assert 0 < rouge_l("東京へ行く", "京都へ行く") < 1
    assert rouge_l("Привет, мир", "привет другой мир") == pytest.approx(4 / 5)
