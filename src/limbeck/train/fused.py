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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
from limbeck.train.teacher import Live, Sparse, TargetError, check_states, check_targets, one_hot

_BLOCK = 2**18  # logits that take all passes before the next do: they stay in a core's cache
_SLICE = 2**13  # rows of the head's gradient that chunks in bfloat16 are added to at once


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
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
    for term in terms:
        check_targets(term.targets, len(states), head.vocabulary)

    parameters = (states, head.project.weight, head.project.bias)
    learnt = [x is not None and x.requires_grad and torch.is_grad_enabled() for x in parameters]
    with torch.no_grad():
        grads = _Gradients(*parameters, learnt, head.vocabulary)
        scale = 1 / normaliser if any(learnt) else 0.0
        values, kls = _run(states, head, terms, grads, scale, token_chunk)
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
    grads: _Gradients,
    scale: float,
    token_chunk: int | None,
) -> tuple[Tensor, Tensor]:
    """Each token's loss and the first term's forward KL (N,); `scale`·∂loss goes to `grads`."""
    n, v = len(states), head.vocabulary
    most = token_chunk or max(1, LOGITS // (v * states.element_size()))
    chunk = math.ceil(n / math.ceil(n / most))  # all of one size
    block = max(1, _BLOCK // v) if states.device.type == "cpu" else chunk
    wide = torch.float64 if states.dtype == torch.float64 else torch.float32
    student = _Logits("student", states, head, chunk, wide)
    teachers = [
        _Logits("teacher", one.states, one.head, chunk, wide) if isinstance(one, Live) else one
        for one in (term.targets for term in terms)
    ]
    values, kls = states.new_empty((2, n), dtype=wide)
    for rows in _slices(0, n, chunk):
        for one in (student, *teachers):
            if isinstance(one, _Logits):
                one.project(rows)
        for some in _slices(rows.start, rows.stop, block):
            z = student.rows(some)
            steepness = student.steepness(z) if scale else None
            against = [one.rows(some) for one in teachers]
            values[some], kls[some] = _compare(z, against, terms, scale * student.scale)
            if scale:
                student.put(some, z if steepness is None else z.mul_(steepness))
        if scale:
            grads.add(rows, student.chunk)
    if isinstance(teachers[0], _Logits) and not (values.isfinite() & kls.isfinite()).all():
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
            theirs /= term.temperature
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
    value, slope = outcome_divergence(log_p, log_q, term.kind, *rule, bucket=bucket)
    found = value
    if term.kind != "forward_kl":
        found, _ = outcome_divergence(log_p, log_q, "forward_kl", *rule, bucket=bucket)
    grad = slope.sub_(log_q.exp().mul_(slope.sum(-1, keepdim=True)))
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
    log_p, log_q = _log_softmax_(theirs), _log_softmax_(x)
    rule = (term.kind, term.beta, term.skew)
    value, slope = outcome_divergence(log_p, log_q, *rule, bucket=False)
    found = value
    if term.kind != "forward_kl":
        found = log_p.exp().mul_(log_p.sub_(log_q)).sum(-1)
    if scale:
        pull = slope.sum(-1, keepdim=True).mul_(-scale)
        x.exp_().mul_(pull).add_(slope, alpha=scale)
    return value, found


def _log_softmax_(x: Tensor) -> Tensor:
    x -= x.amax(-1, keepdim=True)
    return x.sub_(x.exp().sum(-1, keepdim=True).log_())


class _Logits:
    """A head's logits, a chunk at a time in one buffer, where their gradient takes their place."""

    def __init__(
        self, owner: str, states: Tensor, head: Head, rows: int, wide: torch.dtype
    ) -> None:
        project, v = head.project, head.vocabulary
        self.scale = 1.0 if head.scale is None else head.scale
        self._cap, self._wide, self._states = head.cap, wide, states
        self._weight: Tensor = project.weight.detach()[:v]
        self._bias = None if project.bias is None else project.bias.detach()[:v]
        self._buffer = _scratch(owner, states, rows * v).view(rows, v)
        self._start, self.chunk = 0, self._buffer

    def project(self, rows: slice) -> None:
        """Make the logits of these rows."""
        self._start, states = rows.start, self._states[rows]
        gain = self.scale if self._cap is None else self.scale / self._cap
        bias, beta = (self._bias, gain) if self._bias is not None else (states.new_zeros(1), 0.0)
        self.chunk = self._buffer[: len(states)]
        torch.addmm(bias, states, self._weight.t(), beta=beta, alpha=gain, out=self.chunk)

    def rows(self, some: slice) -> Tensor:
        """Some of them, (n, V) in float32 or float64; in the buffer itself where that has it."""
        z = self._raw(some).to(self._wide)
        return z if self._cap is None else z.tanh_().mul_(self._cap)

    def steepness(self, z: Tensor) -> Tensor | None:
        """∂z/∂(Wh + b) over `scale`; None where that is 1."""
        return None if self._cap is None else 1 - (z / self._cap).square_()

    def put(self, some: slice, grad: Tensor) -> None:
        """Write the gradient of these rows over them."""
        if grad.dtype != self._buffer.dtype:
            self._raw(some).copy_(grad)

    def _raw(self, some: slice) -> Tensor:
        return self.chunk[some.start - self._start : some.stop - self._start]


class _Gradients:
    """The gradients of what is learnt among states, weight and bias, added up chunk by chunk."""

    def __init__(
        self,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        learnt: Sequence[bool],
        vocabulary: int,
    ) -> None:
        self._states_in, self._weight_in, self._v = states, weight, vocabulary
        self._wide = torch.promote_types(states.dtype, torch.float32)
        self._learns_weight = learnt[1]
        self.states = torch.empty_like(states) if learnt[0] else None
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        if bias is not None and learnt[2]:
            self.bias = torch.zeros_like(bias, dtype=self._wide)

    def add(self, rows: slice, grad: Tensor) -> None:
        """Take up the gradient (n, V) of the products of these rows; the first begin at 0."""
        if self.states is not None:
            torch.mm(grad, self._weight_in[: self._v], out=self.states[rows])
        if self._learns_weight:
            self._add_weight(rows, grad)
        if self.bias is not None:
            self.bias[: self._v] += grad.sum(0, dtype=self._wide)

    def _add_weight(self, rows: slice, grad: Tensor) -> None:
        states, first = self._states_in[rows], rows.start == 0
        if self.weight is None:
            only = len(states) == len(self._states_in)
            self.weight = torch.empty_like(
                self._weight_in, dtype=grad.dtype if only else self._wide
            )
            self.weight[self._v :] = 0
        total = self.weight[: self._v]
        if total.dtype != grad.dtype:
            for part in _slices(0, self._v, _SLICE):
                product = grad[:, part].t() @ states
                total[part] = product if first else total[part] + product
        elif first:
            torch.mm(grad.t(), states, out=total)
        else:
            total.addmm_(grad.t(), states)


_kept: dict[tuple[str, torch.dtype], Tensor] = {}


def _scratch(owner: str, like: Tensor, size: int) -> Tensor:
    """Uninitialised memory for `size` numbers.

    On a CPU it is the same in every call: the first touch of fresh pages costs several times as
    much as a pass over them. So one call at a time in a process.
    """
    if like.device.type != "cpu":
        return like.new_empty(size)
    key = (owner, like.dtype)
    if key not in _kept or len(_kept[key]) < size:
        _kept.pop(key, None)
        with torch.inference_mode(False):  # else it could not be written to outside of it
            _kept[key] = like.new_empty(size)
    return _kept[key][:size]


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))


def _blame(teacher: _Logits, tokens: int, chunk: int) -> None:
    """Raise TargetError if a loss that is no number is the teacher's doing."""
    for rows in _slices(0, tokens, chunk):
        teacher.project(rows)
        bad = ~teacher.chunk.isfinite().all(-1)
        if bad.any():
            raise TargetError(rows.start + int(bad.nonzero()[0]), "has a logit that is no number")
