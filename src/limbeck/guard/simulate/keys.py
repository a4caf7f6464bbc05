"""Keys: 64-bit numbers that decide what is drawn, and their spelling.

Whatever must come out the same wherever it is asked for (an account's template, a campaign's task)
is a hash of a key, not a draw from a stream. Streams are seeded by name, so that what one generator
draws does not move what another does.
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limbeck.guard.arrow import Array, pa, pc

Keys: TypeAlias = NDArray[np.uint64]
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_HEX = np.array([b"%04x" % i for i in range(1 << 16)], dtype="S4").view(np.uint32)


def key_of(*parts: Any) -> int:
    """The 64-bit key that `parts` determine, the same on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def stream(*parts: Any) -> np.random.Generator:
    """The random stream of that name."""
    return np.random.Generator(np.random.SFC64(key_of(*parts)))


def mix(keys: Keys, salt: int | Keys | Ints) -> Keys:
    """Hash each key with a salt (Stafford's thirteenth mixer, as in SplitMix64)."""
    salts = np.atleast_1d(salt).astype(np.uint64, copy=False)
    x = keys ^ (salts * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def below(keys: Keys, count: Ints | int) -> Ints:
    """A number in [0, count) from each key; `count` is below 2**31."""
    return ((keys >> np.uint64(32)) * np.asarray(count, dtype=np.uint64) >> np.uint64(32)).astype(
        np.int64
    )


def fraction(keys: Keys) -> Floats:
    """A number in [0, 1) from each key."""
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


def joined(*parts: Array) -> Array:
    """The texts of each row, one after the other; null where one of them is."""
    return pc.call_function("binary_join_element_wise", [*parts, pa.scalar("")])


def spelt(keys: Keys, prefix: str) -> Array:
    """`prefix` and 16 hex digits for each key; null for the key 0."""
    lead = np.frombuffer(prefix.encode(), dtype=np.uint8)
    letters = np.empty((len(keys), len(lead) + 16), dtype=np.uint8)
    letters[:, : len(lead)] = lead
    digits = np.empty((len(keys), 4), dtype=np.uint32)
    for place in range(4):
        part = (keys >> np.uint64(48 - 16 * place)) & np.uint64(0xFFFF)
        digits[:, place] = _HEX[part.astype(np.int64)]
    letters[:, len(lead) :] = digits.view(np.uint8)
    offsets = np.arange(len(keys) + 1, dtype=np.int32) * letters.shape[1]
    known = keys != 0
    nulls = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    buffers = [nulls, pa.py_buffer(offsets), pa.py_buffer(letters)]
    return pa.Array.from_buffers(pa.string(), len(keys), buffers)
