"""A network and what it is to minimise: one module, one forward a micro-batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from limbeck.errors import InputError
from limbeck.models.head import Head
from limbeck.recipe import Divergence, TrainSection
from limbeck.train.batch import Batch
from limbeck.train.fused import Fused, fused_loss
from limbeck.train.teacher import Live, Sparse


class Objective(torch.nn.Module):
    """The student's network with its loss; `teacher` is the head of one at hand, or None.

    All that reads a weight happens in `forward`, so that a sharded network has its weights whole
    there, those of the head too.
    """

    def __init__(
        self, network: Any, head: Head, section: TrainSection, teacher: Head | None
    ) -> None:
        super().__init__()
        self.network = network
        self.head, self._section, self._teacher = head, section, teacher

    def forward(self, batch: Batch, kind: Divergence | None, normaliser: int) -> Fused:
        """The loss of a packed batch, over `normaliser`; `kind` None learns the text alone."""
        section = self._section
        return fused_loss(
            _states(self.head, batch),
            self.head,
            self._targets(batch) if kind else None,
            kind,
            beta=section.beta,
            skew=section.skew,
            temperature=section.temperature,
            labels=batch.labels,
            text_weight=section.text_weight if kind else 0.0,
            normaliser=normaliser,
        )

    def _targets(self, batch: Batch) -> Sparse | Live:
        if self._teacher is not None:
            with torch.inference_mode():
                return Live(_states(self._teacher, batch), self._teacher)
        if batch.top_ids is None or batch.logprobs is None or batch.tail is None:
            raise InputError("The examples carry no targets; only the text can be learnt from them")
        return Sparse(batch.top_ids, batch.logprobs, batch.tail, batch.tail_ids, batch.tail_entropy)


def _states(head: Head, batch: Batch) -> Tensor:
    """The states (N, hidden) of a model's body that predict the batch's learnt tokens."""
    out = head.body(
        input_ids=batch.token_ids,
        attention_mask=batch.visible,
        position_ids=batch.positions,
        use_cache=False,
    )
    return out.last_hidden_state.flatten(0, 1).index_select(0, batch.predicts)


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
