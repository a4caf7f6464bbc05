"""A student's loss and its gradients, straight from hidden states and head weights.

Shapes: N tokens, H hidden, V vocabulary, K kept a token, S sampled of the others. Of the N·V logits
only a chunk of tokens exists at a time, in one buffer, and the gradient is written over them. As
the loss is a sum over tokens, divided by a number that is known beforehand, the gradient is known
as soon as the logits are: all work is done in the forward pass, in three matrix products a chunk
and a few passes over cache-sized blocks of rows. Products are taken in the dtype of the states,
everything else in float32 (float64 for float64 states).

The divergences are those of `losses`, by the same function as in the plain path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.models.head import Head
from limbeck.models.protocol import LOGITS
from limbeck.recipe import Divergence
from limbeck.train.losses import (
    log_teacher,
    outcome_divergence,
    temperature_factor,
    within_tail,
)
from limbeck.train.projection import Gradients, Logits, slices
from limbeck.train.teacher import Live, Sparse, TargetError, check_states, check_targets, one_hot

_BLOCK = 2**19  # logits that take all passes before the next do: they stay in the cache


class Fused(NamedTuple):
    """What `fused_loss` gives.

    `total` is a scalar, differentiable in the states and in the head's weight and bias. `values`
    (N,) are the tokens' losses before the division, `kls` (N,) their forward KLs in nats without
    the temperature's factor (0 where the text alone is learnt); both are detached.
    """

    total: Tensor
    values: Tensor
    kls: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Term:
    """A part of the loss: a weighted divergence from a teacher."""

    targets: Sparse | Live
    kind: Divergence
    beta: float
    skew: float
    temperature: float
    weight: float

    @property
    def factor(self) -> float:
        return self.weight * temperature_factor(self.kind, self.temperature)


def fused_loss(
    states: Tensor,
    head: Head,
    targets: Sparse | Live | None,
    kind: Divergence | None,
    *,
    beta: float = 0.5,
    skew: float = 0.1,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    text_weight: float = 0.0,
    normaliser: float,
    token_chunk: int | None = None,
) -> Fused:
    """The sum over N tokens of divergence and weighted cross-entropy, divided by `normaliser`.

    Stored targets are compared over K + 1 outcomes as in `losses.divergence`, a live teacher over
    the whole vocabulary.

    Args:
        states: (N, H), the student's final hidden states at the positions that predict.
        head: the student's.
        targets: the teacher's; not read where `kind` is None.
        kind: which divergence (`losses.outcome_divergence`); None for cross-entropy alone.
        beta: for `jsd`.
        skew: for the two skewed ones.
        temperature: both distributions are softened by it; the cross-entropy is not.
        labels: (N,) int64, the text's tokens; needed for cross-entropy.
        text_weight: weight of the cross-entropy beside a divergence.
        normaliser: what the sum is divided by: the target tokens of the whole optimizer step.
        token_chunk: tokens projected at once; by default as many as fill 128 MB with logits.

    Raises:
        InputError: no token is learnt, or shapes or vocabularies do not fit each other.
        TargetError: a row of the targets, or of the live teacher's logits, is no distribution.
    """
    terms: list[_Term] = []
    if kind is not None and targets is not None:
        terms.append(_Term(targets, kind, beta, skew, temperature, 1.0))
    if labels is not None and (text_weight or kind is None):
        weight = text_weight if kind else 1.0
        terms.append(_Term(one_hot(labels), "forward_kl", beta, skew, 1.0, weight))
    if len(terms) != (kind is not None) + (kind is None or text_weight > 0):
        raise ValueError("a divergence needs targets, and cross-entropy needs labels")
    check_states("student", states, head)
    for one in [term.targets for term in terms] + ([] if labels is None else [one_hot(labels)]):
        check_targets(one, len(states), head.vocabulary)

    parameters = (states, head.project.weight, head.project.bias)
    learnt = [x is not None and x.requires_grad and torch.is_grad_enabled() for x in parameters]
    with torch.no_grad():
        grads = Gradients(*parameters, learnt, head.vocabulary)
        scale = 1 / normaliser if any(learnt) else 0.0
        anchors = targets.top_ids[:, 0] if isinstance(targets, Sparse) else labels
        values, kls = _run(states, head, terms, grads, scale, anchors, token_chunk)
        total = values.sum() / normaliser
    if any(learnt):
        apply: Any = _Attach.apply
        total = apply(total, *parameters, grads.states, grads.weight, grads.bias)
    return Fused(total, values, kls if kind else torch.zeros_like(kls))


class _Attach(torch.autograd.Function):
    """The backward pass of a scalar whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, *tensors: Tensor | None) -> Tensor:
        """`tensors` are what the total depends on, and then as many gradients."""
        ctx.save_for_backward(*tensors[len(tensors) // 2 :])
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grads: tuple[Tensor | None, ...] = ctx.saved_tensors
        if grad_total.item() != 1:
            grads = tuple(None if g is None else g * grad_total for g in grads)
        return None, *grads, *(None for _ in grads)


def _run(
    states: Tensor,
    head: Head,
    terms: Sequence[_Term],
    grads: Gradients,
    scale: float,
    anchors: Tensor | None,
    token_chunk: int | None,
) -> tuple[Tensor, Tensor]:
    """Each token's loss and the first term's forward KL (N,); `scale`·∂loss goes to `grads`."""
    n, v = len(states), head.vocabulary
    most = token_chunk or max(1, LOGITS // (v * states.element_size()))
    chunk = math.ceil(n / math.ceil(n / most))  # all of one size
    wide = torch.float64 if states.dtype == torch.float64 else torch.float32
    how = (chunk, wide, anchors, terms[0].kind == "tvd")  # its gradient jumps where p = q
    student = Logits("student", states, head, *how)
    teachers = [
        Logits("teacher", one.states, one.head, *how) if isinstance(one, Live) else one
        for one in (term.targets for term in terms)
    ]
    block = max(1, _BLOCK // v) if states.device.type == "cpu" else chunk
    values, kls = states.new_empty((2, n), dtype=wide)
    for rows in slices(0, n, chunk):
        for one in (student, *teachers):
            if isinstance(one, Logits):
                one.project(rows)
        for some in slices(rows.start, rows.stop, block):
            z = student.rows(some)
            steepness = student.steepness(z) if scale else None
            against = [one.rows(some) for one in teachers]
            values[some], kls[some] = _compare(z, against, terms, scale * student.scale)
            if scale:
                student.put(some, z if steepness is None else z.mul_(steepness))
        if scale:
            grads.add(rows, student.chunk)
    if isinstance(teachers[0], Logits) and not (values.isfinite() & kls.isfinite()).all():
        _blame(teachers[0], n, chunk)
    return values, kls


def _compare(
    z: Tensor, against: Sequence[Sparse | Tensor], terms: Sequence[_Term], scale: float
) -> tuple[Tensor, Tensor]:
    """Loss and the first term's forward KL (n,) of logits `z` (n, V) `against` targets or logits.

    `z` becomes `scale`·∂loss/∂z, or nothing of use at scale 0; a live teacher's logits are used up.
    """
    copies = [*(z.clone() for _ in terms[1:]), z]
    values: list[Tensor] = []
    kls: list[Tensor] = []
    for x, term, theirs in zip(copies, terms, against, strict=True):
        steep = scale * term.factor / term.temperature
        if term.temperature != 1:
            x /= term.temperature
        if isinstance(theirs, Sparse):
            value, found = _against_sparse(x, theirs, term, steep)
        else:
            value, found = _against_live(x, theirs, term, steep)
        values.append(value * term.factor)
        kls.append(found)
    for x in copies[:-1]:
        z += x
    return torch.stack(values).sum(0), kls[0]


def _against_sparse(x: Tensor, targets: Sparse, term: _Term, scale: float) -> tuple[Tensor, Tensor]:
    """Divergence and forward KL (n,) of logits `x` (n, V), which become `scale`·∂divergence/∂x."""
    kept = targets.top_ids.shape[1]
    bucket = kept < x.shape[1]
    outcomes = x.gather(-1, targets.top_ids)
    drawn = targets.tail_ids if bucket and term.kind == "forward_kl" else None
    sampled = None if drawn is None else x.gather(-1, drawn)
    mass = rest = outcomes
    if bucket:
        x.scatter_(-1, targets.top_ids, -math.inf)
        peak = x.amax(-1, keepdim=True)
        mass = x.sub_(peak).exp_().sum(-1, keepdim=True)  # x: the others' shares of it
        rest = mass.log() + peak
        outcomes = torch.cat([outcomes, rest], -1)
    log_q = outcomes.log_softmax(-1)
    log_p = log_teacher(targets.logprobs, targets.tail, log_q)
    rule = (term.beta, term.skew)
    value, grad = outcome_divergence(log_p, log_q, term.kind, *rule, bucket=bucket)
    found = value
    if term.kind != "forward_kl":
        found, _ = outcome_divergence(log_p, log_q, "forward_kl", *rule, bucket=bucket)
    tail = targets.tail.to(x.dtype)[:, None]
    if drawn is not None and sampled is not None and targets.tail_entropy is not None:
        value = found = value + within_tail(rest - sampled, tail[:, 0], targets.tail_entropy)
        grad[:, -1:] += tail
    if scale:
        grad *= scale
        if bucket:
            x.mul_(grad[:, -1:] / mass)
        x.scatter_(-1, targets.top_ids, grad[:, :kept])
        if drawn is not None:
            x.scatter_add_(-1, drawn, (tail * (-scale / drawn.shape[1])).expand(drawn.shape))
    return value, found


def _against_live(x: Tensor, theirs: Tensor, term: _Term, scale: float) -> tuple[Tensor, Tensor]:
    """The same over the whole vocabulary, against a teacher's logits (n, V), which are used up."""
    if term.temperature != 1:
        theirs /= term.temperature
    log_p, log_q = _log_softmax_(theirs), _log_softmax_(x)
    rule = (term.kind, term.beta, term.skew)
    value, grad = outcome_divergence(log_p, log_q, *rule, bucket=False)
    found = value
    if term.kind != "forward_kl":
        found = log_p.exp().mul_(log_p.sub_(log_q)).sum(-1)
    if scale:
        torch.mul(grad, scale, out=x)
    return value, found


def _log_softmax_(x: Tensor) -> Tensor:
    x -= x.amax(-1, keepdim=True)
    return x.sub_(x.exp().sum(-1, keepdim=True).log_())


def _blame(teacher: Logits, tokens: int, chunk: int) -> None:
    """Raise TargetError if a loss that is no number is the teacher's doing."""
    for rows in slices(0, tokens, chunk):
        teacher.project(rows)
        bad = ~teacher.chunk.isfinite().all(-1)
        if bad.any():
            raise TargetError(rows.start + int(bad.nonzero()[0]), "has a logit that is no number")
