"""The lexicon as a hash table: what each word, or run of words, of a prompt counts for."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from limbeck.guard import lexicon
from limbeck.guard.arrow import pa
from limbeck.guard.schema import CAPABILITIES
from limbeck.guard.texts import buffers, folded
from limbeck.guard.words import I64, ODD, U8, U64, mix, split

FRAME, STRONG, KNOWN, MORE, WEIGHS, FOLLOWS = (np.uint8(1 << bit) for bit in range(6))
"""What an entry of the lexicon is: a word that skeletons keep; one that instructs besides; a word
by itself or the first of a phrase; the beginning of a longer phrase; a phrase with a weight; a word
that goes on with one."""


class Table(NamedTuple):
    """The lexicon, found by hash; entry 0 is every other word.

    Attributes:
        seed: The multiplier that gives every key a slot of its own.
        slots: The entry in each slot, 0 for none, uint16 (2 ** SLOT_BITS,).
        keys: The hash of each entry, uint64 (E,).
        marks: What each is, uint8 (E,).
        weights: Its points for each of `SCORES` and, from the second on, of `CAPABILITIES`, (E, K).
    """

    seed: np.uint64
    slots: NDArray[np.uint16]
    keys: U64
    marks: U8
    weights: I64


SLOT_BITS = 18
SCORES = ("reasoning", "rubric", "trace")


def joined(keys: U64, following: U64) -> U64:
    """The key of a phrase that goes on with one word more."""
    return mix(keys * ODD[1] + following)


def lookup(keys: U64) -> I64:
    """The lexicon's entry for each key, 0 for none."""
    table = lexicon_table()
    slots = (keys * table.seed) >> np.uint64(64 - SLOT_BITS)
    entries = table.slots.take(slots.view(np.int64)).astype(np.int64)
    entries *= table.keys.take(entries) == keys
    return entries


@lru_cache(maxsize=1)
def lexicon_table() -> Table:
    """The table, made once."""
    kinds = [lexicon.REASONING, lexicon.RUBRIC, lexicon.TRACE]
    kinds += [lexicon.CAPABLE[name] for name in CAPABILITIES[1:]]
    marks: dict[int, np.uint8] = {}
    weights: dict[int, I64] = {}

    def mark(name: int, what: np.uint8) -> None:
        marks[name] = marks.get(name, np.uint8(0)) | what

    for what, text in ((FRAME, lexicon.FRAME + lexicon.STRONG), (STRONG, lexicon.STRONG)):
        for key in _keys(" ".join(text.split())):
            mark(key, what | KNOWN)
    for kind, text in enumerate(kinds):
        for weight, phrase in lexicon.phrases(text):
            name, *others = _keys(phrase.replace("#", "0"))
            mark(name, KNOWN)
            for key in others:
                mark(name, MORE)
                mark(key, FOLLOWS)
                both = joined(np.array([name], np.uint64), np.array([key], np.uint64))
                name = int(both[0])
            mark(name, KNOWN | WEIGHS)
            weights.setdefault(name, np.zeros(len(kinds), np.int64))[kind] = weight
    names = np.array([0, *marks], np.uint64)
    seed = _seed(names[1:])
    slots = np.zeros(1 << SLOT_BITS, np.uint16)
    slots[(names[1:] * seed) >> np.uint64(64 - SLOT_BITS)] = np.arange(1, len(names))
    none = np.zeros(len(kinds), np.int64)
    weighed = np.stack([weights.get(int(name), none) for name in names])
    return Table(seed, slots, names, np.array([0, *marks.values()], np.uint8), weighed)


def _keys(text: str) -> list[int]:
    texts, _, _ = folded(pa.array([text]))
    offsets, data = buffers(texts)
    return split(data, offsets).plain().tolist()


def _seed(keys: U64) -> np.uint64:
    """A multiplier that gives every key a slot of its own."""
    for seed in mix(np.arange(1, 1 << 16, dtype=np.uint64)) | np.uint64(1):
        if len(np.unique((keys * seed) >> np.uint64(64 - SLOT_BITS))) == len(keys):
            return seed
    raise ValueError("the lexicon has outgrown its table")
