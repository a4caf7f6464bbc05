"""A teacher's log-probabilities as a student's targets, held to worlds in which all is known."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytewise import World, pieces, tokenizer, told
from limbeck.collect.alignment import Aligned, Aligner, Pieces
from limbeck.records import TopLogprobs

TEXTS = 25
PAIRS = [(6, 3), (3, 8), (0, 6), (6, 0), (5, 5)]  # merges of teacher and student


@lru_cache(maxsize=8)
def setting(seed: int, merges: tuple[int, int]) -> tuple[World, Any, Any]:
    """A world and two tokenizers for it, whose merges differ."""
    world = World(seed)
    teacher, student = (
        tokenizer(World(seed + 50 + n).sample(300), m) for n, m in enumerate(merges)
    )
    return world, teacher, student


def truth(
    world: World, teacher: dict[str, list[bytes]], student: dict[str, list[bytes]],
    text: str, t: int,
) -> dict[bytes, float]:  # fmt: skip
    """P(the student's token t), by adding up every text that there is.

    Given the teacher's tokens up to its boundary before it, and the bytes from there.
    """
    before = student[text][:t]
    offset = len(b"".join(before))
    starts = [0, *accumulate(map(len, teacher[text]))]
    at = bisect_right(starts, offset) - 1
    while at and starts[at - 1] == offset:
        at -= 1
    mass: dict[bytes, float] = {}
    total = 0.0
    for other, chance in world.texts.items():
        if teacher[other][:at] == teacher[text][:at] and other.startswith(text[:offset]):
            total += chance
            if student[other][:t] == before:
                mass[student[other][t]] = mass.get(student[other][t], 0.0) + chance
    return {token: m / total for token, m in mass.items()}


def rows_of(found: Aligned, student: Pieces, t: int) -> dict[bytes, float]:
    """The bounds of one row by bytes, without what only fills it."""
    kept = zip(found.top_ids[t].tolist(), np.exp(found.logprobs[t]).tolist(), strict=True)
    end = {student.end: b""}
    return {end.get(i, student.vocabulary[i] or b""): p for i, p in kept if p > 1e-9}


@pytest.mark.parametrize("merges", PAIRS)
@pytest.mark.parametrize("top", [99, 3])
def test_every_probability_is_a_bound_and_exact_where_nothing_is_open(
    merges: tuple[int, int], top: int
):
    world, one, other = setting(1, merges)
    teacher, student, known = world.cut(one), world.cut(other), pieces(other)
    aligner = Aligner(known)
    exact = seen = 0
    for text in world.sample(TEXTS):
        ids = [*other.encode(text).ids, known.end]
        found = aligner.align(told(world, teacher, text, top), ids, text.encode(), 20)
        assert found is not None
        for t in np.flatnonzero(found.known).tolist():
            bounds, right = rows_of(found, known, t), truth(world, teacher, student, text, t)
            tail = float(found.tail[t])
            assert sum(bounds.values()) + tail == pytest.approx(1, abs=1e-5)
            for token in {*bounds, *right}:
                low = bounds.get(token, 0.0)
                assert low - 1e-5 <= right.get(token, 0.0) <= low + tail + 1e-5, (text, t, token)
            seen += 1
            exact += tail < 1e-6
    assert seen > TEXTS
    if top == 99:
        assert exact > (seen / 2 if not merges[1] else 0)


def test_what_was_written_is_kept_however_few_are():
    """With fewer kept, the same rows are known, with the same mass for what was written."""
    world, one, other = setting(1, (6, 3))
    teacher, known = world.cut(one), pieces(other)
    aligner = Aligner(known)
    for text in world.sample(TEXTS):
        ids = [*other.encode(text).ids, known.end]
        many, few = (
            aligner.align(told(world, teacher, text), ids, text.encode(), k) for k in (20, 1)
        )
        assert many is not None and few is not None
        assert few.top_ids[:, 0].tolist() == ids
        np.testing.assert_array_equal(few.known, many.known)
        np.testing.assert_array_equal(few.logprobs[:, 0], many.logprobs[:, 0])
        np.testing.assert_allclose(few.tail, 1 - np.exp(few.logprobs[:, 0]), atol=1e-6)


def test_knowing_the_teacher_s_tokens_leaves_less_open():
    slack: dict[bool, float] = {}
    world, one, other = setting(4, (3, 8))
    teacher, student, known = world.cut(one), world.cut(other), pieces(other)
    vocabulary = frozenset(token for cut in teacher.values() for token in cut if token)
    for knows in (False, True):
        aligner = Aligner(known, vocabulary if knows else frozenset())
        tails: list[float] = []
        for text in world.sample(TEXTS):
            ids = [*other.encode(text).ids, known.end]
            found = aligner.align(told(world, teacher, text), ids, text.encode(), 20)
            assert found is not None
            tails += found.tail[found.known].tolist()
            for t in np.flatnonzero(found.known).tolist():
                bounds, right = rows_of(found, known, t), truth(world, teacher, student, text, t)
                over = max(low - right.get(token, 0.0) for token, low in bounds.items())
                assert over < 1e-3, (text, t)
        slack[knows] = float(np.mean(tails))
    assert slack[True] < slack[False] / 2


def test_the_same_tokenizer_gives_back_what_was_told():
    world, _, made = setting(2, (5, 5))
    cut, known = world.cut(made), pieces(made)
    aligner = Aligner(known, same=True)
    for text in world.sample(TEXTS):
        rows = told(world, cut, text)
        found = aligner.align(rows, [*made.encode(text).ids, known.end], text.encode(), 40)
        assert found is not None and found.known.all()
        for t, row in enumerate(rows):
            wanted = {token: np.exp(logprob) for token, logprob in row.top}
            assert rows_of(found, known, t) == pytest.approx(wanted, abs=1e-6)
            assert found.tail[t] == pytest.approx(0, abs=1e-6)


TEXT = "aé€😀 b€é"


@lru_cache(maxsize=1)
def wide() -> tuple[Any, Pieces]:
    """A tokenizer whose tokens cut characters in two."""
    made = tokenizer([TEXT * 3, "é€b a😀", "€€ 😀😀", "ab ab é"] * 5, 12)
    known = pieces(made)
    assert any(_half(token) for token in known.ordered if len(token) > 1)
    return made, known


def _half(token: bytes) -> bool:
    return len(token.decode(errors="ignore").encode()) < len(token)


@st.composite
def heard(draw: st.DrawFn) -> tuple[str, list[TopLogprobs]]:
    """A text, cut anywhere, within characters too, with other tokens beside each."""
    text = draw(st.text(alphabet=TEXT, min_size=1, max_size=8))
    raw = text.encode()
    places = draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=6)) | {0, len(raw)}
    ends = sorted(p for p in places if p <= len(raw))
    tokens = [raw[a:b] for a, b in pairwise(ends)] + [b""]
    other = st.one_of(
        st.sampled_from(wide()[1].ordered), st.text(TEXT, min_size=1, max_size=3).map(str.encode),
        st.just(b"<|im_end|>"),
    )  # fmt: skip
    rows: list[TopLogprobs] = []
    for token in tokens:
        beside = draw(st.lists(other, max_size=4, unique=True))
        parts = draw(
            st.lists(st.floats(0.01, 1), min_size=len(beside) + 2, max_size=len(beside) + 2)
        )
        share = np.log(np.array(parts) / sum(parts)).tolist()
        top = tuple((b, p) for b, p in zip(beside, share[1:], strict=False) if b != token)
        rows.append(TopLogprobs(token, share[0], ((token, share[0]), *top)))
    return text, rows


@settings(max_examples=60, deadline=None)
@given(heard(), st.integers(1, 12), st.booleans())
def test_masses_sum_to_one_whatever_was_told(
    one: tuple[str, list[TopLogprobs]], top_k: int, same: bool
):
    text, rows = one
    made, known = wide()
    ids = [*made.encode(text).ids, known.end]
    found = Aligner(known, same=same).align(rows, ids, text.encode(), top_k)
    assert found is not None
    assert found.top_ids.shape == found.logprobs.shape == (len(ids), top_k)
    np.testing.assert_allclose(np.exp(found.logprobs).sum(-1) + found.tail, 1, atol=1e-5)
    for t, written in enumerate(ids):
        kept = found.top_ids[t].tolist()
        assert len(set(kept)) == top_k and written in kept
        if not found.known[t]:
            assert kept[0] == written and found.logprobs[t, 0] == 0 == found.tail[t]


@pytest.mark.parametrize("cut", [[3], [1, 3], [1, 2, 3, 4, 5], [4]])
def test_characters_cut_by_the_teacher(cut: list[int]):
    """The teacher is sure of every piece of é€b; so are the targets of whole characters."""
    raw = "é€b".encode()
    made, known = wide()
    pieces_ = [raw[a:b] for a, b in zip([0, *cut], [*cut, len(raw)], strict=True)]
    sure = [TopLogprobs(p, 0.0, ((p, 0.0),)) for p in (*pieces_, b"")]
    ids = [*made.encode("é€b").ids, known.end]
    found = Aligner(known).align(sure, ids, raw, 4)
    assert found is not None
    assert found.top_ids[:, 0].tolist() == ids
    assert found.known[-1] and found.tail.max() < 1e-6


def test_text_around_the_answer_and_text_that_is_another():
    made, known = wide()
    ids = [*made.encode("ab").ids, known.end]
    rows = [TopLogprobs(b, -0.1, ((b, -0.1),)) for b in (b" a", b"b", b"\n", b"</s>")]
    found = Aligner(known).align(rows, ids, b"ab", 2)
    assert found is not None
    assert not found.known[-1]  # what the teacher said there is the new line, which was taken off
    aligner = Aligner(known)
    assert aligner.align(rows, ids, b"ba", 2) is None
    assert aligner.align([], ids, b"ab", 2) is None
    alone = aligner.text(ids, 2)
    assert alone.top_ids[:, 0].tolist() == ids and not alone.known.any()
