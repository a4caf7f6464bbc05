"""What training's loss should be, naively in float64, and what known mistakes would make of it.

Written from the equations, token by token, and apart from `train.losses`: it is what that is held
to. Shapes: V vocabulary, K kept a token, M = K + 1 outcomes (K where K = V).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from limbeck.records import Example, Targets

_LEAST = math.log(torch.finfo(torch.float32).tiny)  # a teacher's log-probability counts as no less
KINDS = ("forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd", "adaptive_kl")
Tail: TypeAlias = Literal["kept", "dropped", "renormalised"]
Mistake: TypeAlias = "tuple[str, Callable[[Alone], float]]"


@dataclass(frozen=True, slots=True)
class Rule:
    """What the loss is meant to be; `kind` None is cross-entropy on the text alone."""

    kind: str | None
    beta: float = 0.5
    skew: float = 0.1
    temperature: float = 1.0
    text_weight: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Alone:
    """One example with logits over it alone.

    `learnt` are the positions of its learnt tokens; `row` says which row of `logits` (rows, V),
    float64, is the state at a position.
    """

    example: Example
    learnt: list[int]
    row: Mapping[int, int]
    logits: Tensor


def plain(one: Alone) -> Targets:
    """The example's targets, which were unpacked beforehand."""
    if not isinstance(one.example.targets, Targets):
        raise ValueError("a divergence needs targets, unpacked")
    return one.example.targets


def token_losses(
    one: Alone,
    rule: Rule,
    *,
    state: int = -1,
    target: int = 0,
    tail: Tail = "kept",
    scale: float | None = None,
    softened: bool = True,
) -> Tensor:
    """The loss (n,) in nats of each learnt token, by the state before it.

    What makes the known mistakes: the `state` relative to the token; which `target` row relative
    to its own; what becomes of the teacher's `tail`; `scale` in place of temperature² (T for total
    variation); whether the student is `softened` by the temperature. A token whose state or row
    does not exist is left out.
    """
    losses: list[Tensor] = []
    t = rule.temperature
    factor = (t if rule.kind == "tvd" else t * t) if scale is None else scale
    for number, position in enumerate(one.learnt):
        at, told = one.row.get(position + state), number + target
        if at is None or not 0 <= told < len(one.learnt):
            continue
        logits = one.logits[at]
        text = -logits.log_softmax(-1)[int(one.example.token_ids[position])]
        if rule.kind is None:
            losses.append(text)
            continue
        logits = logits / (t if softened else 1.0)
        log_p, log_q = _outcomes(one, told, logits, tail)
        value = divergence(log_p, log_q, rule, _kept(one))
        if rule.kind == "forward_kl" and tail == "kept":
            value = value + _within_tail(one, told, logits)
        losses.append(factor * value + rule.text_weight * text)
    return torch.stack(losses) if losses else one.logits.new_zeros(0)


def _outcomes(one: Alone, number: int, logits: Tensor, tail: Tail) -> tuple[Tensor, Tensor]:
    """Both sides' log-probabilities (M,): the kept tokens and, last, all others."""
    targets = plain(one)
    kept = [int(i) for i in targets.top_ids[number]]
    log_p = torch.tensor(targets.logprobs[number].tolist(), dtype=torch.float64)
    log_all = logits.log_softmax(-1)
    log_q = log_all[kept]
    others = torch.ones(len(logits), dtype=torch.bool)
    others[kept] = False
    if tail == "renormalised":
        return log_p.log_softmax(-1), log_q.log_softmax(-1)
    if tail == "kept" and others.any():
        rest = torch.tensor([float(targets.tail[number])], dtype=torch.float64).log()
        log_p = torch.cat([log_p, rest])
        log_q = torch.cat([log_q, log_all[others].logsumexp(-1)[None]])
    return log_p.clamp_min(_LEAST), log_q


def _within_tail(one: Alone, number: int, logits: Tensor) -> Tensor | float:
    """What the tokens drawn from the tail say of the KL inside it; 0 where none were drawn.

    Over the tail's tokens Σ p·log(p/q) is −tail_entropy − Σ p·log q, the last estimated from the
    S draws j as −tail/S·Σ log q_j; what the tail counted for as one outcome is taken off again.
    """
    targets = plain(one)
    drawn = [int(i) for i in targets.tail_ids[number]]
    if not drawn:
        return 0.0
    kept = [int(i) for i in targets.top_ids[number]]
    tail, entropy = float(targets.tail[number]), float(targets.tail_entropy[number])
    log_all = logits.log_softmax(-1)
    others = torch.ones(len(logits), dtype=torch.bool)
    others[kept] = False
    bucket = tail * (math.log(tail) - log_all[others].logsumexp(-1)) if tail else 0.0
    return -entropy - tail / len(drawn) * log_all[drawn].sum() - bucket


def divergence(log_p: Tensor, log_q: Tensor, rule: Rule, tokens: int) -> Tensor:
    """The divergence, in nats, of the student q from the teacher p over M outcomes.

    The first `tokens` outcomes are single tokens. Sources: JSD Agarwal et al., arXiv 2306.13649;
    skew DistiLLM, arXiv 2402.03898; adaptive Wu et al., arXiv 2404.02657, section 4.
    """
    match rule.kind:
        case "forward_kl":
            return _kl(log_p, log_q)
        case "reverse_kl":
            return _kl(log_q, log_p)
        case "jsd":
            log_m = _mixed(log_p, log_q, rule.beta)
            return rule.beta * _kl(log_p, log_m) + (1 - rule.beta) * _kl(log_q, log_m)
        case "skew_kl":
            return _kl(log_p, _mixed(log_p, log_q, rule.skew))
        case "skew_reverse_kl":
            return _kl(log_q, _mixed(log_q, log_p, rule.skew))
        case "tvd":
            return (log_p.exp() - log_q.exp()).abs().sum() / 2
        case "adaptive_kl":
            share = _head_share(log_p, log_q, tokens)
            return share * _kl(log_p, log_q) + (1 - share) * _kl(log_q, log_p)
        case _:
            raise ValueError(f"the oracle knows no divergence {rule.kind!r}")


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """The generalised KL: the added b − a is 0 between distributions, and tells a lost outcome."""
    a, b = log_a.exp(), log_b.exp()
    return (a * (log_a - log_b) + b - a).sum()


def _head_share(log_p: Tensor, log_q: Tensor, tokens: int) -> float:
    """The share of Σ|p − q| over the fewest likeliest tokens that hold half of p."""
    gap = (log_p.exp() - log_q.exp()).abs().tolist()
    mass, head = 0.0, 0.0
    for i in log_p[:tokens].argsort(descending=True).tolist():
        mass, head = mass + math.exp(log_p[i].item()), head + gap[i]
        if mass >= 0.5:
            break
    return head / sum(gap) if sum(gap) else 0.0


def _mixed(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    if share == 0:
        return log_b
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def mistakes(rule: Rule) -> Iterator[Mistake]:
    """Known mistakes, each by its name and the loss a learnt token that it makes of an example."""
    yield from _of_the_normaliser(rule)
    yield from _of_mask_and_shift(rule)
    if rule.kind is not None:
        yield from _of_the_divergence(rule, rule.kind)


def _of_the_normaliser(rule: Rule) -> Iterator[Mistake]:
    ratios: dict[str, Callable[[Alone], float]] = {
        "divided twice by the number of learnt tokens": lambda one: 1 / len(one.learnt),
        "a sum over learnt tokens, not their mean": lambda one: len(one.learnt),
        "divided by all tokens, not by the learnt ones": _share_learnt,
        "divided by the vocabulary too": lambda one: 1 / one.logits.shape[1],
    }
    if rule.kind is not None:
        ratios["divided by the kept tokens too"] = lambda one: 1 / _kept(one)
    for what, ratio in ratios.items():
        yield f"normaliser: {what}", lambda one, r=ratio: r(one) * _mean(token_losses(one, rule))


def _share_learnt(one: Alone) -> float:
    return len(one.learnt) / len(one.example.token_ids)


def _kept(one: Alone) -> int:
    return 1 if one.example.targets is None else plain(one).top_ids.shape[1]


def _of_mask_and_shift(rule: Rule) -> Iterator[Mistake]:
    for state, what in ((0, "to the token it stands on, not to the next"), (-2, "two tokens on")):
        name = f"shift: a state is held {what}"
        yield name, lambda one, s=state: _mean(token_losses(one, rule, state=s))
    for row, what in ((-1, "before"), (1, "after")):
        name = f"shift: a token is held to the teacher's row {what} its own"
        yield name, lambda one, r=row: _mean(token_losses(one, rule, target=r))
    for part, what in ((slice(1, None), "first"), (slice(None, -1), "last")):
        name = f"mask: the {what} learnt token of an answer is left out"
        yield name, lambda one, p=part: _mean(token_losses(one, rule)[p])
        yield name, lambda one, p=part: token_losses(one, rule)[p].sum().item() / len(one.learnt)


def _of_the_divergence(rule: Rule, kind: str) -> Iterator[Mistake]:
    for other in KINDS:
        if other != kind:
            yield _mistake(f"it is {other}, not {kind}", replace(rule, kind=other))
    yield _mistake("beta weighs the wrong side", replace(rule, beta=1 - rule.beta))
    if rule.skew:
        yield _mistake("skew weighs the wrong side", replace(rule, skew=1 - rule.skew))
    yield _mistake("text_weight is ignored", replace(rule, text_weight=0.0))
    yield _mistake("the temperature is ignored", rule, softened=False)
    yield _mistake("the temperature is ignored", rule, softened=False, scale=1.0)
    yield _mistake("its temperature factor is missing", rule, scale=1.0)
    yield _mistake("the teacher's tail is dropped", rule, tail="dropped")
    yield _mistake("both sides are renormalised over the kept tokens", rule, tail="renormalised")


def _mistake(what: str, rule: Rule, **slips: Any) -> Mistake:
    return f"divergence: {what}", lambda one: _mean(token_losses(one, rule, **slips))


def _mean(losses: Tensor) -> float:
    return losses.mean().item() if len(losses) else math.nan
