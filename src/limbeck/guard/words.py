"""Words of many texts at once, and their hashes, by numpy over an Arrow buffer.

A word is a run of letters and digits; in scripts without spaces, a letter; of `+*/=<>^%`, a sign.
Upper case is folded for ASCII here, and for all else in `limbeck.guard.sketch` beforehand. Hashes
are our own, of 64 bits, and the same on every machine: Arrow, DuckDB and Spark each have others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
Flags = NDArray[np.bool_]

LONGEST = 16_384
"""Bytes of a prompt that are read; the rest of a longer one is left out."""
WORD_BYTES = 40
PAD = 64
SIGNS = b"+*/=<>^%"
ODD = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64
)
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
        capital: Begins with an ASCII capital, (W,).
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
    capital: Flags
    breaks: Flags
    slots: Flags
    rows: I64
    first: I64
    counts: I64
    braces: I64

    def spread(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """A value for each text with words, (N,), said again for each of its words, (W,)."""
        return np.repeat(values, self.counts)


def split(data: U8, bounds: I64) -> Words:
    """The words of texts that lie one after another: text r is `data[bounds[r]:bounds[r + 1]]`."""
    size = len(data)
    raw = np.zeros(size + PAD, np.uint8)
    raw[:size] = data
    upper = (raw - np.uint8(65)) < 26
    text = raw | (upper.view(np.uint8) << np.uint8(5))
    digit = (raw - np.uint8(48)) < 10
    word = ((text - np.uint8(97)) < 26) | digit | (raw >= 128)
    sign = _any(raw, SIGNS)
    alone = (raw - np.uint8(0xE3)) <= 6  # the first byte of U+3000 to U+9FFF: kana and han

    begins = word.copy()
    begins[1:] &= ~word[:-1]
    begins |= sign | alone
    begins[3:] |= alone[:-3] & word[3:]
    inner = bounds[:-1][bounds[:-1] < size]
    begins[inner] |= word[inner]
    token = word | sign
    ends = token.copy()
    ends[:-1] &= ~word[1:] | begins[1:]
    start = np.flatnonzero(begins)
    end = np.flatnonzero(ends) + 1

    at = np.searchsorted(start, bounds)
    counts = np.diff(at)
    rows = np.flatnonzero(counts)
    breaks, slots = _breaks(raw, word, start, bounds)
    return Words(
        text=text,
        start=start,
        end=end,
        hashes=_hashes(text, start, end - start),
        number=digit[start],
        capital=upper[start],
        breaks=breaks,
        slots=slots,
        rows=rows,
        first=at[rows],
        counts=counts[rows],
        braces=_count(_any(raw, b"{};="), bounds),
    )


def _any(raw: U8, wanted: bytes) -> Flags:
    found = raw == wanted[0]
    for byte in wanted[1:]:
        found |= raw == byte
    return found


def _count(flags: Flags, bounds: I64) -> I64:
    return np.diff(np.searchsorted(np.flatnonzero(flags), bounds))


def _breaks(raw: U8, word: Flags, start: I64, bounds: I64) -> tuple[Flags, Flags]:
    """Which words begin a sentence or more, and which of them what may be a slot."""
    open_after = np.ones(len(raw), np.bool_)  # no ASCII letter, digit or slash follows
    open_after[:-1] = (~word[1:] | (raw[1:] >= 128)) & (raw[1:] != ord("/"))
    hard = _any(raw, b'\n"`') | ((raw == ord(":")) & open_after)
    soft = ((raw == ord(".")) & open_after) | _any(raw, b"!?;")
    soft[:-2] |= (raw[:-2] == 0xE3) & (raw[1:-1] == 0x80) & (raw[2:] == 0x82)  # the han full stop
    slots = np.zeros(len(start) + 1, np.bool_)
    slots[np.searchsorted(start, np.flatnonzero(hard))] = True
    breaks = slots.copy()
    breaks[np.searchsorted(start, np.flatnonzero(soft))] = True
    breaks[np.searchsorted(start, bounds)] = True
    return breaks[:-1], slots[:-1]


def _hashes(text: U8, start: I64, length: I64) -> U64:
    """Of each word's first `WORD_BYTES` bytes and its length."""
    whole = text[: len(text) // 8 * 8].view("<u8")
    hashes = mix(_eight(whole, start) & MASKS[np.minimum(length, 8)])
    longer = np.flatnonzero(length > 8)
    for done in range(8, WORD_BYTES, 8):
        if not len(longer):
            return hashes
        left = length[longer] - done
        part = _eight(whole, start[longer] + done) & MASKS[np.minimum(left, 8)]
        hashes[longer] = mix((hashes[longer] ^ part) * ODD[0])
        longer = longer[left > 8]
    hashes[longer] ^= length[longer].astype(np.uint64) * ODD[1]
    return hashes


def _eight(whole: U64, at: I64) -> U64:
    """The eight bytes from each place on, little-endian, out of aligned words."""
    word, shift = at >> 3, ((at & 7) << 3).astype(np.uint64)
    low = whole[word] >> shift
    high = (whole[word + 1] << np.uint64(1)) << (np.uint64(63) - shift)
    return low | high
