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
from limbeck.guard.words import I64, LONGEST, ODD, POWERS, U64, Flags, Words, mix, split

BANDS, PER_BAND = 8, 2
HEAD = 4
"""Words that a template has before its slot may begin."""
SKELETON_WORDS = 24
CHUNK_BYTES = 1 << 17
NONE = np.uint64(0xFFFFFFFFFFFFFFFF)
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
    texts, valid, chars = _texts(prompts)
    rows = len(valid)
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
    arrays = [
        pa.array(
            columns[field.name], field.type, mask=~(wordy if field.name in of_words else valid)
        )
        for field in SKETCH
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SKETCH)


def masked(prompts: Array) -> list[str]:
    """Each prompt as its skeleton sees it: the words kept, `…` where others stood."""
    texts, _, _ = _texts(prompts)
    offsets, data = buffers(texts)
    words = split(data[offsets[0] : offsets[-1]], offsets - offsets[0])
    kept = _kept(words, _lookup(_plain(words)))
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
        exact[words.rows] = np.add.reduceat(words.hashes * POWERS[place], words.first)
        plain = _plain(words)
        entries = _lookup(plain)
        columns["skeleton"][rows] = _skeletons(words, plain, entries)
        for band, values in enumerate(_bands(plain, words)):
            columns[f"band_{band}"][rows] = values.view(np.int64)
        columns["topic"][rows] = _topics(words, entries)
        _scores(words, plain, entries, columns, at)
    columns["exact"][at] = mix(exact).view(np.int64)


def _plain(words: Words) -> U64:
    """The words' hashes with all numbers made one."""
    return np.where(words.number, NUMBER, words.hashes)


def _bands(plain: U64, words: Words) -> list[U64]:
    last = words.first + words.counts - 1
    second = np.append(plain[1:], np.uint64(0))
    second[last] = 0
    third = np.append(second[1:], np.uint64(0))
    third[last] = 0
    shingles = plain * ODD[1]
    shingles += second * ODD[2]
    shingles += third * ODD[3]
    narrow = (mix(shingles) >> np.uint64(32)).astype(np.uint32)
    bands: list[U64] = []
    for band in range(BANDS):
        low, high = (
            np.minimum.reduceat(narrow * _permutations()[band * PER_BAND + turn], words.first)
            for turn in range(PER_BAND)
        )
        bands.append(mix(high.astype(np.uint64) << np.uint64(32) | low))
    return bands


@lru_cache(maxsize=1)
def _permutations() -> NDArray[np.uint32]:
    """An odd multiplier for each hash."""
    drawn = mix(np.arange(1, BANDS * PER_BAND + 1, dtype=np.uint64) * ODD[0])
    return (drawn >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


def _skeletons(words: Words, plain: U64, entries: I64) -> I64:
    kept = _kept(words, entries)
    parts = words.parts(kept)
    place = np.arange(len(kept)) - np.repeat(parts[:-1], np.diff(parts))
    sums = np.zeros(len(kept) + 1, np.uint64)
    np.cumsum(plain[kept] * POWERS[place], out=sums[1:])
    return mix(sums[parts[1:]] - sums[parts[:-1]] + ODD[2]).view(np.int64)


def _kept(words: Words, entries: I64) -> I64:
    """Places of the words that a skeleton keeps, ascending.

    Those of the frame in sentences that instruct, up to the first slot after `HEAD` of them: what
    follows a colon, line end or quotation mark. Where these are fewer than three, the frame's words
    of all sentences; where those are, and so in languages unknown to `lexicon`, all but numbers.
    """
    table = _table()
    frame = table.frame[entries]
    sentences = np.append(np.flatnonzero(words.breaks), len(entries))
    strong = np.searchsorted(np.flatnonzero(table.strong[entries]), sentences)
    kept = frame & np.repeat(np.diff(strong) > 0, np.diff(sentences))
    kept = _to_slot(np.flatnonzero(kept), words)
    place = np.arange(len(entries)) - words.spread(words.first)
    for instead in (frame, ~words.number):
        few = np.diff(words.parts(kept)) < 3
        more = words.spread(few) & instead & (place < SKELETON_WORDS)
        more[kept] = True
        kept = np.flatnonzero(more)
    return kept


def _to_slot(kept: I64, words: Words) -> I64:
    """Those at `kept` that stand before their text's slot, and are among its first."""
    parts = words.parts(kept)
    slots = np.flatnonzero(words.slots)
    text = np.repeat(np.arange(len(words.rows)), np.diff(words.parts(slots)))
    late = np.searchsorted(kept, slots) - parts[text] >= HEAD
    ends = np.full(len(words.rows), len(words.start))
    ends[text[late][::-1]] = slots[late][::-1]  # the first one is written last, and stays
    lengths = np.diff(parts)
    rank = np.arange(len(kept)) - np.repeat(parts[:-1], lengths)
    return kept[(kept < np.repeat(ends, lengths)) & (rank < SKELETON_WORDS)]


def _topics(words: Words, entries: I64) -> NDArray[np.int32]:
    """Of the words outside the lexicon, the one with the least hash; of seven letters or more."""
    length = words.end - words.start
    content = (entries == 0) & ~words.number & (length >= 3)
    keys = words.hashes >> np.uint64(1)
    keys |= (length < 7).astype(np.uint64) << np.uint64(63)
    least = np.minimum.reduceat(np.where(content, keys, NONE), words.first)
    return ((least >> np.uint64(16)) & np.uint64(0x7FFFFFFF)).astype(np.int32)


def _scores(words: Words, plain: U64, entries: I64, columns: dict[str, Any], at: slice) -> None:
    table = _table()
    places, found = _phrases(words, plain, entries)
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
    numbers = np.diff(words.parts(np.flatnonzero(words.number)))
    votes[words.rows, CAPABILITIES.index("maths")] += np.minimum(numbers // 2, 3)
    columns["capability"][at] = votes.argmax(1)


def _phrases(words: Words, plain: U64, entries: I64) -> tuple[I64, I64]:
    """Where phrases with a weight end, ascending, and their entries."""
    table = _table()
    last = np.zeros(len(entries), np.bool_)
    last[words.first + words.counts - 1] = True
    places: list[I64] = []
    found: list[I64] = []
    place, keys, entry = np.arange(len(entries)), plain, entries
    while len(place):
        weighs = np.flatnonzero(table.weighs[entry])
        places.append(place[weighs])
        found.append(entry[weighs])
        more = np.flatnonzero(table.more[entry])
        more = more[~last[place[more]]]
        place = place[more] + 1
        keys = _joined(keys[more], plain[place])
        entry = _lookup(keys)
    ends = np.concatenate(places)
    order = np.argsort(ends, kind="stable")
    return ends[order], np.concatenate(found)[order]


def _joined(keys: U64, following: U64) -> U64:
    return mix(keys * ODD[1] + following)


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """The lexicon, found by hash; entry 0 is every other word."""

    seed: np.uint64
    slots: NDArray[np.uint16]
    keys: U64
    frame: Flags
    strong: Flags
    more: Flags
    weighs: Flags
    weights: I64


SLOT_BITS = 18


def _lookup(keys: U64) -> I64:
    """The lexicon's entry for each key, 0 for none."""
    table = _table()
    entries = table.slots[(keys * table.seed) >> np.uint64(64 - SLOT_BITS)].astype(np.int64)
    entries *= table.keys[entries] == keys
    return entries


@lru_cache(maxsize=1)
def _table() -> _Table:
    kinds = [lexicon.REASONING, lexicon.RUBRIC, lexicon.TRACE]
    kinds += [lexicon.CAPABLE[name] for name in CAPABILITIES[1:]]
    marks: dict[int, set[str]] = {}
    weights: dict[int, I64] = {}
    for mark, text in (("frame", lexicon.FRAME + lexicon.STRONG), ("strong", lexicon.STRONG)):
        for key in _keys(" ".join(text.split())):
            marks.setdefault(key, set()).add(mark)
    for kind, text in enumerate(kinds):
        for weight, phrase in lexicon.phrases(text):
            keys = _keys(phrase.replace("#", "0"))
            name = keys[0]
            for key in keys[1:]:
                marks.setdefault(name, set()).add("more")
                joined = _joined(np.array([name], np.uint64), np.array([key], np.uint64))
                name = int(joined[0])
            marks.setdefault(name, set())
            weights.setdefault(name, np.zeros(len(kinds), np.int64))[kind] = weight
    names = np.array([0, *marks], np.uint64)
    seed = _seed(names[1:])
    slots = np.zeros(1 << SLOT_BITS, np.uint16)
    slots[(names[1:] * seed) >> np.uint64(64 - SLOT_BITS)] = np.arange(1, len(names))

    def flags(mark: str) -> Flags:
        return np.array([False, *(mark in of for of in marks.values())])

    weighed = np.stack([weights.get(int(name), np.zeros(len(kinds), np.int64)) for name in names])
    return _Table(
        seed,
        slots,
        names,
        flags("frame"),
        flags("strong"),
        flags("more"),
        np.any(weighed != 0, axis=1),
        weighed,
    )


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
