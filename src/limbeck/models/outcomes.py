"""A row of logits as K kept tokens, the mass of all others, and S tokens drawn from these.

Shapes: N tokens, V vocabulary, K kept a token, S drawn. Logits are finite and already at the
position that predicts the token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.errors import InputError
from limbeck.records import identity

_BLOCK = 2**19  # logits taken at once: 2 MB in float32 stay in cache through the passes over them
_GPU_BLOCK = 2**25  # there each pass costs a launch, whatever it is over
_CHUNK = 128  # tokens of the vocabulary: what is sought is sought among chunks first, then within
_NOTHING = -1e4  # the log of a mass of 0 that, unlike −inf, gives 0 when 0 is multiplied by it
_BELOW_1 = 1 - 2**-52


class SampledTargets(NamedTuple):
    """The head of each distribution exactly, and an unbiased sample of its tail.

    `top_ids` (N, K) int64, likeliest first; `logprobs` (N, K); `tail` (N,), the mass of the others;
    `tail_ids` (N, S) int64, drawn from the others; `tail_entropy` (N,), −Σ p·log p over the others,
    in nats. exp(logprobs) on the K and tail/S on each of the S estimates p without bias.
    """

    top_ids: Tensor
    logprobs: Tensor
    tail: Tensor
    tail_ids: Tensor
    tail_entropy: Tensor


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
    none = teacher_logits.new_empty(len(teacher_logits), dtype=torch.float64)
    return sampled_targets(teacher_logits, k, temperature, 0, none)[:3]


@torch.no_grad()
def sampled_targets(
    teacher_logits: Tensor, k: int, temperature: float, samples: int, offsets: Tensor
) -> SampledTargets:
    """`sparse_targets`, and tokens drawn from the tail by systematic sampling.

    The tail's tokens lie end to end, each as long as its mass. S points one tail/S apart, the
    first `offsets` of that from the start, draw the tokens that they fall in: a token of mass m is
    drawn ⌊S·m/tail⌋ or ⌈S·m/tail⌉ times and S·m/tail times on average. Independent draws of all
    tokens (Sparse Logit Sampling, arXiv 2503.16870) have the same mean and vary more.

    Args:
        teacher_logits: (N, V).
        k: K, how many of the likeliest are kept exactly.
        temperature: the logits are divided by it.
        samples: S.
        offsets: (N,) float64, uniform on [0, 1).

    Raises:
        InputError: `k` is below 1 or above V, or is V and leaves no tail to draw from.
    """
    vocabulary = teacher_logits.shape[1]
    _check_sizes(k, samples, vocabulary)
    top_ids = _likeliest(teacher_logits, min(k + 1, vocabulary))
    values = teacher_logits.gather(-1, top_ids).to(_wide(teacher_logits))
    drawn = top_ids.new_empty(len(top_ids), samples)
    if k == vocabulary:
        none = values.new_zeros(len(values))
        return SampledTargets(top_ids, (values / temperature).log_softmax(-1), none, drawn, none)
    top_ids, peak = top_ids[:, :k].contiguous(), values[:, k:]
    log_mass, entropy = torch.empty_like(peak), torch.empty_like(peak)
    steps = torch.arange(samples, device=offsets.device)
    points = ((offsets[:, None] + steps) / max(1, samples)).clamp_(max=_BELOW_1)
    for rows in _blocks(teacher_logits):
        log_mass[rows], entropy[rows], drawn[rows] = _tail(
            teacher_logits[rows], top_ids[rows], peak[rows], temperature, points[rows]
        )
    log_p = torch.cat([values[:, :k] / temperature, log_mass], -1).log_softmax(-1)
    tail = log_p[:, k].exp()
    tail_entropy = tail * (entropy[:, 0] - log_p[:, k])
    return SampledTargets(top_ids, log_p[:, :k].contiguous(), tail, drawn, tail_entropy)


def tail_offsets(answer_id: str, tokens: int) -> NDArray[np.float64]:
    """The `offsets` of an answer's tokens: uniform on [0, 1), decided by its id and their place."""
    key = int(identity("tail", answer_id), 16)
    return np.random.Generator(np.random.Philox(key=key)).random(tokens)


def _check_sizes(k: int, samples: int, vocabulary: int) -> None:
    if not 1 <= k <= vocabulary:
        raise InputError(
            f"train.top_k = {k} does not fit the teacher's vocabulary of {vocabulary} tokens; "
            f"give 1 to {vocabulary}"
        )
    if k == vocabulary and samples:
        raise InputError(
            f"train.top_k = {k} is the teacher's whole vocabulary and leaves no tail to draw "
            f"from; give train.tail_samples = 0 (now {samples})"
        )


def _tail(
    logits: Tensor, top_ids: Tensor, peak: Tensor, temperature: float, points: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """All but `top_ids` of a block of rows: log-mass (n, 1), entropy (n, 1) and draws (n, S).

    `peak` (n, 1) is their largest logit, `points` (n, S) are shares of their mass. The entropy is
    that of the tail alone, scaled to a mass of 1.
    """
    vocabulary = logits.shape[1]
    log_mass = peak.new_empty(len(peak), -(-vocabulary // _CHUNK) * _CHUNK)
    torch.sub(logits, peak, out=log_mass[:, :vocabulary])
    log_mass.div_(temperature).clamp_(min=_NOTHING).scatter_(-1, top_ids, _NOTHING)
    log_mass[:, vocabulary:] = _NOTHING
    mass = log_mass.exp()
    chunks = mass.view(len(mass), -1, _CHUNK)
    up_to = chunks.sum(-1).double().cumsum_(-1)
    total = up_to[:, -1:]
    mean = log_mass.mul_(mass).sum(-1, keepdim=True) / total
    return total.log() + peak / temperature, total.log() - mean, _draw(chunks, up_to, points)


def _draw(chunks: Tensor, up_to: Tensor, points: Tensor) -> Tensor:
    """The tokens (n, S) in which shares `points` (n, S) of the whole mass fall.

    `chunks` (n, C, _CHUNK) are the tokens' masses, `up_to` (n, C) the mass up to each chunk's end.
    Running sums are in float64, over C chunks and then over one. Over the whole vocabulary they
    would take ten times as long; in float32 half of a real tail's tokens would be below the last
    place of the sum, never to be drawn. No token without mass is drawn, whatever the rounding.
    """
    at = points * up_to[:, -1:]
    found = torch.searchsorted(up_to, at, right=True)
    found = found.clamp_(max=up_to.shape[1] - 1)  # a row of NaN is past the end
    before = torch.nn.functional.pad(up_to, (1, 0)).gather(-1, found)
    rows = torch.arange(len(found), device=found.device)[:, None]
    within = chunks[rows, found].double().cumsum_(-1)  # (n, S, _CHUNK)
    left = torch.minimum(at - before, within[..., -1] * _BELOW_1)[..., None]
    return found * _CHUNK + torch.searchsorted(within, left, right=True)[..., 0]


def _likeliest(logits: Tensor, k: int) -> Tensor:
    """The ids (N, k) of the largest logits, in falling order.

    They lie in the k chunks with the largest maxima: the others need no sorting.
    """
    vocabulary = logits.shape[1]
    chunks = vocabulary // _CHUNK
    if 4 * k > chunks:
        return logits.topk(k, dim=-1).indices
    whole = chunks * _CHUNK
    maxima = logits[:, :whole].view(len(logits), chunks, _CHUNK).amax(-1)
    within = torch.arange(_CHUNK, device=logits.device)
    ids = (maxima.topk(k, dim=-1).indices[..., None] * _CHUNK + within).flatten(1)
    rest = torch.arange(whole, vocabulary, device=logits.device).expand(len(logits), -1)
    ids = torch.cat([ids, rest], -1)
    return ids.gather(-1, logits.gather(-1, ids).topk(k, dim=-1).indices)


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
    """Row slices of (N, V) logits, of a block's elements or one row."""
    rows = max(1, (_BLOCK if logits.device.type == "cpu" else _GPU_BLOCK) // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))
