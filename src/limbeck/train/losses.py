"""Divergences between a teacher's sparse targets and a student's logits, one value a token.

Shapes: N tokens, V vocabulary, K kept a token, S sampled of the others. A teacher's row is K
log-probabilities and the mass of everything else, its tail: a distribution over K + 1 outcomes. The
student's row is summed over the same outcomes, so every divergence here is one of two whole
distributions. By the data-processing inequality it is a lower bound of the divergence over the full
vocabulary, grows with K, and equals it at K = V (adaptive KL, which is a mixture of two, only
equals it at K = V). Nothing is renormalised and nothing is clamped to hide a negative.

Of the student q from the teacher p:

- `forward_kl`: KL(p‖q). `reverse_kl`: KL(q‖p).
- `jsd`: beta·KL(p‖m) + (1 − beta)·KL(q‖m) with m = beta·p + (1 − beta)·q, as in Agarwal et
  al., arXiv 2306.13649. It vanishes towards both ends (beta·KL(p‖q) near 0); code that jumps
  to a full KL at exactly 0 and 1 is another function.
- `skew_kl`: KL(p‖skew·p + (1 − skew)·q), and `skew_reverse_kl`: KL(q‖(1 − skew)·p + skew·q).
  `skew` is the α of DistiLLM, arXiv 2402.03898; at 0 they are forward and reverse KL.
- `tvd`: total variation, half the sum of |p − q|.
- `adaptive_kl`: w·KL(p‖q) + (1 − w)·KL(q‖p), where w is the head's share of the sum of |p − q|
  and the head is the fewest likeliest tokens that hold half of the teacher's mass, with any as
  likely as the last of them: the AKL of Wu et al., arXiv 2404.02657, section 4. As in the
  authors' code w is a constant, not differentiated.

Logits are finite, and already at the position that predicts the token: the caller has shifted.
"""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor

from limbeck.models.outcomes import log_outcomes
from limbeck.recipe import Divergence

_HEAD_MASS = 0.5  # of the teacher, in the head of adaptive KL: the paper's μ
_HEAD_TOKENS = 256  # hold that mass nearly always; a row that needs more is sorted whole


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
    tail_ids: Tensor | None = None,
    tail_entropy: Tensor | None = None,
) -> Tensor:
    """The divergence of the student q from the teacher p (`outcome_divergence`), in nats a token.

    It is multiplied by `temperature_factor`. A teacher's log-probability counts as no less than the
    log of the smallest normal number (−87.3 in float32), so that a tail that was rounded to 0
    leaves reverse KL finite.

    Forward KL of targets that carry `tail_ids` is an unbiased estimate of the one over the full
    vocabulary, gradient included, and can be negative; see `within_tail`. Without them, and for
    every other divergence, the tail is one outcome.

    Args:
        logits: (N, V), the student's, of any floating dtype; the targets are constants.
        top_ids: (N, K) int64, distinct in each row.
        logprobs: (N, K), the teacher's log-probabilities of `top_ids` at `temperature`.
        tail: (N,), the teacher's mass outside `top_ids`; not read at K = V.
        kind: which divergence.
        beta: the teacher's share in the mixture of `jsd`, from 0 to 1.
        skew: of `skew_kl` the teacher's share in the mixture, of `skew_reverse_kl` the student's.
        temperature: the student's logits are divided by it; the teacher's already are.
        tail_ids: (N, S) int64, drawn by the teacher outside `top_ids`, with replacement.
        tail_entropy: (N,), −Σ p log p of all tokens outside `top_ids`, in nats.

    Returns:
        (N,), float64 for float64 logits and float32 otherwise. Never negative beyond rounding,
        unless `tail_ids` are given.
    """
    if not len(logits) == len(top_ids) == len(logprobs) == len(tail):
        raise ValueError(
            f"rows differ: {len(logits)} of logits, {len(top_ids)} of top_ids, "
            f"{len(logprobs)} of logprobs, {len(tail)} of tail"
        )
    log_q = log_outcomes(logits, top_ids, temperature)
    log_p = log_teacher(logprobs, tail, log_q)
    bucket = top_ids.shape[1] < logits.shape[1]
    value, grad = outcome_divergence(log_p, log_q.detach(), kind, beta, skew, bucket=bucket)
    value = value + (grad * (log_q - log_q.detach())).sum(-1)  # adds 0, and the gradient
    if kind == "forward_kl" and bucket and tail_ids is not None and tail_entropy is not None:
        scaled = logits.to(log_q.dtype) / temperature
        log_z = scaled.gather(-1, top_ids[:, :1]) - log_q[:, :1]
        log_ratio = log_q[:, -1:] - (scaled.gather(-1, tail_ids) - log_z)
        value = value + within_tail(log_ratio, tail, tail_entropy)
    return value * temperature_factor(kind, temperature)


def outcome_divergence(
    log_p: Tensor,
    log_q: Tensor,
    kind: Divergence,
    beta: float,
    skew: float,
    *,
    bucket: bool,
) -> tuple[Tensor, Tensor]:
    """The divergence D of q from p over M outcomes, in nats, and ∂D/∂z for logits z of q.

    The module's docstring has the kinds.

    Args:
        log_p: (N, M), the teacher's, finite.
        log_q: (N, M), the student's, finite; it need not be differentiable.
        kind: which divergence.
        beta: see above.
        skew: see above.
        bucket: whether the last outcome stands for many tokens. It then is none of the likeliest.

    Returns:
        The value (N,) and the gradient (N, M), in closed form.
    """
    if skew == 0 and kind in ("skew_kl", "skew_reverse_kl"):
        kind = "forward_kl" if kind == "skew_kl" else "reverse_kl"
    p, q = log_p.exp(), log_q.exp()
    match kind:
        case "forward_kl":
            value, slope = _inner(p, log_p - log_q) + q.sum(-1) - p.sum(-1), q - p
        case "reverse_kl":
            slope = (log_q - log_p).mul_(q)
            value = slope.sum(-1) + p.sum(-1) - q.sum(-1)
        case "jsd":
            _, log_m = _mixture(p, log_p, q, log_q, beta)
            slope = (log_q - log_m).mul_(q).mul_(1 - beta)
            value = slope.sum(-1) + beta * _inner(p, log_p - log_m)
        case "skew_kl":
            m, log_m = _mixture(p, log_p, q, log_q, skew)
            value = _inner(p, log_p - log_m) + m.sum(-1) - p.sum(-1)
            slope = (1 - p / m).mul_(q).mul_(1 - skew)
        case "skew_reverse_kl":
            m, log_m = _mixture(q, log_q, p, log_p, skew)
            slope = (log_q - log_m).mul_(q)
            value = slope.sum(-1) + m.sum(-1) - q.sum(-1)
            slope.add_((1 - q / m).mul_(q), alpha=skew)
        case "tvd":
            slope = q - p
            value = slope.abs().sum(-1) / 2
            slope.sign_().mul_(q).div_(2)
        case "adaptive_kl":
            w = _head_share(p, q, bucket)
            forward = _inner(p, log_p - log_q) + q.sum(-1) - p.sum(-1)
            slope = (log_q - log_p).mul_(q)
            reverse = slope.sum(-1) + p.sum(-1) - q.sum(-1)
            value, slope = torch.lerp(reverse, forward, w), slope.lerp_(q - p, w[:, None])
        case _:
            assert_never(kind)
    # Up to here `slope` is ∂D/∂log q.
    return value, slope.addcmul_(q, slope.sum(-1, keepdim=True), value=-1)


def within_tail(log_ratio: Tensor, tail: Tensor, tail_entropy: Tensor) -> Tensor:
    """What sampled tail tokens add to the forward KL over the outcomes: tail·KL(p‖q) inside it.

    By the chain rule of KL the two add up to the KL over the full vocabulary. With S tokens j drawn
    from p outside the top K, the mean of log(q_tail / q_j) is unbiased, and so is its gradient.

    Args:
        log_ratio: (N, S), log(q_tail / q_j) of each sampled token.
        tail: (N,), the teacher's mass outside the top K.
        tail_entropy: (N,), −Σ p log p outside the top K, in nats.
    """
    tail, tail_entropy = tail.to(log_ratio.dtype), tail_entropy.to(log_ratio.dtype)
    return tail * log_ratio.mean(-1) - tail_entropy - torch.xlogy(tail, tail)


def temperature_factor(kind: Divergence, temperature: float) -> float:
    """What keeps the gradient's scale as the temperature T grows.

    It is T² (Hinton et al., arXiv 1503.02531), and T for total variation, whose gradient does not
    shrink with the difference of the two distributions.
    """
    return temperature if kind == "tvd" else temperature**2


def cross_entropy(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Minus the log-probability (N,) in nats of `token_ids` (N,) under `logits` (N, V).

    Taken over two outcomes, this token and any other, which needs no (N, V) tensor of its own.
    """
    return -log_outcomes(logits, token_ids[:, None], 1.0)[:, 0]


def log_teacher(logprobs: Tensor, tail: Tensor, like: Tensor) -> Tensor:
    """The teacher's log-probabilities over the outcomes of `like`, in its dtype, floored."""
    log_p = logprobs.to(like.dtype)
    if like.shape[1] > log_p.shape[1]:
        log_p = torch.cat([log_p, tail.to(like.dtype).log()[:, None]], -1)
    return log_p.clamp_min(math.log(torch.finfo(like.dtype).tiny))


def _inner(a: Tensor, log_ratio: Tensor) -> Tensor:
    """Σ a·log_ratio (N,); overwrites `log_ratio`."""
    return log_ratio.mul_(a).sum(-1)


def _mixture(
    a: Tensor, log_a: Tensor, b: Tensor, log_b: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """share·a + (1 − share)·b, at least the smallest normal number, and its log."""
    if share in (0, 1):
        return (a, log_a) if share else (b, log_b)
    m = torch.lerp(b, a, share).clamp_min_(torch.finfo(a.dtype).tiny)
    return m, m.log()


def _head_share(p: Tensor, q: Tensor, bucket: bool) -> Tensor:
    """The share (N,) of the sum of |p − q| that lies in the teacher's head."""
    tokens = p[:, :-1] if bucket else p
    gap = (p - q).abs_()
    head = tokens >= _least_of_head(tokens, _HEAD_TOKENS)
    inside = (gap[:, : tokens.shape[1]] * head).sum(-1)
    return inside / gap.sum(-1).clamp_min_(torch.finfo(gap.dtype).tiny)


def _least_of_head(p: Tensor, k: int) -> Tensor:
    """The smallest probability (N, 1) in the head, sought among the likeliest k, then among more.

    Added up in whole numbers, which is exact and, on a GPU too, the same every time.
    """
    likeliest = p.topk(min(k, p.shape[1]), -1).values
    short = (likeliest * 2**40).long().cumsum(-1) < _HEAD_MASS * 2**40
    last = short.sum(-1, keepdim=True).clamp_max_(likeliest.shape[1] - 1)
    least = likeliest.gather(-1, last)
    more = short[:, -1]
    if k < p.shape[1] and more.any():
        least[more] = _least_of_head(p[more], 16 * k)
    return least
