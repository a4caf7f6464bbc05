"""Rows that hold what the student will be tested on: held-out prompts, and named benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limbeck.collect.duplicates import normalise, words
from limbeck.collect.hub import PREFIX
from limbeck.collect.rows import read_rows
from limbeck.errors import InputError
from limbeck.records import Prompt

Text: TypeAlias = tuple[str, int, str]
"""A file's name, the row, and what it says."""
COMMON = (10, 0.05)  # texts of a set, at most and as a share, that may share words by chance
SHORT = 5  # words from which a whole answer that is a whole text of a test is no accident
BLOCK = 1 << 18  # hashes gathered before they are packed
_HASH = np.dtype(np.uint64)
_PAIR = np.dtype([("hash", np.uint64), ("row", np.uint32)])
_BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Overlap:
    """That a row overlaps with the set `name`, and how, in words."""

    name: str
    why: str


class EvalSet:
    """The texts of one set of tests, as hashes: 12 bytes a phrase and about 100 a text.

    A phrase is `length` words in a row, words as `duplicates.words` finds them, without case, signs
    and punctuation. What several texts of the set have in common is its template and no sign of
    any of them: words in half a phrase that more than `COMMON` of the texts share do not count,
    and a phrase is looked for if more than half of its words do. A text that stands in several
    rows is read once; texts shorter than a phrase are compared whole. Hashes are of 64 bits: of 10
    million phrases, one in a million million others looks like one of them by accident.

    Args:
        name: What the set is called in counts.
        texts: Gives (file, row, text) anew each time; they are read twice and not kept.
        length: Words of a phrase.
    """

    def __init__(self, name: str, texts: Callable[[], Iterator[Text]], length: int) -> None:
        self.name, self.length = name, length
        self._wholes: dict[int, int] = {}  # of whole texts, shorter ones too: the row
        self._file = name
        half = (length + 1) // 2
        halves = _gathered(
            (np.unique(_phrases(hashes, half)) for _, hashes in self._distinct(texts())), _HASH
        )
        most = max(1, min(COMMON[0], int(COMMON[1] * len(self._wholes))))
        common = _more_than(most, halves)
        del halves
        self._wholes.clear()
        pairs = _gathered(
            (_own(hashes, row, length, half, common) for row, hashes in self._distinct(texts())),
            _PAIR,
        )
        pairs.sort(order="hash")
        first = np.ones(len(pairs), bool)
        first[1:] = pairs["hash"][1:] != pairs["hash"][:-1]
        self._pairs = pairs[first]

    def _distinct(self, texts: Iterator[Text]) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Row and word hashes of each text that was not there before."""
        for self._file, row, text in texts:
            read = Words.of(text)
            if read.number and read.whole not in self._wholes:
                self._wholes[read.whole] = row
                yield row, read.hashes

    def find(self, read: Words, shortest: int = 1) -> str:
        """How a text overlaps with the set, in words; "" if it does not.

        A whole text of fewer words than `shortest` is no evidence.
        """
        row = self._wholes.get(read.whole) if read.number >= shortest else None
        if row is not None:
            return f"is {self._file}:{row}"
        hits = _places(_phrases(read.hashes, self.length), self._pairs["hash"])
        if not len(hits):
            return ""
        return f"shares {self.length} words with {self._file}:{self._pairs['row'][hits[0, 1]]}"

    @property
    def texts(self) -> int:
        """How many different texts there are."""
        return len(self._wholes)

    @property
    def phrases(self) -> int:
        """How many phrases are looked for."""
        return len(self._pairs)


def overlap(prompt: Prompt, answer: str, sets: Sequence[EvalSet]) -> Overlap | None:
    """The first of the sets that a prompt's turns or its answer overlap with; system texts do not.

    A prompt of one turn that is a text of the set is one however short it is, other turns and
    answers from five words on.
    """
    turns = [m.content for m in prompt.messages if m.role != "system"]
    parts = [("prompt", Words.of(turn), SHORT if len(turns) > 1 else 1) for turn in turns]
    parts.append(("answer", Words.of(answer), SHORT))
    for tests in sets:
        for part, read, shortest in parts:
            if how := tests.find(read, shortest):
                return Overlap(tests.name, f"overlap: the {part} {how}")
    return None


def benchmark(source: str, length: int) -> EvalSet:
    """The texts of a file of tests: every field that holds text, or lists or tables of it.

    Raises InputError for a file without text, and as `rows.read_rows` does.
    """
    if not source.startswith(PREFIX) and not Path(source).is_file():
        raise InputError(f"checks.benchmarks: there is no file {source}")
    found = EvalSet(Path(source).name, lambda: _texts_of_file(source), length)
    if not found.texts:
        raise InputError(f"checks.benchmarks: {source} holds no text to look for")
    return found


def held_out(prompts: Callable[[], Iterable[Prompt]], length: int) -> EvalSet:
    """What is asked in the held-out ones of `prompts`, and their right answers."""
    return EvalSet("held-out", lambda: _texts_of_prompts(prompts()), length)


def _texts_of_file(source: str) -> Iterator[Text]:
    for place, row in read_rows(source, ("every column",), ()):
        file, _, number = place.rpartition(":")
        for text in _texts(row):
            yield Path(file).name, int(number), text


def _texts_of_prompts(prompts: Iterable[Prompt]) -> Iterator[Text]:
    for prompt in prompts:
        if prompt.split == "held_out":
            file, _, number = prompt.source.rpartition(":")
            texts = [m.content for m in prompt.messages if m.role != "system"]
            for text in (*texts, prompt.reference):
                yield f"held-out {Path(file).name}", int(number), text


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for one in value.values():
                yield from _texts(one)
        case list():
            for one in value:
                yield from _texts(one)
        case _:
            pass


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """A text as it is compared: a hash of it all, and of each word that is no sign.

    Python's own hashes, which hold for this process alone.
    """

    whole: int
    number: int
    hashes: NDArray[np.uint64]

    @staticmethod
    def of(text: str) -> Words:
        """Read a text."""
        found = words(normalise(text))
        spoken = [word for word in found if word[0].isalnum()]
        hashes = np.fromiter(map(hash, spoken), np.int64, len(spoken)).view(np.uint64)
        return Words(hash(tuple(found)), len(found), hashes)


def _phrases(hashes: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """The hashes of every `length` words in a row: a polynomial in the words', modulo 2**64."""
    last = len(hashes) - length + 1
    if last <= 0:
        return hashes[:0]
    found = np.zeros(last, np.uint64)
    for i in range(length):
        found = found * _BASE + hashes[i : i + last]
    return found


def _places(sought: NDArray[np.uint64], among: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where those of `sought` that are there stand, in it and in the sorted `among`: (found, 2)."""
    if not len(sought) or not len(among):
        return np.empty((0, 2), np.int64)
    at = np.minimum(np.searchsorted(among, sought), len(among) - 1)
    found = np.flatnonzero(among[at] == sought)
    return np.stack([found, at[found]], -1)


def _own(
    hashes: NDArray[np.uint64], row: int, length: int, half: int, common: NDArray[np.uint64]
) -> NDArray[np.void]:
    """A text's phrases, with its row, but those that mostly are the set's template."""
    phrases = _phrases(hashes, length)
    shared = np.zeros(len(hashes), bool)
    for start in _places(_phrases(hashes, half), common)[:, 0]:
        shared[start : start + half] = True
    before = np.concatenate([[0], np.cumsum(shared)])
    own = phrases[before[length:] - before[:-length] < half] if len(phrases) else phrases
    pairs = np.empty(len(own), _PAIR)
    pairs["hash"], pairs["row"] = own, row
    return pairs


def _gathered(arrays: Iterable[NDArray[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    """All of the arrays in one, packed a block at a time."""
    packed: list[NDArray[Any]] = []
    waiting: list[NDArray[Any]] = []
    size = 0
    for array in arrays:
        waiting.append(array)
        size += len(array)
        if size >= BLOCK:
            packed, waiting, size = [*packed, np.concatenate(waiting)], [], 0
    return np.concatenate([*packed, *waiting, np.empty(0, dtype)])


def _more_than(most: int, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Those that are there more than `most` times, sorted."""
    hashes.sort()
    return np.unique(hashes[most:][hashes[most:] == hashes[:-most]])
