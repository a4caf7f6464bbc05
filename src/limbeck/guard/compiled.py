"""`limbeck.guard.passes.fill`, compiled by numba: text by text, without the interpreter's lock.

Every column is the same, bit for bit. A function here is the twin of the one of its name in
`passes`, `table` or `words`, and says for one text what that says for many.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, TypeVar
from zlib import crc32

import numba
import numpy as np
from numpy.typing import NDArray

from limbeck.guard import passes, schema, table, words
from limbeck.guard.passes import BANDS, CODE, HEAD, MATHS, PER_BAND, SKELETON_WORDS, Columns
from limbeck.guard.table import FOLLOWS, FRAME, KNOWN, MORE, SCORES, SLOT_BITS, STRONG, WEIGHS
from limbeck.guard.words import (
    ALONE,
    BRACE,
    DIGIT,
    HARD,
    I64,
    KIND,
    MASKS,
    NUMBER,
    ODD,
    SIGN,
    SOFT,
    U8,
    U64,
    WORD,
    WORD_BYTES,
)

njit: Any = numba.njit
F = TypeVar("F", bound=Callable[..., Any])
Records: TypeAlias = Any
"""An array of records, which numba reads as `array[place].field`."""

ONE, HALF = np.uint64(1), np.uint64(32)
ALL = np.uint64(2**64 - 1)
SOURCES = crc32(
    "".join(inspect.getsource(room) for room in (passes, schema, table, words)).encode()
)
"""Numba's cache knows when this file changes, but not when those do whose constants it compiles."""
WORD_RECORD = np.dtype(
    [
        ("hash", np.uint64),
        ("plain", np.uint64),
        ("entry", np.int32),
        ("length", np.int32),
        ("mark", np.uint8),
        ("number", np.bool_),
        ("breaks", np.bool_),
        ("slot", np.bool_),
        ("kept", np.bool_),
    ],
    align=True,
)
"""A word as in `words.Words`, its entry of the lexicon, and whether the skeleton keeps it. Records,
since each array that a call passes costs two atomic operations."""


class Lexicon(NamedTuple):
    """As `table.Table`, its entries as records of `key`, `mark` and `weights`."""

    seed: np.uint64
    slots: NDArray[np.uint16]
    entries: Records


def fill(data: U8, bounds: I64, columns: Columns) -> None:
    """As `passes.fill`; threads may call it at once."""
    text = data[bounds[0] : bounds[-1]]
    eights = np.zeros(len(text) // 8 + 2, "<u8")
    padded = eights.view(np.uint8)
    padded[: len(text)] = text
    room = np.empty(np.diff(bounds).max(initial=0), WORD_RECORD)  # words are fewer than bytes
    at = bounds - bounds[0]
    _fill(eights, padded, at, columns, room, _lexicon(), passes.permutations())


@lru_cache(maxsize=1)
def _lexicon() -> Lexicon:
    told = table.lexicon_table()
    kinds = told.weights.shape[1]
    entries = np.zeros(
        len(told.keys), [("key", np.uint64), ("mark", np.uint8), ("weights", np.int64, kinds)]
    )
    entries["key"], entries["mark"], entries["weights"] = told.keys, told.marks, told.weights
    return Lexicon(told.seed, told.slots, entries)


def _compiled(function: F) -> F:
    return njit(function)


def _kept_on_disk(function: F) -> F:
    try:
        return njit(function, nogil=True, cache=True)
    except RuntimeError:  # no folder for it can be written
        return njit(function, nogil=True)


mix: Any = _compiled(words.mix)


@_compiled
def _lower(eights: U64) -> None:
    """Make A to Z small, eight bytes at a time."""
    for place in range(len(eights)):
        value = eights[place]
        low = value & np.uint64(0x7F7F7F7F7F7F7F7F)
        from_a = low + np.uint64(0x3F3F3F3F3F3F3F3F)
        past_z = low + np.uint64(0x2525252525252525)
        upper = (from_a ^ past_z) & ~value & np.uint64(0x8080808080808080)
        eights[place] = value | upper >> np.uint64(2)


@_compiled
def split(eights: U64, text: U8, at: int, stop: int, words: Records) -> tuple[int, int]:
    """Read the words of a text: how many there are, and how many of `{};=`."""
    count = braces = 0
    breaks, slot = True, False
    while at < stop:
        kind = KIND[text[at]]
        braces += kind & BRACE != 0
        if kind & (HARD | SOFT) and _parts(text, at):
            breaks = True
            slot |= kind & HARD != 0
        if not kind & (WORD | SIGN):
            at += 1
            continue
        end = min(_end(text, at, kind), stop)
        word = words[count]
        word.hash = hashes(eights, at, end)
        word.number = kind & DIGIT != 0
        word.plain = NUMBER if word.number else word.hash
        word.length = end - at
        word.breaks, word.slot = breaks, slot
        breaks = slot = False
        count += 1
        at = end
    return count, braces


@_compiled
def _end(text: U8, start: int, kind: Any) -> int:
    """One past the last byte of the word that begins there."""
    if kind & SIGN:
        return start + 1
    if kind & ALONE:
        return start + 3
    end = start + 1
    while KIND[text[end]] & (WORD | ALONE) == WORD:
        end += 1
    return end


@_compiled
def _parts(text: U8, at: int) -> bool:
    """Whether a mark parts sentences: not in 3.5 nor http://, and of U+3000 on only the stop."""
    mark, following = text[at], text[at + 1]
    if mark == 0xE3:
        return following == 0x80 and text[at + 2] == 0x82
    if mark == ord(":") or mark == ord("."):
        joined = KIND[following] & WORD and following < 128
        return not (joined or following == ord("/"))
    return True


@_compiled
def hashes(eights: U64, start: int, end: int) -> np.uint64:
    """Of one run of bytes."""
    hashed = mix(_eight(eights, start, end))
    for at in range(start + 8, min(end, start + WORD_BYTES), 8):
        hashed = mix((hashed ^ _eight(eights, at, end)) * ODD[0])
    if end - start > WORD_BYTES:
        hashed ^= np.uint64(end - start) * ODD[1]
    return hashed


@_compiled
def _eight(eights: U64, start: int, end: int) -> np.uint64:
    """The eight bytes from `start` on, little-endian; zeros from `end` on."""
    shift = np.uint64((start & 7) << 3)
    low = eights[start >> 3] >> shift
    high = eights[(start >> 3) + 1] << ONE << (np.uint64(63) - shift)
    return (low | high) & MASKS[min(end - start, 8)]


@_compiled
def _exact(words: Records, count: int) -> Any:
    total, power = np.uint64(0), ONE
    for place in range(count):
        total += words[place].hash * power
        power *= ODD[0]
    return mix(total)


@_compiled
def lookup(lexicon: Lexicon, key: np.uint64) -> Any:
    """The lexicon's entry for a key, 0 for none."""
    entry = np.int64(lexicon.slots[(key * lexicon.seed) >> np.uint64(64 - SLOT_BITS)])
    return entry if lexicon.entries[entry].key == key else 0


@_compiled
def _look_up(words: Records, count: int, lexicon: Lexicon) -> Any:
    """Find each word's entry; gives the topic, of which the loop is the same."""
    least = ALL
    for place in range(count):
        word = words[place]
        entry = lookup(lexicon, word.plain)
        mark = lexicon.entries[entry].mark
        word.entry, word.mark, word.kept = entry, mark, False
        key = word.hash >> ONE | np.uint64(word.length < 7) << np.uint64(63)
        content = (word.length >= 3) & (mark & KNOWN == 0) & (not word.number)
        least = min(least, key | (np.uint64(content) - ONE))  # ALL where it is none
    return (least >> np.uint64(16)) & np.uint64(0x7FFFFFFF)


@_compiled
def _skeleton(words: Records, count: int) -> Any:
    kept_words(words, count)
    total, power = ODD[2], ONE
    for place in range(count):
        word = words[place]
        if word.kept:
            total += word.plain * power
            power *= ODD[0]
    return mix(total)


@_compiled
def kept_words(words: Records, count: int) -> None:
    """Mark the words that the skeleton keeps; none is marked before."""
    number = _to_slot(words, count)
    head = min(count, SKELETON_WORDS)
    if number < 3:
        for place in range(head):
            word = words[place]
            if word.mark & FRAME and not word.kept:
                word.kept = True
                number += 1
    if number < 3:
        for place in range(head):
            word = words[place]
            word.kept |= not word.number


@_compiled
def _to_slot(words: Records, count: int) -> int:
    """Mark the frame in sentences that instruct, up to the slot, and say how many these are."""
    number, strong = 0, False
    for place in range(count):
        word = words[place]
        if word.breaks:
            strong = _instructs(words, place, count)
        if (number >= HEAD and word.slot) or number == SKELETON_WORDS:
            break
        if strong and word.mark & FRAME:
            word.kept = True
            number += 1
    return number


@_compiled
def _instructs(words: Records, start: int, count: int) -> bool:
    """Whether the sentence that begins there has a word that instructs."""
    for place in range(start, count):
        word = words[place]
        if place > start and word.breaks:
            return False
        if word.mark & STRONG:
            return True
    return False


@_compiled
def _bands(words: Records, count: int, least: Any, permutations: Any) -> None:
    """The least of each permutation."""
    least[:] = 0xFFFFFFFF
    for place in range(count):
        shingle = words[place].plain * ODD[1]
        if place + 1 < count:
            shingle += words[place + 1].plain * ODD[2]
        if place + 2 < count:
            shingle += words[place + 2].plain * ODD[3]
        narrow = np.uint32(mix(shingle) >> np.uint64(32))
        for turn in range(BANDS * PER_BAND):
            least[turn] = min(least[turn], np.uint32(narrow * permutations[turn]))


@_compiled
def _scores(words: Records, count: int, braces: int, lexicon: Lexicon, points: I64) -> None:
    """The points of `table.SCORES`, and the votes for `CAPABILITIES` from the second on."""
    points[:] = 0
    numbers = 0
    for place in range(count):
        numbers += words[place].number
        if words[place].mark & (MORE | WEIGHS):
            _phrases(words, count, place, lexicon, points)
    points[len(SCORES) - 1 + CODE] += min(braces, 8)
    points[len(SCORES) - 1 + MATHS] += min(numbers // 2, 3)


@_compiled
def _phrases(words: Records, count: int, place: int, lexicon: Lexicon, points: I64) -> None:
    """Add the points of all phrases that begin at a word."""
    key, entry = words[place].plain, np.int64(words[place].entry)
    while True:
        if lexicon.entries[entry].mark & WEIGHS:
            for kind in range(len(points)):
                points[kind] += lexicon.entries[entry].weights[kind]
        place += 1
        ongoing = place < count and words[place].mark & FOLLOWS
        if not (ongoing and lexicon.entries[entry].mark & MORE):
            return
        key = mix(key * ODD[1] + words[place].plain)
        entry = lookup(lexicon, key)


@_kept_on_disk
def _fill(
    eights: U64,
    text: U8,
    bounds: I64,
    columns: Columns,
    words: Records,
    lexicon: Lexicon,
    permutations: NDArray[np.uint32],
    _sources: int = SOURCES,
) -> None:
    """`text` and `eights` are the same bytes, padded; `words` is room for those of one text."""
    _lower(eights)
    least = np.empty(BANDS * PER_BAND, np.uint32)
    points = np.empty(len(lexicon.entries[0].weights), np.int64)
    votes = points[len(SCORES) - 1 :]
    for row in range(len(bounds) - 1):
        count, braces = split(eights, text, bounds[row], bounds[row + 1], words)
        columns.wordy[row] = count > 0
        columns.exact[row] = _exact(words, count)
        if count == 0:
            continue
        columns.topic[row] = _look_up(words, count, lexicon)
        columns.skeleton[row] = _skeleton(words, count)
        _bands(words, count, least, permutations)
        for band in range(BANDS):
            low, high = least[PER_BAND * band], least[PER_BAND * band + 1]
            columns.bands[band, row] = mix(np.uint64(high) << HALF | np.uint64(low))
        _scores(words, count, braces, lexicon, points)
        for kind in range(len(SCORES)):
            columns.scores[kind, row] = min(points[kind] * 10, 255)
        votes[0] = 0
        columns.capability[row] = votes.argmax()


# Compiled, or read from numba's cache, under the lock of this import: threads wait for one of them.
fill(np.zeros(0, np.uint8), np.zeros(1, np.int64), passes.empty(0))
