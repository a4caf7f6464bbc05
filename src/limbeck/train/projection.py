"""A head's matrix products, a chunk of tokens at a time: to logits, and back to gradients.

Shapes: N tokens, n of them in a chunk or a block, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from limbeck.models.head import Head

_SLICE = 2**13  # rows of the head's gradient that chunks in bfloat16 are added to at once


class Logits:
    """A head's logits, a chunk at a time in one buffer, where their gradient takes their place.

    bfloat16 has 8 bits, so a logit of 20 is off by up to 0.06, and its probability by 6 %. Where
    each row has an anchor, a likely token, the buffer holds the differences from its logit, which
    are small for all likely tokens; a softmax does not see the shift. Where that is not enough,
    `twice` takes the product a second time for what the first lost to rounding.
    """

    def __init__(
        self,
        owner: str,
        states: Tensor,
        head: Head,
        rows: int,
        wide: torch.dtype,
        anchors: Tensor | None,
        twice: bool,
    ) -> None:
        project, v = head.project, head.vocabulary
        self.scale = 1.0 if head.scale is None else head.scale
        self._gain = self.scale / (head.cap or 1.0)
        self._cap, self._wide, self._states = head.cap, wide, states
        self._weight: Tensor = project.weight.detach()[:v]
        self._bias = (
            None if project.bias is None else project.bias.detach()[:v].to(wide) * self._gain
        )
        self._buffer = _scratch(owner, states, rows * v).view(rows, v)
        self._start, self._shift, self._lost, self.chunk = 0, None, None, self._buffer
        self._anchors, self._second = None, None
        if states.dtype != wide:
            self._anchors = None if twice else anchors
            self._second = torch.empty_like(self._buffer) if twice else None

    def project(self, rows: slice) -> None:
        """Make the logits of these rows."""
        self._start, states = rows.start, self._states[rows]
        self.chunk, shift, beta = self._buffer[: len(states)], states.new_empty(1), 0
        if self._anchors is not None:
            likely = self._weight[self._anchors[rows]].to(self._wide)
            logit = (likely * states).sum(-1, keepdim=True) * -self._gain
            shift, beta = logit.to(states.dtype), 1
            self._shift = shift
        weight, gain = self._weight.t(), self._gain
        torch.addmm(shift, states, weight, beta=beta, alpha=gain, out=self.chunk)
        if self._second is not None:
            self._lost = torch.neg(self.chunk, out=self._second[: len(states)])
            self._lost.addmm_(states, weight, alpha=gain)

    def rows(self, some: slice) -> Tensor:
        """Some of them, (n, V) in float32 or float64; in the buffer itself where that has it."""
        z = self._raw(self.chunk, some).to(self._wide)
        if self._lost is not None:
            z += self._raw(self._lost, some)
        if self._bias is not None:
            z += self._bias
        if self._cap is None:
            return z
        if self._shift is not None:
            z -= self._raw(self._shift, some)
        return z.tanh_().mul_(self._cap)

    def steepness(self, z: Tensor) -> Tensor | None:
        """∂z/∂(Wh + b) over `scale`; None where that is 1."""
        return None if self._cap is None else 1 - (z / self._cap).square_()

    def put(self, some: slice, grad: Tensor) -> None:
        """Write the gradient of these rows over them."""
        if grad.dtype != self.chunk.dtype:
            self._raw(self.chunk, some).copy_(grad)

    def _raw(self, chunk: Tensor, some: slice) -> Tensor:
        return chunk[some.start - self._start : some.stop - self._start]


class Gradients:
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
            for part in slices(0, self._v, _SLICE):
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


def slices(start: int, stop: int, size: int) -> Iterator[slice]:
    """`start` to `stop` in slices of at most `size`."""
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))
