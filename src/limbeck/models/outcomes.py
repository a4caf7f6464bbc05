"""A row of logits as K kept tokens and the mass of all others: the sparse targets' outcomes.

Shapes: N tokens, V vocabulary, K kept a token. Logits are finite and already at the position that
predicts the token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.errors import InputError

_BLOCK = 2**20  # logits taken at once: 4 MB in float32 stay in cache through the passes over them


def dense_targets(teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The whole distribution (N, V) as targets with K = V: the form that oracles use.

    Returns:
        `top_ids` (N, V), which is 0 to V − 1 in each row; `logprobs` (N, V); `tail` (N,) of zeros.
    """
    scaled = teacher_logits.to(_wide(teacher_logits)) / temperature
    top_ids = torch.arange(scaled.shape[1], device=scaled.device).expand(scaled.shape)
    return top_ids, scaled.log_softmax(-1), scaled.new_zeros(len(scaled))


def sparse_targets(
    teacher_logits: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The `k` likeliest tokens of each row of (N, V) logits, and the exact mass of the others.

    Returns:
        `top_ids` (N, k) int64, likeliest first; `logprobs` (N, k) at `temperature`; `tail` (N,),
        which keeps its digits however small it is. Float64 for float64 logits, else float32.

    Raises:
        InputError: `k` is below 1 or above V.
    """
    vocabulary = teacher_logits.shape[1]
    if not 1 <= k <= vocabulary:
        raise InputError(
            f"train.top_k = {k} does not fit the teacher's vocabulary of {vocabulary} tokens; "
            f"give 1 to {vocabulary}"
        )
    top_ids = teacher_logits.topk(k, dim=-1).indices
    log_p = log_outcomes(teacher_logits, top_ids, temperature)
    if k == vocabulary:
        return top_ids, log_p, log_p.new_zeros(len(log_p))
    return top_ids, log_p[:, :k].contiguous(), log_p[:, k].exp()


def log_outcomes(logits: Tensor, top_ids: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (N, K + 1) of the kept tokens and of all others; (N, K) at K = V.

    `logits` are (N, V), `top_ids` (N, K), distinct in each row. Differentiable in the logits.
    """
    if top_ids.shape[1] == logits.shape[1]:
        scaled = logits.to(_wide(logits)) / temperature
        return scaled.log_softmax(-1).gather(-1, top_ids)
    apply: Any = _Outcomes.apply  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    outcomes: Tensor = apply(logits, top_ids, temperature)
    return outcomes.log_softmax(-1)


def _wide(logits: Tensor) -> torch.dtype:
    """The dtype to compute in."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


class _Outcomes(torch.autograd.Function):
    """Scaled logits (N, K) of the kept tokens, and the log-sum-exp of all others (N, 1) beside.

    It goes block by block and recomputes in the backward pass: beyond the logits and their
    gradient, no (N, V) tensor is made or kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, top_ids: Tensor, temperature: float) -> Tensor:
        kept = logits.gather(-1, top_ids).to(_wide(logits)) / temperature
        rest = kept.new_empty(len(kept), 1)
        for rows in _blocks(logits):
            others = logits[rows].to(_wide(logits), copy=True)
            others.div_(temperature).scatter_(-1, top_ids[rows], -math.inf)
            peak = others.amax(-1, keepdim=True)
            rest[rows] = others.sub_(peak).exp_().sum(-1, keepdim=True).log_().add_(peak)
        outcomes = torch.cat([kept, rest], -1)
        ctx.save_for_backward(logits, top_ids, rest)
        ctx.temperature = temperature
        return outcomes

    @staticmethod
    @once_differentiable  # pyright: ignore[reportUntypedFunctionDecorator]
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_outcomes: Tensor
    ) -> tuple[Tensor, None, None]:
        logits, top_ids, rest = ctx.saved_tensors
        grad_kept, grad_rest = (grad_outcomes / ctx.temperature).tensor_split([-1], dim=-1)
        grad = torch.empty_like(logits)
        for rows in _blocks(logits):
            block = logits[rows].to(rest.dtype, copy=True)
            block.div_(ctx.temperature).sub_(rest[rows]).exp_().mul_(grad_rest[rows])
            grad[rows] = block.scatter_(-1, top_ids[rows], grad_kept[rows])
        return grad, None, None


def _blocks(logits: Tensor) -> Iterator[slice]:
    """Row slices of (N, V) logits, of `_BLOCK` elements or one row."""
    rows = max(1, _BLOCK // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))
