"""Before the first step: training's loss, held to a float64 oracle on the user's own batch.

The oracle shares no code with the path. Each example goes through the network alone and unpacked,
by the network's own forward pass; shift, mask, normaliser and divergence are then written out once
more, position by position, in float64 (`oracle`). Where the two differ, known mistakes are tried,
and the one that explains the difference is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch
from torch import Tensor

from limbeck.collect.packing import unpacked
from limbeck.errors import GateError
from limbeck.models.local import LocalModel
from limbeck.models.outcomes import dense_targets
from limbeck.records import Example, Targets
from limbeck.train.oracle import Alone, Rule, mistakes, token_losses

Step: TypeAlias = Callable[[Sequence[Sequence[Example]]], tuple[float, Tensor | None]]
"""The training path: the micro-batches of one optimizer step to its loss, in nats a learnt token,
and the gradient with respect to `lever(network)`; None where it cannot tell that."""

EXAMPLES, LEARNT = 2, 16  # take part: at most so many examples, and learnt tokens of the first


@dataclass(frozen=True, slots=True)
class _Bounds:
    """How far two correct computations may be apart: relative, and in nats a token."""

    loss: float
    floor: float
    gradient: float

    def same(self, told: float, wanted: float) -> bool:
        return abs(told - wanted) <= self.loss * abs(wanted) + self.floor


_EXACT = _Bounds(loss=1e-4, floor=1e-5, gradient=1e-3)
_ROUGH = _Bounds(loss=2e-2, floor=1e-2, gradient=0.2)  # 8 bits of mantissa, through a whole network


def lever(network: Any) -> str:
    """The parameter that gradients are compared by: the last learnt one that every state passes."""
    last = [p for p in network.base_model.parameters() if p.requires_grad][-1]
    return next(name for name, parameter in network.named_parameters() if parameter is last)


def check(
    network: Any, examples: Sequence[Example], step: Step, rule: Rule, vocabulary: int
) -> float:
    """Hold the training path `step` to the oracle on a few of `examples`.

    Each example is stepped on alone, which shows divergence, mask and shift; then all packed in one
    micro-batch, and each in a micro-batch of its own, which shows packing and normaliser.

    Args:
        network: in the dtype that it trains in. Gradients that `step` leaves are the caller's.
        examples: the first micro-batch; at most `EXAMPLES` of them take part, cut to `LEARNT`
            and fewer.
        step: the training path.
        rule: what the loss is meant to be.
        vocabulary: how many logits count; rows that only pad the weights are cut.

    Returns:
        The largest relative difference of a loss.

    Raises:
        GateError: names what is wrong: mask, shift, normaliser, divergence, packing or gradient.
    """
    few = [e for e in examples if e.loss_mask[1:].any()][:EXAMPLES]
    few = [_cut(e, LEARNT // n) for n, e in enumerate(few, 1)]  # of unlike lengths, as steps are
    training, dtype = network.training, next(network.parameters()).dtype
    bounds = _EXACT if dtype in (torch.float32, torch.float64) else _ROUGH
    network.eval()
    try:
        singly = [step([[e]])[0] for e in few]
        packed, apart = step([few]), step([[e] for e in few])
        alone, sums, slope = _expected(network, few, rule, vocabulary)
    finally:
        network.train(training)
    counts = [len(one.learnt) for one in alone]
    wanted = [s / n for s, n in zip(sums, counts, strict=True)]
    mean = sum(sums) / sum(counts)
    _compare_alone(singly, wanted, alone, rule, bounds)
    _compare_packed(packed[0], mean, counts, bounds)
    _compare_apart(apart[0], mean, wanted, bounds)
    for _, gradient in (packed, apart):
        if gradient is not None:
            _compare_gradient(gradient, slope / sum(counts), sum(counts), mean, bounds)
    told, right = [*singly, packed[0], apart[0]], [*wanted, mean, mean]
    return max(abs(a - b) / max(abs(b), bounds.floor) for a, b in zip(told, right, strict=True))


@torch.no_grad()
def with_teacher(
    examples: Sequence[Example], teacher: LocalModel, temperature: float
) -> list[Example]:
    """The examples that will take part, with the whole distribution of a teacher at hand.

    It reads each alone and unpacked. Only the tokens that will take part have targets.
    """
    told: list[Example] = []
    for example in examples[:EXAMPLES]:
        at = np.flatnonzero(example.loss_mask)[:LEARNT]
        ids = torch.from_numpy(example.token_ids)[None].to(teacher.network.device)
        logits = teacher.network(input_ids=ids, use_cache=False).logits[0, at - 1]
        rows = dense_targets(logits[:, : teacher.head.vocabulary].double().cpu(), temperature)
        top_ids, logprobs, tail = (t.numpy() for t in rows)
        none = np.zeros((len(at), 0), np.int64)
        targets = Targets(
            example.answer_id, example.token_ids[at], top_ids, logprobs, tail, none, tail,
            temperature, teacher.tokenizer.hash,
        )  # fmt: skip
        told.append(replace(example, targets=targets))
    return told


def _cut(example: Example, learnt: int) -> Example:
    """The example up to its `learnt`-th learnt token, its targets unpacked and cut alike."""
    at = np.flatnonzero(example.loss_mask)[:learnt]
    end, told = int(at[-1]) + 1, example.targets
    if told is not None:
        told = unpacked(told)
        rows = {f.name: getattr(told, f.name) for f in fields(told)}
        arrays = {k: v[:learnt] for k, v in rows.items() if isinstance(v, np.ndarray)}
        told = replace(told, **arrays)
    ids, mask = example.token_ids[:end], example.loss_mask[:end]
    return replace(example, token_ids=ids, loss_mask=mask, targets=told)


def _expected(
    network: Any, examples: Sequence[Example], rule: Rule, vocabulary: int
) -> tuple[list[Alone], list[float], Tensor]:
    """The examples alone, the sum of each one's loss, and the gradient of all these sums."""
    parameter = network.get_parameter(lever(network))
    found: list[Alone] = []
    sums: list[float] = []
    slope = torch.zeros_like(parameter, dtype=torch.float64)
    for example in examples:
        one = _alone(network, example, vocabulary)
        loss = token_losses(one, rule).sum()
        slope += torch.autograd.grad(loss, parameter)[0]
        found.append(replace(one, logits=one.logits.detach()))
        sums.append(loss.item())
    return found, sums, slope.cpu()


def _alone(network: Any, example: Example, vocabulary: int) -> Alone:
    """The example with the logits around its learnt tokens, by a forward pass of its own."""
    learnt = [t for t in range(1, len(example.token_ids)) if example.loss_mask[t]]
    states = sorted({s for t in learnt for s in (t - 2, t - 1, t) if s >= 0})
    here = next(network.parameters()).device
    ids = torch.tensor(example.token_ids.tolist(), device=here)[None]
    out = network(input_ids=ids, use_cache=False, logits_to_keep=torch.tensor(states, device=here))
    logits = out.logits[0, :, :vocabulary].double().cpu()
    return Alone(example, learnt, {s: row for row, s in enumerate(states)}, logits)


def _compare_alone(
    told: Sequence[float],
    wanted: Sequence[float],
    alone: Sequence[Alone],
    rule: Rule,
    bounds: _Bounds,
) -> None:
    pairs = list(zip(told, wanted, strict=True))
    if all(bounds.same(*pair) for pair in pairs):
        return
    name = "divergence, mask or shift: no known mistake explains it"
    for what, losses in mistakes(rule):
        if all(bounds.same(t, losses(one)) for t, one in zip(told, alone, strict=True)):
            name = what
            break
    worst = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
    _refuse(name, *worst, "an example alone")


def _compare_packed(told: float, wanted: float, counts: Sequence[int], bounds: _Bounds) -> None:
    if bounds.same(told, wanted):
        return
    name = "packing: examples that share a row see one another"
    for factor, what in ((len(counts), "multiplied"), (1 / len(counts), "divided")):
        if bounds.same(told, wanted * factor):
            name = f"normaliser: the loss is {what} by the number of examples"
    _refuse(name, told, wanted, f"{len(counts)} examples in one micro-batch")


def _compare_apart(told: float, wanted: float, means: Sequence[float], bounds: _Bounds) -> None:
    if bounds.same(told, wanted):
        return
    name = "normaliser: micro-batches do not add up to the step"
    if bounds.same(told, sum(means) / len(means)):
        name = "normaliser: micro-batches count alike, however many tokens each has to learn"
    elif bounds.same(told, sum(means)):
        name = "normaliser: each micro-batch is a mean of its own, and the means are added up"
    _refuse(name, told, wanted, f"{len(means)} micro-batches of one example")


def _compare_gradient(
    told: Tensor, wanted: Tensor, learnt: int, loss: float, bounds: _Bounds
) -> None:
    told, size = told.double().cpu(), wanted.norm().item()
    if abs(loss) <= 10 * bounds.floor or (told - wanted).norm().item() <= bounds.gradient * size:
        return
    ratio = (told @ wanted).item() / size**2
    name = "gradient: it is not the one of this loss"
    if (told - ratio * wanted).norm().item() <= bounds.gradient * abs(ratio) * size:
        name = f"gradient: {ratio:.4g} times what this loss has"
        for factor, what in ((1 / learnt, "divided by"), (learnt, "multiplied by")):
            if math.isclose(ratio, factor, rel_tol=2 * bounds.gradient):
                name = f"normaliser: the gradient is once more {what} the number of learnt tokens"
    _refuse(name, told.norm().item(), size, "the norm of a gradient")


def _refuse(name: str, told: float, wanted: float, where: str) -> NoReturn:
    raise GateError(
        f"Self-check failed before the first step: {name}. On {where} training makes it "
        f"{told:.6g} where float64 makes it {wanted:.6g}. Nothing was trained. This is a fault of "
        "limbeck or of a library under it, not of your data: please report it with this line."
    )
