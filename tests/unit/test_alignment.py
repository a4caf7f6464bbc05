"""A teacher's log-probabilities as a student's targets, held to worlds in which all is known."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytewise import World, pieces, told, tokenizer
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
    return {end.get(i, student.vocabulary[i] or b""): p for i, p in kept if p > 0}


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
        assert exact > TEXTS / 2
