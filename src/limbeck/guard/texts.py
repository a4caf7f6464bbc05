"""Texts as a sketch reads them: valid UTF-8, cut, and all but ASCII folded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from limbeck.guard.arrow import Array, pa, pc
from limbeck.guard.words import I64, LONGEST, U8, Flags


def folded(prompts: Array) -> tuple[Array, Flags, NDArray[np.int32]]:
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


def buffers(array: Array) -> tuple[I64, U8]:
    """The bounds (R + 1,) of a large string array's texts, and the bytes that they bound."""
    _, offsets, data = array.buffers()
    if offsets is None or not len(array):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return bounds, np.frombuffer(data or b"", np.uint8)
