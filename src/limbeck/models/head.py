"""From hidden states to logits, only where they are wanted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.errors import InputError


class Head:
    """The network's body and its output head, apart, so that logits are made only where needed.

    Calling `lm_head` alone loses what some architectures do to the logits afterwards, a soft cap
    or a scale. Both are applied here, and the whole is held to the network's own forward pass
    once, on loading. V is the tokenizer's vocabulary: rows that only pad the weights are cut.
    """

    def __init__(self, network: Any, vocabulary: int) -> None:
        config = network.config.get_text_config()
        self.body: Any = network.base_model
        self.project: Any = network.get_output_embeddings()
        self.vocabulary = min(vocabulary, int(self.project.weight.shape[0]))
        self.cap = getattr(config, "final_logit_softcapping", None)
        divided = getattr(config, "logits_scaling", None)
        self.scale = 1 / divided if divided else getattr(config, "logit_scale", None)
        self._check(network)

    def __call__(self, states: Tensor) -> Tensor:
        """Logits (N, V) from final hidden states (N, hidden)."""
        logits = self.project(states)[:, : self.vocabulary]
        if self.scale is not None:
            logits = logits * self.scale
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits

    @torch.no_grad()
    def _check(self, network: Any) -> None:
        ids = torch.arange(8, device=self.project.weight.device)[None] % self.vocabulary
        theirs = network(input_ids=ids, use_cache=False).logits[0, :, : self.vocabulary].float()
        ours = self(self.body(input_ids=ids, use_cache=False).last_hidden_state[0]).float()
        gap = (ours - theirs).abs().max().item()
        if not gap <= 0.05 * theirs.abs().max().item() + 1e-3:
            name = type(network).__name__
            raise InputError(
                f"{name} does something to its logits that limbeck does not know (they differ by "
                f"{gap:.3g}), so its distribution would be wrong. Use another architecture."
            )
