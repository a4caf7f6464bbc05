"""A prompt → integers that stand for it: once, when it is read; nothing after sees its text.

Arrow in, Arrow out, numpy in between, no Python for each prompt; the same function serves DuckDB
and, through `mapInArrow`, Spark. `docs/decisions/0017-guard-logs-and-sketches.md` says what was
weighed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.guard import lexicon
from limbeck.guard.arrow import Array, Batch, pa, pc
from limbeck.guard.schema import CAPABILITIES, SKETCH
from limbeck.guard.words import I64, LONGEST, ODD, POWERS, U8, U64, Flags, Words, mix, split

BANDS, PER_BAND = 8, 2
HEAD = 4
"""Words that a template has before its slot may begin."""
SKELETON_WORDS = 24
CHUNK_BYTES = 1 << 17
NUMBER = np.uint64(0x9B97A1C3D5E7F911)
SCORES = ("reasoning", "rubric", "trace")


def sketch(prompts: Array) -> Batch:
    """The columns of `schema.SKETCH` for a column of prompts (string or binary, nulls welcome).

    `exact`: hash of all words and signs, without case, space and punctuation.
    `skeleton`: hash of the words that a template keeps when its slots are filled.
    `band_0` to `band_7`: MinHash over runs of three words, numbers masked, two hashes a band: two
    prompts with Jaccard similarity s share at least one with probability 1 − (1 − s²)⁸.
    `reasoning`, `rubric`, `trace`: 0 to 255, ten for each point of `lexicon`'s phrases.
    `capability`: place in `schema.CAPABILITIES`.
    `topic`: MinHash of the content words, long ones first: accounts of narrow focus share some.
    `chars`: characters of the whole prompt, though at most `words.LONGEST` bytes are read.
    """
    rows = len(prompts)
    if prompts.null_count == rows:
        empty = [pa.nulls(rows, field.type) for field in SKETCH]
        return pa.RecordBatch.from_arrays(empty, schema=SKETCH)
    texts, valid, chars = _texts(prompts)
    offsets, data = buffers(texts)
    columns: dict[str, Any] = {
        field.name: np.zeros(rows, field.type.to_pandas_dtype()) for field in SKETCH
    }
    columns["chars"][:] = chars
    wordy = np.zeros(rows, np.bool_)
    at = 0
    while at < rows:
        limit = offsets[at : at + 1] + CHUNK_BYTES
        end = int(np.searchsorted(offsets, limit, "right")[0]) - 1
        end = min(max(end, at + 1), rows)
        bounds = offsets[at : end + 1] - offsets[at]
        _chunk(split(data[offsets[at] : offsets[end]], bounds), columns, slice(at, end), wordy)
        at = end
    of_words = {"skeleton", "topic", *(f"band_{band}" for band in range(BANDS))}
    absent = {True: None if wordy.all() else ~wordy, False: None if valid.all() else ~valid}
    arrays = [
        pa.array(columns[field.name], field.type, mask=absent[field.name in of_words])
        for field in SKETCH
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SKETCH)


def masked(prompts: Array) -> list[str]:
    """Each prompt as its skeleton sees it: the words kept, `…` where others stood."""
    texts, _, _ = _texts(prompts)
    offsets, data = buffers(texts)
    words = split(data[offsets[0] : offsets[-1]], offsets - offsets[0])
    kept = _kept(words, _table().marks.take(_lookup(_plain(words))))
    told = [""] * len(texts)
    begins = set(words.first.tolist())
    before = -1
    for index, row in zip(kept.tolist(), words.spread(words.rows)[kept].tolist(), strict=True):
        gap = "" if index in begins or (told[row] and index == before + 1) else "… "
        text = bytes(words.text[words.start[index] : words.end[index]]).decode("utf-8", "replace")
        told[row] += f"{gap}{text} "
        before = index
    return [text.strip() + " …" if text else "" for text in told]


def _texts(
    prompts: Array,
) -> tuple[Array, Flags, NDArray[np.int32]]:
    """The texts to read (valid, cut, folded), which were not null, and their characters."""
    array = prompts.combine_chunks() if isinstance(prompts, pa.ChunkedArray) else prompts
    array = utf8(array)
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    array = array.fill_null("")
    length = pc.utf8_length(array)
    size = pc.binary_length(array)
    array = _cut(array)
    wide = pc.not_equal(length, size)
    if pc.any(wide).as_py():
        folded = pc.utf8_lower(pc.utf8_normalize(array.filter(wide), "NFKC"))
        folded = pc.replace_substring_regex(folded, r"\p{Cf}+", "")
        folded = pc.replace_substring_regex(folded, "[“”„«»「」『』]", '"')
        array = _cut(pc.replace_with_mask(array, wide, folded))
    return array, valid, length.to_numpy(zero_copy_only=False).astype(np.int32)


def utf8(array: Array) -> Array:
    """As valid large strings; bytes that are no UTF-8 become U+FFFD."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    try:
        array = array.cast(pa.large_string())
        array.validate(full=True)
    except pa.ArrowInvalid:
        raw = array.cast(pa.large_binary()).to_pylist()
        texts = [None if one is None else one.decode("utf-8", "replace") for one in raw]
        array = pa.array(texts, pa.large_string())
    return array


def _cut(array: Array) -> Array:
    long = pc.greater(pc.binary_length(array), LONGEST)
    if not pc.any(long).as_py():
        return array
    raw = array.filter(long).cast(pa.large_binary())
    short = [one.as_buffer()[:LONGEST].to_pybytes().decode("utf-8", "ignore") for one in raw]
    return pc.replace_with_mask(array, long, pa.array(short, pa.large_string()))


def buffers(array: Array) -> tuple[I64, NDArray[np.uint8]]:
    """The bounds (R + 1,) of a large string array's texts, and the bytes that they bound."""
    _, offsets, data = array.buffers()
    if offsets is None or not len(array):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return bounds, np.frombuffer(data or b"", np.uint8)


def _chunk(words: Words, columns: dict[str, Any], at: slice, wordy: Flags) -> None:
    """Fill the rows `at` of all columns."""
    count = at.stop - at.start
    exact = np.zeros(count, np.uint64)
    if len(words.rows):
        rows = words.rows + at.start
        wordy[rows] = True
        place = np.arange(len(words.hashes)) - words.spread(words.first)
        exact[words.rows] = np.add.reduceat(words.hashes * POWERS.take(place), words.first)
        plain = _plain(words)
        entries = _lookup(plain)
        marks = _table().marks.take(entries)
        columns["skeleton"][rows] = _skeletons(words, plain, marks)
        bands = _bands(plain, words)
        for band in range(BANDS):
            columns[f"band_{band}"][rows] = bands[band]
        columns["topic"][rows] = _topics(words, marks)
        _scores(words, plain, entries, marks, columns, at)
    columns["exact"][at] = mix(exact).view(np.int64)


def _plain(words: Words) -> U64:
    """The words' hashes with all numbers made one."""
    plain = words.hashes.copy()
    plain[np.flatnonzero(words.number)] = NUMBER
    return plain


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
    for turn, factor in enumerate(_permutations()):
        np.minimum.reduceat(narrow * factor, words.first, out=least[divmod(turn, PER_BAND)])
    wide = least.astype(np.uint64)
    return mix(wide[:, 1] << np.uint64(32) | wide[:, 0]).view(np.int64)


@lru_cache(maxsize=1)
def _permutations() -> NDArray[np.uint32]:
    """An odd multiplier for each hash."""
    drawn = mix(np.arange(1, BANDS * PER_BAND + 1, dtype=np.uint64) * ODD[0])
    return (drawn >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


def _skeletons(words: Words, plain: U64, marks: U8) -> I64:
    kept = _kept(words, marks)
    parts = words.parts(kept)
    place = np.arange(len(kept)) - np.repeat(parts[:-1], np.diff(parts))
    sums = np.zeros(len(kept) + 1, np.uint64)
    np.cumsum(plain.take(kept) * POWERS.take(place), out=sums[1:])
    return mix(sums[parts[1:]] - sums[parts[:-1]] + ODD[2]).view(np.int64)


def _kept(words: Words, marks: U8) -> I64:
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


def _scores(
    words: Words, plain: U64, entries: I64, marks: U8, columns: dict[str, Any], at: slice
) -> None:
    table = _table()
    places, found = _phrases(words, plain, entries, marks)
    parts = words.parts(places)
    points = np.zeros((at.stop - at.start, table.weights.shape[1]), np.int64)
    sums = np.zeros((len(places) + 1, points.shape[1]), np.int64)
    np.cumsum(table.weights[found], axis=0, out=sums[1:])
    points[words.rows] = sums[parts[1:]] - sums[parts[:-1]]
    for number, name in enumerate(SCORES):
        columns[name][at] = np.minimum(points[:, number] * 10, 255)
    votes = points[:, len(SCORES) - 1 :]
    votes[:, 0] = 0  # of "other", which wins where nothing else has a vote
    votes[:, CAPABILITIES.index("code")] += np.minimum(words.braces, 8)
    numbers = np.add.reduceat(words.number, words.first, dtype=np.int64)
    votes[words.rows, CAPABILITIES.index("maths")] += np.minimum(numbers // 2, 3)
    columns["capability"][at] = votes.argmax(1)


def _phrases(words: Words, plain: U64, entries: I64, marks: U8) -> tuple[I64, I64]:
    """Where phrases with a weight end, ascending, and their entries."""
    table = _table()
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
        keys = _joined(keys.take(more), plain.take(place))
        entry = _lookup(keys)
        marks = table.marks.take(entry)
    ends = np.concatenate(places)
    order = np.argsort(ends, kind="stable")
    return ends[order], np.concatenate(found)[order]


def _joined(keys: U64, following: U64) -> U64:
    return mix(keys * ODD[1] + following)


FRAME, STRONG, KNOWN, MORE, WEIGHS, FOLLOWS = (np.uint8(1 << bit) for bit in range(6))
"""What an entry of the lexicon is: a word that skeletons keep; one that instructs besides; a word
by itself or the first of a phrase; the beginning of a longer phrase; a phrase with a weight; a word
that goes on with one."""


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """The lexicon, found by hash; entry 0 is every other word."""

    seed: np.uint64
    slots: NDArray[np.uint16]
    keys: U64
    marks: U8
    weights: I64


SLOT_BITS = 18


def _lookup(keys: U64) -> I64:
    """The lexicon's entry for each key, 0 for none."""
    table = _table()
    slots = (keys * table.seed) >> np.uint64(64 - SLOT_BITS)
    entries = table.slots.take(slots.view(np.int64)).astype(np.int64)
    entries *= table.keys.take(entries) == keys
    return entries


@lru_cache(maxsize=1)
def _table() -> _Table:
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
                joined = _joined(np.array([name], np.uint64), np.array([key], np.uint64))
                name = int(joined[0])
            mark(name, KNOWN | WEIGHS)
            weights.setdefault(name, np.zeros(len(kinds), np.int64))[kind] = weight
    names = np.array([0, *marks], np.uint64)
    seed = _seed(names[1:])
    slots = np.zeros(1 << SLOT_BITS, np.uint16)
    slots[(names[1:] * seed) >> np.uint64(64 - SLOT_BITS)] = np.arange(1, len(names))
    none = np.zeros(len(kinds), np.int64)
    weighed = np.stack([weights.get(int(name), none) for name in names])
    return _Table(seed, slots, names, np.array([0, *marks.values()], np.uint8), weighed)


def _keys(text: str) -> list[int]:
    texts, _, _ = _texts(pa.array([text]))
    offsets, data = buffers(texts)
    return _plain(split(data, offsets)).tolist()


def _seed(keys: U64) -> np.uint64:
    """A multiplier that gives every key a slot of its own."""
    for seed in mix(np.arange(1, 1 << 16, dtype=np.uint64)) | np.uint64(1):
        if len(np.unique((keys * seed) >> np.uint64(64 - SLOT_BITS))) == len(keys):
            return seed
    raise ValueError("the lexicon has outgrown its table")
