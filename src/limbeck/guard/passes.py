"""The columns of a sketch from the bytes of many prompts, by numpy: no Python for each prompt."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from limbeck.guard.schema import CAPABILITIES
from limbeck.guard.table import (
    FOLLOWS,
    FRAME,
    KNOWN,
    MORE,
    SCORES,
    STRONG,
    WEIGHS,
    joined,
    lexicon_table,
    lookup,
)
from limbeck.guard.words import I64, ODD, POWERS, U8, U64, Flags, Words, mix, split

BANDS, PER_BAND = 8, 2
HEAD = 4
"""Words that a template has before its slot may begin."""
SKELETON_WORDS = 24
CHUNK_BYTES = 1 << 17
CODE, MATHS = CAPABILITIES.index("code"), CAPABILITIES.index("maths")


class Columns(NamedTuple):
    """What is said of R prompts; `limbeck.guard.sketch.sketch` says what each column means."""

    exact: I64
    """(R,)."""
    skeleton: I64
    """(R,), 0 where there is no word, as in `bands` and `topic`."""
    bands: I64
    """(BANDS, R)."""
    scores: U8
    """(3, R), as `table.SCORES`."""
    capability: NDArray[np.int8]
    """(R,)."""
    topic: NDArray[np.int32]
    """(R,)."""
    wordy: Flags
    """Whether there is a word, (R,)."""

    def part(self, rows: slice) -> Columns:
        """Some rows of all columns, to be filled."""
        return Columns(
            self.exact[rows],
            self.skeleton[rows],
            self.bands[:, rows],
            self.scores[:, rows],
            self.capability[rows],
            self.topic[rows],
            self.wordy[rows],
        )


def empty(rows: int) -> Columns:
    """Columns to be filled."""
    return Columns(
        exact=np.zeros(rows, np.int64),
        skeleton=np.zeros(rows, np.int64),
        bands=np.zeros((BANDS, rows), np.int64),
        scores=np.zeros((len(SCORES), rows), np.uint8),
        capability=np.zeros(rows, np.int8),
        topic=np.zeros(rows, np.int32),
        wordy=np.zeros(rows, np.bool_),
    )


def fill(data: U8, bounds: I64, columns: Columns) -> None:
    """Sketch the texts `data[bounds[r]:bounds[r + 1]]` into the rows of `columns`."""
    rows = len(bounds) - 1
    at = 0
    while at < rows:
        limit = bounds[at : at + 1] + CHUNK_BYTES
        end = int(np.searchsorted(bounds, limit, "right")[0]) - 1
        end = min(max(end, at + 1), rows)
        words = split(data[bounds[at] : bounds[end]], bounds[at : end + 1] - bounds[at])
        _chunk(words, columns.part(slice(at, end)))
        at = end


def _chunk(words: Words, columns: Columns) -> None:
    exact = np.zeros(len(columns.exact), np.uint64)
    if len(words.rows):
        rows = words.rows
        columns.wordy[rows] = True
        place = np.arange(len(words.hashes)) - words.spread(words.first)
        exact[rows] = np.add.reduceat(words.hashes * POWERS.take(place), words.first)
        plain = words.plain()
        entries = lookup(plain)
        marks = lexicon_table().marks.take(entries)
        columns.skeleton[rows] = _skeletons(words, plain, marks)
        columns.bands[:, rows] = _bands(plain, words)
        columns.topic[rows] = _topics(words, marks)
        _scores(words, plain, entries, marks, columns)
    columns.exact[:] = mix(exact).view(np.int64)


def _bands(plain: U64, words: Words) -> I64:
    """MinHashes in bands, (BANDS, N)."""
    last = words.first + words.counts - 1
    second = np.append(plain[1:], np.uint64(0))
    second[last] = 0
    third = np.append(second[1:], np.uint64(0))
    third[last] = 0
    shingles = plain * ODD[1]
    second *= ODD[2]
    shingles += second
    third *= ODD[3]
    shingles += third
    narrow = (mix(shingles) >> np.uint64(32)).astype(np.uint32)
    least = np.empty((BANDS, PER_BAND, len(words.first)), np.uint32)
    for turn, factor in enumerate(permutations()):
        np.minimum.reduceat(narrow * factor, words.first, out=least[divmod(turn, PER_BAND)])
    wide = least.astype(np.uint64)
    return mix(wide[:, 1] << np.uint64(32) | wide[:, 0]).view(np.int64)


@lru_cache(maxsize=1)
def permutations() -> NDArray[np.uint32]:
    """An odd multiplier for each hash."""
    drawn = mix(np.arange(1, BANDS * PER_BAND + 1, dtype=np.uint64) * ODD[0])
    return (drawn >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


def _skeletons(words: Words, plain: U64, marks: U8) -> I64:
    kept = kept_words(words, marks)
    parts = words.parts(kept)
    place = np.arange(len(kept)) - np.repeat(parts[:-1], np.diff(parts))
    sums = np.zeros(len(kept) + 1, np.uint64)
    np.cumsum(plain.take(kept) * POWERS.take(place), out=sums[1:])
    return mix(sums[parts[1:]] - sums[parts[:-1]] + ODD[2]).view(np.int64)


def kept_words(words: Words, marks: U8) -> I64:
    """Places of the words that a skeleton keeps, ascending.

    Those of the frame in sentences that instruct, up to the first slot after `HEAD` of them: what
    follows a colon, line end or quotation mark. Where these are fewer than three, the frame's words
    of all sentences; where those are, and so in languages unknown to `lexicon`, all but numbers.
    """
    frame = (marks & FRAME) != 0
    sentences = np.flatnonzero(words.breaks)
    strong = (np.bitwise_or.reduceat(marks, sentences) & STRONG) != 0
    kept = frame & np.repeat(strong, np.diff(sentences, append=len(marks)))
    kept = _to_slot(np.flatnonzero(kept), words)
    for instead in (frame, ~words.number):
        few = np.flatnonzero(np.diff(words.parts(kept)) < 3)
        counts = np.minimum(words.counts.take(few), SKELETON_WORDS)
        ends = np.cumsum(counts)
        heads: I64 = np.repeat(words.first.take(few) - ends + counts, counts)
        heads += np.arange(len(heads))
        chosen = np.zeros(len(marks), np.bool_)
        chosen[heads] = instead.take(heads)
        chosen[kept] = True
        kept = np.flatnonzero(chosen)
    return kept


def _to_slot(kept: I64, words: Words) -> I64:
    """Those at `kept` that stand before their text's slot, and are among its first."""
    parts = words.parts(kept)
    slots = np.flatnonzero(words.slots)
    text = np.repeat(np.arange(len(words.rows)), np.diff(words.parts(slots)))
    late = np.flatnonzero(np.searchsorted(kept, slots) - parts.take(text) >= HEAD)[::-1]
    ends = np.full(len(words.rows), len(words.start))
    ends[text.take(late)] = slots.take(late)  # the first one is written last, and stays
    lengths = np.diff(parts)
    rank = np.arange(len(kept)) - np.repeat(parts[:-1], lengths)
    inside = (kept < np.repeat(ends, lengths)) & (rank < SKELETON_WORDS)
    return kept.take(np.flatnonzero(inside))


def _topics(words: Words, marks: U8) -> NDArray[np.int32]:
    """Of the words outside the lexicon, the one with the least hash; of seven letters or more."""
    length = words.end - words.start
    keys = words.hashes >> np.uint64(1)
    keys |= (length < 7).astype(np.uint64) << np.uint64(63)
    other = ((marks & KNOWN) != 0) | words.number | (length < 3)
    keys |= -other.astype(np.int64).view(np.uint64)  # all ones: NONE
    least = np.minimum.reduceat(keys, words.first)
    return ((least >> np.uint64(16)) & np.uint64(0x7FFFFFFF)).astype(np.int32)


def _scores(words: Words, plain: U64, entries: I64, marks: U8, columns: Columns) -> None:
    table = lexicon_table()
    places, found = _phrases(words, plain, entries, marks)
    parts = words.parts(places)
    points = np.zeros((len(columns.exact), table.weights.shape[1]), np.int64)
    sums = np.zeros((len(places) + 1, points.shape[1]), np.int64)
    np.cumsum(table.weights[found], axis=0, out=sums[1:])
    points[words.rows] = sums[parts[1:]] - sums[parts[:-1]]
    columns.scores[:] = np.minimum(points[:, : len(SCORES)] * 10, 255).T
    votes = points[:, len(SCORES) - 1 :]
    votes[:, 0] = 0  # of "other", which wins where nothing else has a vote
    votes[words.rows, CODE] += np.minimum(words.braces.take(words.rows), 8)
    numbers = np.add.reduceat(words.number, words.first, dtype=np.int64)
    votes[words.rows, MATHS] += np.minimum(numbers // 2, 3)
    columns.capability[:] = votes.argmax(1)


def _phrases(words: Words, plain: U64, entries: I64, marks: U8) -> tuple[I64, I64]:
    """Where phrases with a weight end, ascending, and their entries."""
    table = lexicon_table()
    ongoing = np.append((marks[1:] & FOLLOWS) != 0, False)
    ongoing[words.first + words.counts - 1] = False
    places: list[I64] = []
    found: list[I64] = []
    place, keys, entry = np.arange(len(entries)), plain, entries
    while len(place):
        weighs = np.flatnonzero((marks & WEIGHS) != 0)
        places.append(place.take(weighs))
        found.append(entry.take(weighs))
        more = np.flatnonzero(((marks & MORE) != 0) & ongoing.take(place))
        place = place.take(more) + 1
        keys = joined(keys.take(more), plain.take(place))
        entry = lookup(keys)
        marks = table.marks.take(entry)
    ends = np.concatenate(places)
    order = np.argsort(ends, kind="stable")
    return ends[order], np.concatenate(found)[order]
