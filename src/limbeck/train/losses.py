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
from typing import assert_never

import torch
from torch import Tensor

from limbeck.models.outcomes import log_outcomes
from limbeck.recipe import Divergence


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
    log_q = log_outcomes(logits, top_ids, temperature)
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
    return -log_outcomes(logits, token_ids[:, None], 1.0)[:, 0]


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
