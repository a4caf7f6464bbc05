"""Targets in few bytes a token, and back again in one go for a whole batch.

T tokens of a vocabulary of V, each with its K likeliest tokens and S drawn from the tail, become
these tensors. An entry is the answer's own token, then the K, then the S.

| tensor       | dtype   | shape        | what                                                     |
|--------------|---------|--------------|----------------------------------------------------------|
| ids          | uint16  | (T, 1+K+S)   | the entries' token ids, modulo 2^16                      |
| high         | uint8   | (T, H)       | the ids' higher bits, entry after entry, lowest bits     |
|              |         |              | first: none up to V = 2^16, 2 up to 2^18, 4 up to 2^20   |
| logprobs     | uint8   | (T, K)       | code c of log-probability −24·(c/255)², in nats          |
| log_tail     | float16 | (T,)         | the log of the mass of all tokens but the K              |
| tail_entropy | float16 | (T,)         | −Σ p·log p over these, in nats                           |

Reading scales the K probabilities by one factor a token, so that with the tail they sum to 1. What
lies below −24 nats (4e-11) counts as that. The square puts the codes where the mass is: of the
likeliest 8 tokens of real distributions, KL(exact‖read) is 5e-5 nats (docs/decisions/0008).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import InputError
from limbeck.records import PackedTargets, Targets

Arrays: TypeAlias = dict[str, NDArray[Any]]

ARRAYS = ("token_ids", "top_ids", "logprobs", "tail", "tail_ids", "tail_entropy")
DEEPEST, CODES = 24.0, 255
# A byte times `factor` has a copy of itself at each lane of 16 bits, moved so that the mask leaves
# one entry's bits in each: (wide type, factor, mask) by bits an entry.
SPREAD = {
    2: (np.uint64, 0x0000_0400_1000_4001, 0x0003_0003_0003_0003),
    4: (np.uint32, 0x0000_1001, 0x000F_000F),
}


def pack(targets: Sequence[Targets], vocabulary: int) -> Arrays:
    """The tensors of the table, for the answers' tokens end to end."""
    whole = together(targets)
    ids = np.concatenate([whole["token_ids"][:, None], whole["top_ids"], whole["tail_ids"]], axis=1)
    bits = _high_bits(vocabulary)
    share = np.clip(whole["logprobs"].astype(np.float64) / -DEEPEST, 0, 1)
    with np.errstate(divide="ignore"):
        log_tail = np.log(whole["tail"].astype(np.float64))
    tensors = {
        "ids": (ids & 0xFFFF).astype(np.uint16),
        "logprobs": np.rint(np.sqrt(share) * CODES).astype(np.uint8),
        "log_tail": log_tail.astype(np.float16),
        "tail_entropy": whole["tail_entropy"].astype(np.float16),
    }
    if bits:
        tensors["high"] = _packed(ids >> 16, bits)
    return tensors


def unpack(tensors: Mapping[str, NDArray[Any]], vocabulary: int) -> Arrays:
    """The arrays of `Targets`, by name, from tensors of the table. Ids are views of one array."""
    codes = tensors["logprobs"]
    k = codes.shape[1]
    ids = token_ids(tensors, vocabulary)
    log_p = codes.astype(np.float32)
    log_p *= log_p
    log_p *= -DEEPEST / CODES**2
    log_tail = tensors["log_tail"].astype(np.float32)
    scale = -np.expm1(log_tail) / (np.exp(log_p) @ np.ones(k, np.float32))
    log_p += np.log(scale).repeat(k).reshape(log_p.shape)  # faster than broadcasting over few
    return {
        "token_ids": ids[:, 0],
        "top_ids": ids[:, 1 : 1 + k],
        "logprobs": log_p,
        "tail": np.exp(log_tail),
        "tail_ids": ids[:, 1 + k :],
        "tail_entropy": tensors["tail_entropy"].astype(np.float32),
    }


def together(targets: Sequence[Targets | PackedTargets]) -> Arrays:
    """The arrays of several answers' targets end to end; packed ones are unpacked in one go."""
    packed = [t for t in targets if isinstance(t, PackedTargets)]
    if packed:
        tensors = {
            name: np.concatenate([t.tensors[name][t.rows] for t in packed])
            for name in packed[0].tensors
        }
        return unpack(tensors, packed[0].vocabulary)
    return {name: np.concatenate([getattr(t, name) for t in targets]) for name in ARRAYS}


def unpacked(targets: Targets | PackedTargets) -> Targets:
    """One answer's targets as plain arrays."""
    if isinstance(targets, Targets):
        return targets
    arrays = together([targets])
    return Targets(
        targets.answer_id,
        **arrays,
        temperature=targets.temperature,
        tokenizer_hash=targets.tokenizer_hash,
    )


def token_ids(tensors: Mapping[str, NDArray[Any]], vocabulary: int) -> NDArray[np.int64]:
    """All entries' ids, int64 (T, 1+K+S)."""
    ids = tensors["ids"].astype(np.int64)
    if bits := _high_bits(vocabulary):
        wide, factor, mask = SPREAD[bits]
        lanes = tensors["high"].astype(wide)
        lanes *= wide(factor)
        lanes &= wide(mask)
        high = lanes.view(np.uint16)[:, : ids.shape[1]]
        ids.view(np.uint16).reshape(*ids.shape, 4)[..., 1] = high  # bits 16 to 31, little-endian
    return ids


def _high_bits(vocabulary: int) -> int:
    """How many bits of an id lie above the lowest 16."""
    for bits in (0, 2, 4):
        if vocabulary <= 1 << 16 + bits:
            return bits
    raise InputError(f"targets can be stored for up to 2^20 tokens; the teacher has {vocabulary}")


def _packed(values: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """Values below 2^bits (T, M), as many to a byte as fit."""
    each = 8 // bits
    values = np.pad(values, ((0, 0), (0, -values.shape[1] % each)))
    lanes = values.reshape(len(values), -1, each) << bits * np.arange(each)
    return np.bitwise_or.reduce(lanes, axis=-1).astype(np.uint8)
