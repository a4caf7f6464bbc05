"""A network and what it is to minimise: one module, one forward a micro-batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from limbeck.errors import InputError
from limbeck.models.head import Head
from limbeck.recipe import Divergence, TrainSection
from limbeck.train.batch import Batch
from limbeck.train.losses import cross_entropy, divergence


class Losses(NamedTuple):
    """`total`, the sum of `values` over the normaliser, carries the gradient.

    `values` (N,) the loss and `kls` (N,) the forward KL of each learnt token in nats, detached.
    """

    total: Tensor
    values: Tensor
    kls: Tensor


class Objective(torch.nn.Module):
    """The student's network with its loss.

    All that reads a weight happens in `forward`, so that a sharded network has its weights whole
    there, those of the head too.
    """

    def __init__(self, network: Any, head: Head, section: TrainSection) -> None:
        super().__init__()
        self.network = network
        self._head, self._section = head, section

    def forward(self, batch: Batch, kind: Divergence | None, normaliser: float) -> Losses:
        """The loss of the batch's learnt tokens: a divergence, or where None of the text alone.

        KL is 0 where there is no divergence.
        """
        logits = self._head(self._states(batch))
        if kind is None:
            values = cross_entropy(logits, batch.labels)
            return Losses(values.sum() / normaliser, values.detach(), torch.zeros_like(values))
        values = self._divergence(logits, batch, kind)
        if kind == "forward_kl":
            kls = values.detach()
        else:
            with torch.no_grad():
                kls = self._divergence(logits, batch, "forward_kl")
        if self._section.text_weight:
            values = values + self._section.text_weight * cross_entropy(logits, batch.labels)
        kls = kls / self._section.temperature**2
        return Losses(values.sum() / normaliser, values.detach(), kls)

    def _states(self, batch: Batch) -> Tensor:
        """Final states (N, hidden) that predict the learnt tokens."""
        out = self._head.body(
            input_ids=batch.token_ids,
            attention_mask=batch.visible,
            position_ids=batch.positions,
            use_cache=False,
        )
        return out.last_hidden_state.flatten(0, 1).index_select(0, batch.predicts)

    def _divergence(self, logits: Tensor, batch: Batch, kind: Divergence) -> Tensor:
        if batch.top_ids is None or batch.logprobs is None or batch.tail is None:
            raise InputError("The examples carry no targets; only the text can be learnt from them")
        return divergence(
            logits,
            batch.top_ids,
            batch.logprobs,
            batch.tail,
            kind,
            beta=self._section.beta,
            skew=self._section.skew,
            temperature=self._section.temperature,
        )


def shard(objective: Objective, dtype: torch.dtype) -> None:
    """Share the weights out over all ranks, layer by layer, in place.

    They stay in float32, as the masters that the optimizer moves; each layer is gathered and
    rounded to `dtype` when it computes, and its gradients are summed over the ranks in float32.
    The sum is not divided: the loss is normalised once, over the tokens of all ranks.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in objective.network.base_model.layers:
        fully_shard(layer, mp_policy=policy)
    # What the batch brings, log-probabilities among it, keeps its precision.
    whole = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    fully_shard(objective, mp_policy=whole)
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no sum with a factor
