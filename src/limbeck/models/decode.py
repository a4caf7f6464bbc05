"""Batched generation with a key-value cache; finished rows leave the batch.

Shapes: B rows in the batch, L prompt tokens after padding on the left, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.models.head import Head
from limbeck.models.protocol import OnTokens
from limbeck.records import Sampling

NUCLEUS = 512
SPARE = 0.125  # of the rows may be finished before all others are copied together
WORTH = 4  # tokens in common


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt's tokens, and the key that its random numbers are drawn from."""

    token_ids: list[int]
    key: str


@torch.inference_mode()
def decode(
    network: Any,
    head: Head,
    requests: Sequence[Request],
    sampling: Sampling,
    stops: Sequence[int],
    on_tokens: OnTokens,
) -> list[list[int]]:
    """Write one answer a request: token ids up to and including a stop token, or `max_tokens`.

    The caller sees to it that prompt and answer fit the context.
    """
    here = head.project.weight.device
    cache, shared = prefilled(network, [r.token_ids[:-1] for r in requests])
    ids, seen = _padded_left([r.token_ids[shared:] for r in requests])  # (B, L) each
    ids, seen = ids.to(here), torch.cat([seen.new_ones(len(seen), shared), seen], 1).to(here)
    position = (seen.cumsum(-1) - 1).clamp(min=0)[:, shared:]  # (B, L)
    ends = torch.tensor(stops, device=here)
    draws = _Draws(requests, sampling) if sampling.temperature > 0 else None
    written: list[list[int]] = [[] for _ in requests]
    rows = list(range(len(requests)))
    going = torch.ones(len(requests), dtype=torch.bool, device=here)
    for _ in range(sampling.max_tokens):
        out = head.body(
            input_ids=ids,
            attention_mask=seen,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        logits = head(out.last_hidden_state[:, -1])  # (B, V)
        token = draws(logits, rows) if draws else logits.argmax(-1)  # (B,)
        live = going.tolist()
        for row, value, alive in zip(rows, token.tolist(), live, strict=True):
            if alive:
                written[row].append(value)
        on_tokens(sum(live))
        going &= ~torch.isin(token, ends)
        left = int(going.sum())
        if not left:
            break
        if left <= (1 - SPARE) * len(rows):
            kept = going.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            token, seen, position, going = token[kept], seen[kept], position[kept], going[kept]
            rows = [rows[i] for i in kept.tolist()]
        ids = token[:, None]
        seen = torch.cat([seen, seen.new_ones(len(rows), 1)], 1)
        position = position[:, -1:] + 1
    return written


def prefilled(network: Any, rows: Sequence[list[int]]) -> tuple[Any, int]:
    """A cache of the tokens that all rows begin with, as a system prompt, and how many they are.

    They are read once and copied for each row. Padding may follow them, so it is not done where
    attention counts positions back, in a sliding window.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=network.config)
    pairs = enumerate(zip(min(rows), max(rows), strict=False))
    shared = next((at for at, (one, other) in pairs if one != other), min(map(len, rows)))
    if (
        len(rows) == 1
        or shared < WORTH
        or any(getattr(layer, "is_sliding", True) for layer in cache.layers)
    ):
        return cache, 0
    ids = torch.tensor([rows[0][:shared]], device=network.device)
    network.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(rows))
    return cache, shared


class _Draws:
    """Nucleus sampling in which a row's randomness is its own, whatever batch it stands in."""

    def __init__(self, requests: Sequence[Request], sampling: Sampling) -> None:
        self.temperature, self.top_p = sampling.temperature, sampling.top_p
        self._generators = [_generator(r.key) for r in requests]

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        chance = torch.softmax(logits.float() / self.temperature, -1)
        mass, order = chance.double().cumsum(-1), None
        if self.top_p < 1:
            mass, order = self._nucleus(chance)
        point = torch.stack(
            [torch.rand((), dtype=torch.float64, generator=self._generators[row]) for row in rows]
        ).to(mass.device)
        rank = torch.searchsorted(mass, (point * mass[:, -1])[:, None], right=True)
        rank = rank.clamp(max=mass.shape[-1] - 1)
        return (rank if order is None else order.gather(-1, rank))[:, 0]

    def _nucleus(self, chance: Tensor) -> tuple[Tensor, Tensor]:
        """Cumulated mass of the likeliest tokens up to `top_p`, and which tokens they are.

        The head of the distribution is enough for nearly every row; a full sort costs more than
        the forward pass on a processor.
        """
        vocabulary = chance.shape[-1]
        for width in (min(NUCLEUS // 8, vocabulary), min(NUCLEUS, vocabulary), vocabulary):
            top, order = chance.topk(width, dim=-1)
            top = top.double()
            mass = top.cumsum(-1)
            if width == vocabulary or bool((mass[:, -1] >= self.top_p).all()):
                return top.masked_fill(mass - top >= self.top_p, 0).cumsum(-1), order
        raise AssertionError("the whole vocabulary has all the mass")


def _generator(key: str) -> torch.Generator:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
    return torch.Generator().manual_seed(seed)


def _padded_left(rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    seen = torch.zeros(len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, width - len(tokens) :] = torch.tensor(tokens)
        seen[row, width - len(tokens) :] = 1
    return ids, seen
