"""Students and teachers as bare heads with states, and a dense float64 oracle of their losses."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.models.head import Head
from limbeck.models.outcomes import sparse_targets
from limbeck.recipe import Divergence
from limbeck.train.fused import Fused, Live, Sparse, fused_loss


def head_of(weight: Tensor, bias: Tensor | None = None, **changes: Any) -> Head:
    """A head without its network."""
    made = Head.__new__(Head)
    made.project = torch.nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    made.project.weight = torch.nn.Parameter(weight.clone())
    if bias is not None:
        made.project.bias = torch.nn.Parameter(bias.clone())
    made.vocabulary, made.cap, made.scale = len(weight), None, None
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def cast(head: Head, dtype: torch.dtype) -> Head:
    bias = None if head.project.bias is None else head.project.bias.detach().to(dtype)
    changes = {"vocabulary": head.vocabulary, "cap": head.cap, "scale": head.scale}
    return head_of(head.project.weight.detach().to(dtype), bias, **changes)


class Case(NamedTuple):
    """A student and a teacher, in float64."""

    states: Tensor
    head: Head
    teacher: Live
    k: int
    samples: int
    temperature: float = 1.0
    beta: float = 0.5
    skew: float = 0.1
    text_weight: float = 0.0

    def logits(self) -> Tensor:
        """The teacher's (N, V), in float64 whatever its own dtype."""
        states, head = self.teacher.states.double(), cast(self.teacher.head, torch.float64)
        return head(states).detach()

    @property
    def labels(self) -> Tensor:
        """Drawn by the teacher, as a text is."""
        draw = torch.Generator().manual_seed(1)
        return self.logits().softmax(-1).multinomial(1, generator=draw)[:, 0]

    def options(self, **changes: Any) -> dict[str, Any]:
        names = ("temperature", "beta", "skew", "text_weight")
        return (
            {n: getattr(self, n) for n in names}
            | {"labels": self.labels, "normaliser": 7.0}
            | changes
        )

    def targets(self, of: str) -> Sparse | Live:
        if of == "live":
            return self.teacher
        logits = self.logits()
        top_ids, logprobs, tail = sparse_targets(logits, self.k, self.temperature)
        if of == "sparse" or self.k == logits.shape[1]:
            return Sparse(top_ids, logprobs, tail)
        p = (logits / self.temperature).softmax(-1).scatter(-1, top_ids, 0.0)
        drawn = p.multinomial(self.samples, True, generator=torch.Generator().manual_seed(0))
        return Sparse(top_ids, logprobs, tail, drawn, torch.special.entr(p).sum(-1))

    def to(self, dtype: torch.dtype) -> Case:
        live = Live(self.teacher.states.to(dtype), cast(self.teacher.head, dtype))
        states = self.states.detach().to(dtype).requires_grad_(self.states.requires_grad)
        return self._replace(states=states, head=cast(self.head, dtype), teacher=live)


def case_of(
    n: int = 5, v: int = 12, h: int = 4, *, seed: int = 0, spread: float = 1.0, **changes: Any
) -> Case:
    """The student's logits have standard deviation 2, and so has their distance to the teacher's
    (times `spread`)."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int, by: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64) * by

    weight, wide = normal(v, h, by=2 / h**0.5), h + 3
    bias = normal(v) if changes.pop("bias", False) else None
    padding = changes.pop("padding", 0)
    head = head_of(torch.cat([weight, normal(padding, h)]), bias, vocabulary=v)
    if bias is not None:
        head.project.bias = torch.nn.Parameter(torch.cat([bias, normal(padding)]))
    head.cap, head.scale = changes.pop("cap", None), changes.pop("scale", None)
    states, other = normal(n, h).requires_grad_(), normal(n, wide)
    near = torch.cat([states.detach(), spread * other[:, h:]], -1)
    theirs = head_of(torch.cat([weight, normal(v, 3, by=2 / 3**0.5)], -1))
    base = Case(states, head, Live(near, theirs), min(3, v), 4)
    return base._replace(**changes)


def single(kind: str, p: Tensor, q: Tensor, beta: float, skew: float, bucket: bool) -> Tensor:
    """A divergence (N,) of explicit distributions (N, M) from its definition, by autograd."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a.log() - b.log())).sum(-1)

    match kind:
        case "forward_kl":
            return kl(p, q)
        case "reverse_kl":
            return kl(q, p)
        case "jsd":
            m = beta * p + (1 - beta) * q
            return beta * kl(p, m) + (1 - beta) * kl(q, m)
        case "skew_kl":
            return kl(p, skew * p + (1 - skew) * q)
        case "skew_reverse_kl":
            return kl(q, (1 - skew) * p + skew * q)
        case "tvd":
            return (p - q).abs().sum(-1) / 2
        case _:
            gap = (p - q).abs().detach()
            tokens = p[:, :-1] if bucket else p
            order = tokens.argsort(-1, descending=True)
            before = tokens.gather(-1, order).cumsum(-1).roll(1, -1)
            before[:, 0] = 0
            head = (gap.gather(-1, order) * (before < 0.5)).sum(-1)
            w = head / gap.sum(-1)
            return w * kl(p, q) + (1 - w) * kl(q, p)


def oracle(case: Case, kind: Divergence | None, of: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Losses, forward KLs and the gradients of their sum over 7, dense and in float64."""
    case = case.to(torch.float64)
    logits = case.head(case.states)
    text = -logits.log_softmax(-1).gather(-1, case.labels[:, None])[:, 0]
    parameters = [case.states, *case.head.project.parameters()]
    if kind is None:
        return text, 0 * text, list(torch.autograd.grad(text.sum() / 7, parameters))
    targets = case.targets(of)
    q = (logits / case.temperature).softmax(-1)
    p = (case.teacher.head(case.teacher.states).detach() / case.temperature).softmax(-1)
    inside: Any = 0.0
    bucket = isinstance(targets, Sparse) and case.k < logits.shape[1]
    if isinstance(targets, Sparse):
        ids = targets.top_ids
        if bucket and kind == "forward_kl" and targets.tail_ids is not None:
            rest = q.scatter(-1, ids, 0).sum(-1, keepdim=True)
            ratio = (rest / q.gather(-1, targets.tail_ids)).log().mean(-1)
            assert targets.tail_entropy is not None
            inside = targets.tail * (ratio - targets.tail.log()) - targets.tail_entropy
        p, q = (
            (
                torch.cat([x.gather(-1, ids), x.scatter(-1, ids, 0).sum(-1, keepdim=True)], -1)
                for x in (p, q)
            )
            if bucket
            else (p.gather(-1, ids), q.gather(-1, ids))
        )
    value = single(kind, p, q, case.beta, case.skew, bucket) + inside
    kls = single("forward_kl", p, q, 0, 0, bucket) + inside
    value = value * case.temperature ** (1 if kind == "tvd" else 2) + case.text_weight * text
    return value, kls, list(torch.autograd.grad(value.sum() / 7, parameters))


def grads_of(case: Case) -> list[Tensor]:
    found = [case.states.grad, *(p.grad for p in case.head.project.parameters())]
    return [g for g in found if g is not None]


def learn(case: Case, kind: Divergence | None, of: str, **options: Any) -> Fused:
    """The fused loss, with its gradients left in the case."""
    for one in (case.states, *case.head.project.parameters()):
        one.grad = None
    out = fused_loss(case.states, case.head, case.targets(of), kind, **case.options(**options))
    out.total.backward()
    return out


def gap(found: Tensor, expected: Tensor, least: float = 0.05) -> float:
    """Relative to the size of the expected, which counts as `least` at least."""
    return ((found.double() - expected).norm() / expected.norm().clamp_min(least)).item()
