"""Examples to packed batches: several in a row, none seeing another.

Shapes: R rows, L tokens a row, N learnt tokens in all, K teacher tokens and S drawn ones each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.collect.packing import together
from limbeck.errors import InputError
from limbeck.records import Example


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass takes.

    `token_ids`, `positions` int64 (R, L); `visible` bool (R, 1, L, L), true where a token may look;
    `predicts` int64 (N,), flat indices of the states that predict the learnt tokens; `labels`
    int64 (N,), those tokens; `owners` int64 (N,), which example of the batch each learnt token
    belongs to; `top_ids` int64 (N, K), `logprobs` float32 (N, K), `tail` float32 (N,), `tail_ids`
    int64 (N, S) and `tail_entropy` float32 (N,), the teacher's distribution there as in `Targets`:
    None where examples carry no targets, and the last two where nothing was drawn.
    """

    token_ids: Tensor
    positions: Tensor
    visible: Tensor
    predicts: Tensor
    labels: Tensor
    owners: Tensor
    top_ids: Tensor | None
    logprobs: Tensor | None
    tail: Tensor | None
    tail_ids: Tensor | None
    tail_entropy: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {
            name: value.to(device)
            for name in self.__slots__
            if isinstance(value := getattr(self, name), Tensor)
        }
        return replace(self, **moved)


def pack(examples: Sequence[Example], row_tokens: int) -> Batch:
    """Pack examples, in order of falling length, each into the first row with room for it.

    Tokens see only earlier tokens of their own example, and positions begin at 0 in each: the
    logits are those of every example alone. A row is as long as `row_tokens` or, if that is
    longer, the longest example; the batch is cut to its fullest row.
    """
    room = max(row_tokens, *(len(e.token_ids) for e in examples))
    rows = _first_fit([len(e.token_ids) for e in examples], room)
    width = max(sum(len(examples[i].token_ids) for i in row) for row in rows)
    shape = (len(rows), width)
    token_ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segment = np.full(shape, -1, np.int64)
    predicts: list[np.ndarray] = []
    order: list[int] = []
    for number, row in enumerate(rows):
        start = 0
        for i in row:
            ids, mask = examples[i].token_ids, examples[i].loss_mask
            stop = start + len(ids)
            token_ids[number, start:stop] = ids
            positions[number, start:stop] = np.arange(len(ids))
            segment[number, start:stop] = i
            # The shift: token t is predicted by the state at t - 1, and the first by none.
            predicts.append(number * width + start + np.flatnonzero(mask[1:]))
            order.append(i)
            start = stop
    causal = np.tril(np.ones((width, width), bool))
    visible = (segment[:, :, None] == segment[:, None, :]) & causal
    labels = [examples[i].token_ids[1:][examples[i].loss_mask[1:]] for i in order]
    owners = [np.full(len(found), i) for i, found in zip(order, labels, strict=True)]
    return Batch(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(positions),
        visible=torch.from_numpy(visible[:, None]),
        predicts=torch.from_numpy(np.concatenate(predicts)),
        labels=torch.from_numpy(np.concatenate(labels)),
        owners=torch.from_numpy(np.concatenate(owners)),
        **_targets([examples[i] for i in order]),
    )


@torch.no_grad()
def check_packing(body: Any, examples: Sequence[Example]) -> None:
    """Hold the longest example and the shortest, packed, to each of them alone.

    Raises InputError where the network looks past the mask: an attention window shorter than an
    example, or a state carried from one to the next.
    """
    ordered = sorted(examples, key=lambda e: -len(e.token_ids))
    pair = [*ordered[:1], *ordered[-1:]]
    if not pair:
        return
    here = next(body.parameters()).device
    batch = pack(pair, sum(len(e.token_ids) for e in pair)).to(here)
    (packed,) = body(
        input_ids=batch.token_ids,
        attention_mask=batch.visible,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    alone = [
        body(input_ids=torch.from_numpy(e.token_ids)[None].to(here), use_cache=False) for e in pair
    ]
    wanted = torch.cat([out.last_hidden_state[0] for out in alone]).float()
    gap, size = (packed.float() - wanted).abs().max().item(), wanted.abs().max().item()
    if not gap <= 0.05 * size + 1e-3:
        raise InputError(
            f"{type(body).__name__} reads rows of several examples wrongly (its states differ by "
            f"{gap:.3g}): its attention window is shorter than an example of "
            f"{len(pair[0].token_ids)} tokens, or it carries a state from one to the next. "
            "Lower teacher.max_tokens, shorten the prompts, or use another architecture."
        )


def _targets(examples: Sequence[Example]) -> dict[str, Tensor | None]:
    """The teacher's distribution, by the names of `Batch`."""
    arrays: dict[str, Tensor | None] = {}
    if found := [e.targets for e in examples if e.targets is not None]:
        arrays |= {name: torch.from_numpy(array) for name, array in together(found).items()}
    drawn = arrays.get("tail_ids")
    if drawn is not None and not drawn.shape[1]:
        arrays |= {"tail_ids": None, "tail_entropy": None}
    names = ("top_ids", "logprobs", "tail", "tail_ids", "tail_entropy")
    return {name: arrays.get(name) for name in names}


def _first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    rows: list[list[int]] = []
    used: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for row, fill in enumerate(used):
            if fill + lengths[i] <= room:
                rows[row].append(i)
                used[row] += lengths[i]
                break
        else:
            rows.append([i])
            used.append(lengths[i])
    return rows


def steps(
    lengths: Sequence[int], batch_tokens: int, micro_tokens: int, seed: int
) -> Iterator[list[list[int]]]:
    """The endless order of learning: for each optimizer step its micro-batches of example numbers.

    Every epoch is a fresh shuffle, decided by `seed` and the epoch alone; a step takes examples up
    to `batch_tokens`, a micro-batch up to `micro_tokens`. An epoch's remainder makes a short step.
    """
    if not lengths:
        raise InputError("There is no example to train on: no answer was kept.")
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths)).tolist()
        for step in cut(order, lengths, batch_tokens):
            yield list(cut(step, lengths, micro_tokens))
        epoch += 1


def steps_per_epoch(lengths: Sequence[int], batch_tokens: int, seed: int) -> int:
    """Optimizer steps in the first epoch (others may differ by one)."""
    order = np.random.default_rng([seed, 0]).permutation(len(lengths)).tolist()
    return sum(1 for _ in cut(order, lengths, batch_tokens))


def cut(order: Sequence[int], lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Runs of at most `tokens` tokens; a longer example stands alone."""
    run: list[int] = []
    filled = 0
    for i in order:
        if run and filled + lengths[i] > tokens:
            yield run
            run, filled = [], 0
        run.append(i)
        filled += lengths[i]
    if run:
        yield run
