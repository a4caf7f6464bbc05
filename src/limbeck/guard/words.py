"""Words of many texts at once, and their hashes, by numpy over an Arrow buffer.

A word is a run of letters and digits; in scripts without spaces, a letter; of `+*/=<>^%`, a sign.
Upper case is folded for ASCII here, and for all else in `limbeck.guard.sketch` beforehand. Hashes
are our own, of 64 bits, and the same on every machine: Arrow, DuckDB and Spark each have others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]
Scalar = TypeVar("Scalar", bound=np.generic)

LONGEST = 16_384
"""Bytes of a prompt that are read; the rest of a longer one is left out."""
WORD_BYTES = 40
PAD = 64
WORD, DIGIT, ALONE, SIGN, HARD, SOFT, BRACE = (1 << bit for bit in range(7))
"""What a byte is; ALONE begins one of U+3000 to U+9FFF, kana and han, which are words alone."""


def _kinds() -> bytes:
    kinds = [0] * 256
    for bytes_, kind in (
        (b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", WORD),
        (b"0123456789", WORD | DIGIT),
        (range(0x80, 0x100), WORD),
        (range(0xE3, 0xEA), ALONE),
        (b"+*/=<>^%", SIGN),
        (b'\n"`:', HARD),
        (b".!?;\xe3", SOFT),
        (b"{};=", BRACE),
    ):
        for byte in bytes_:
            kinds[byte] |= kind
    return bytes(kinds)


KINDS = _kinds()
KIND = np.frombuffer(KINDS, np.uint8)
LOWER = bytes(range(256)).lower()
ODD = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64
)
NUMBER = np.uint64(0x9B97A1C3D5E7F911)
"""What stands for the hash of any number, where numbers are masked."""
MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)


def mix(values: U64) -> U64:
    """Spread every bit over all 64 (the finaliser of MurmurHash3), in a new array."""
    mixed = values ^ (values >> np.uint64(33))
    mixed *= np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> np.uint64(33)
    mixed *= np.uint64(0xC4CEB9FE1A85EC53)
    mixed ^= mixed >> np.uint64(33)
    return mixed


def _powers(base: np.uint64, count: int) -> U64:
    steps = np.full(count, base, np.uint64)
    steps[0] = 1
    return np.multiply.accumulate(steps)


POWERS = _powers(ODD[0], LONGEST + 2)


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """The W words of R texts, in order, and where the texts part them.

    Attributes:
        text: The bytes (B,), ASCII in lower case, padded with zeros.
        start: First byte of each word, int64 (W,).
        end: One past its last byte, int64 (W,).
        hashes: Of each word's bytes, uint64 (W,).
        number: Begins with a digit, (W,).
        breaks: A sentence, line, quotation or what follows a colon begins here, (W,).
        slots: Of these, not a mere sentence: where a template's slot may begin, (W,).
        rows: Which texts have words at all, int64 (N,).
        first: First word of each such text, int64 (N,).
        counts: Words of each such text, int64 (N,).
        braces: Of each of the R texts, how many of `{};=` it has, int64 (R,).
    """

    text: U8
    start: I64
    end: I64
    hashes: U64
    number: Flags
    breaks: Flags
    slots: Flags
    rows: I64
    first: I64
    counts: I64
    braces: I64

    def plain(self) -> U64:
        """The hashes with all numbers made one, (W,)."""
        plain = self.hashes.copy()
        plain[np.flatnonzero(self.number)] = NUMBER
        return plain

    def spread(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """A value for each text with words, (N,), said again for each of its words, (W,)."""
        return np.repeat(values, self.counts)

    def parts(self, places: I64) -> I64:
        """Where each text's share of `places` (of words, ascending) ends, after a 0: (N + 1,)."""
        return np.searchsorted(places, np.append(self.first, len(self.start)))


def split(data: U8, bounds: I64) -> Words:
    """The words of texts that lie one after another: text r is `data[bounds[r]:bounds[r + 1]]`."""
    size = len(data)
    raw = data.tobytes() + bytes(PAD)
    text = np.frombuffer(raw.translate(LOWER), np.uint8)
    kinds = np.frombuffer(raw.translate(KINDS), np.uint8)
    word, sign, alone = _is(kinds, WORD), _is(kinds, SIGN), _is(kinds, ALONE)

    begins = word.copy()
    begins[1:] &= ~word[:-1]
    begins |= sign | alone
    begins[3:] |= alone[:-3] & word[3:]
    inner = bounds[:-1][bounds[:-1] < size]
    begins[inner] |= word[inner]
    token = word | sign
    ends = token.copy()
    ends[:-1] &= ~word[1:] | begins[1:]
    end = np.flatnonzero(ends) + 1

    # Beginnings and marks in one list: how many words begin before a mark is then a running sum.
    places = np.flatnonzero(begins | _is(kinds, HARD | SOFT | BRACE))
    about = kinds.take(places)
    begun = begins.take(places)
    before = np.cumsum(begun) - begun
    start = places.take(np.flatnonzero(begun))
    at = np.searchsorted(start, bounds)
    marks = np.flatnonzero(_is(about, HARD | SOFT))
    breaks, slots = _breaks(text, word, places.take(marks), before.take(marks), len(start))
    breaks[at] = True
    counts = np.diff(at)
    rows = np.flatnonzero(counts)
    return Words(
        text=text,
        start=start,
        end=end,
        hashes=hashes(text, start, end - start),
        number=_is(kinds.take(start), DIGIT),
        breaks=breaks[:-1],
        slots=slots[:-1],
        rows=rows,
        first=at[rows],
        counts=counts[rows],
        braces=np.diff(np.searchsorted(places.take(np.flatnonzero(_is(about, BRACE))), bounds)),
    )


def _is(kinds: U8, wanted: int) -> Flags:
    return (kinds & np.uint8(wanted)) != 0


def _breaks(text: U8, word: Flags, marks: I64, words: I64, count: int) -> tuple[Flags, Flags]:
    """Where sentences or more begin, and which of these may be slots: (W + 1,) each.

    Args:
        text: The bytes.
        word: Which of them belong to words.
        marks: Where punctuation is, ascending.
        words: How many words begin before each mark.
        count: How many there are, W.
    """
    mark, next_ = text.take(marks), text.take(marks + 1)
    joined = (word.take(marks + 1) & (next_ < 128)) | (next_ == ord("/"))
    real = ~(joined & ((mark == ord(":")) | (mark == ord("."))))  # neither 3.5 nor http://
    real &= (mark != 0xE3) | ((next_ == 0x80) & (text.take(marks + 2) == 0x82))  # han full stop
    hard = real & (KIND.take(mark) & np.uint8(HARD) != 0)
    breaks, slots = np.zeros(count + 1, np.bool_), np.zeros(count + 1, np.bool_)
    breaks[words.take(np.flatnonzero(real))] = True
    slots[words.take(np.flatnonzero(hard))] = True
    return breaks, slots


def hashes(text: U8, start: I64, length: I64, upto: int = WORD_BYTES) -> U64:
    """Of each run of bytes: of its first `upto` bytes, and its length if it is longer.

    `text` is padded by `PAD` bytes.
    """
    whole = text[: len(text) // 8 * 8].view("<u8")
    hashed = mix(_eight(whole, start) & MASKS.take(np.minimum(length, 8)))
    longer = np.flatnonzero(length > 8)
    for done in range(8, upto, 8):
        if not len(longer):
            return hashed
        left = length.take(longer) - done
        part = _eight(whole, start.take(longer) + done) & MASKS.take(np.minimum(left, 8))
        hashed[longer] = mix((hashed.take(longer) ^ part) * ODD[0])
        longer = longer.take(np.flatnonzero(left > 8))
    hashed[longer] ^= length[longer].astype(np.uint64) * ODD[1]
    return hashed


def _eight(whole: U64, at: I64) -> U64:
    """The eight bytes from each place on, little-endian, out of aligned words."""
    word, shift = at >> 3, ((at & 7) << 3).view(np.uint64)
    low = whole.take(word)
    low >>= shift
    word += 1
    high = whole.take(word)
    high <<= np.uint64(1)  # in two steps, since a shift by 64 has no meaning
    high <<= np.uint64(63) - shift
    low |= high
    return low


def hash_each(data: U8, bounds: I64) -> I64:
    """A hash of every byte of each text, int64 (R,); equal texts only have equal ones."""
    padded = np.zeros((len(data) + 7) // 8 * 8 + PAD, np.uint8)
    padded[: len(data)] = data
    length = np.diff(bounds)
    longest = int(length.max(initial=0))
    hashed = hashes(padded, bounds[:-1], length, upto=longest + 8)
    return mix(hashed + length.astype(np.uint64) * ODD[3]).view(np.int64)
