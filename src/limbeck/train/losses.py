"""Divergences between a teacher's sparse targets and a student's logits, one value a token.

Shapes: N tokens, V vocabulary, K kept a token. A teacher's row is K log-probabilities and the mass
of everything else, its tail: a distribution over K + 1 outcomes. The student's row is summed over
the same outcomes, so every divergence here is one of two whole distributions. By the
data-processing inequality it is a lower bound of the divergence over the full vocabulary, grows
with K, and equals it at K = V. Nothing is renormalised and nothing is clamped to hide a negative.

Logits are finite, and already at the position that predicts the token: the caller has shifted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, assert_never

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.errors import InputError
from limbeck.recipe import Divergence

_BLOCK = 2**20  # logits taken at once: 4 MB in float32 stay in cache through the passes over them


def divergence(
    logits: Tensor,
    top_ids: Tensor,
    logprobs: Tensor,
    tail: Tensor,
    kind: Divergence,
    *,
    beta: float = 0.5,
    skew: float = 0.1,
    temperature: float = 1.0,
) -> Tensor:
    """The divergence of the student q from the teacher p, in nats a token, times temperature².

    - `forward_kl`: KL(p‖q). `reverse_kl`: KL(q‖p).
    - `jsd`: beta·KL(p‖m) + (1 − beta)·KL(q‖m) with m = beta·p + (1 − beta)·q, as in Agarwal et
      al., arXiv 2306.13649. It vanishes towards both ends (beta·KL(p‖q) near 0); code that jumps
      to a full KL at exactly 0 and 1 is another function.
    - `skew_kl`: KL(p‖skew·p + (1 − skew)·q). `skew` is the teacher's share, which is the α of
      DistiLLM, arXiv 2402.03898; 0 is forward KL.

    The factor temperature² keeps the gradient's scale as the temperature grows (Hinton et al.,
    arXiv 1503.02531). A teacher's log-probability counts as no less than the log of the smallest
    normal number (−87.3 in float32), so that a tail that was rounded to 0 leaves reverse KL finite.

    Args:
        logits: (N, V), the student's, of any floating dtype; the targets are constants.
        top_ids: (N, K) int64, distinct in each row.
        logprobs: (N, K), the teacher's log-probabilities of `top_ids` at `temperature`.
        tail: (N,), the teacher's mass outside `top_ids`; not read at K = V.
        kind: which divergence.
        beta: the teacher's share in the mixture of `jsd`, from 0 to 1.
        skew: the teacher's share in the mixture of `skew_kl`, from 0 to 1.
        temperature: the student's logits are divided by it; the teacher's already are.

    Returns:
        (N,), float64 for float64 logits and float32 otherwise. Never negative beyond rounding.
    """
    if not len(logits) == len(top_ids) == len(logprobs) == len(tail):
        raise ValueError(
            f"rows differ: {len(logits)} of logits, {len(top_ids)} of top_ids, "
            f"{len(logprobs)} of logprobs, {len(tail)} of tail"
        )
    log_q = _log_outcomes(logits, top_ids, temperature)
    log_p = _log_teacher(logprobs, tail, log_q)
    match kind:
        case "forward_kl":
            value = _kl(log_p, log_q)
        case "reverse_kl":
            value = _kl(log_q, log_p)
        case "jsd":
            log_m = _log_mixture(log_p, log_q, beta)
            value = beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)
        case "skew_kl":
            value = _kl(log_p, _log_mixture(log_p, log_q, skew))
        case _:
            assert_never(kind)
    return value * temperature**2


def cross_entropy(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Minus the log-probability (N,) in nats of `token_ids` (N,) under `logits` (N, V).

    Taken over two outcomes, this token and any other, which needs no (N, V) tensor of its own.
    """
    return -_log_outcomes(logits, token_ids[:, None], 1.0)[:, 0]


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
    log_p = _log_outcomes(teacher_logits, top_ids, temperature)
    if k == vocabulary:
        return top_ids, log_p, log_p.new_zeros(len(log_p))
    return top_ids, log_p[:, :k].contiguous(), log_p[:, k].exp()


def _wide(logits: Tensor) -> torch.dtype:
    """The dtype to compute in."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _log_outcomes(logits: Tensor, top_ids: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (N, K + 1) of the kept tokens and of all others; (N, K) at K = V."""
    if top_ids.shape[1] == logits.shape[1]:
        scaled = logits.to(_wide(logits)) / temperature
        return scaled.log_softmax(-1).gather(-1, top_ids)
    apply: Any = _Outcomes.apply  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    outcomes: Tensor = apply(logits, top_ids, temperature)
    return outcomes.log_softmax(-1)


def _log_teacher(logprobs: Tensor, tail: Tensor, like: Tensor) -> Tensor:
    """The teacher's log-probabilities over the outcomes of `like`, in its dtype, floored."""
    log_p = logprobs.to(like.dtype)
    if like.shape[1] > log_p.shape[1]:
        log_p = torch.cat([log_p, tail.to(like.dtype).log()[:, None]], -1)
    return log_p.clamp_min(math.log(torch.finfo(like.dtype).tiny))


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a‖b) (N,) as the sum of a·log(a/b) − a + b, whose every term is at least 0.

    The two added terms cancel between distributions. They keep the value at or above 0 where
    stored targets add up to 1 only nearly, and leave the gradient as it is.
    """
    a, b = log_a.exp(), log_b.exp()
    return (a * (log_a - log_b) + (b - a)).sum(-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """The log of share·p + (1 − share)·q."""
    if share in (0, 1):
        return log_p if share else log_q
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


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
