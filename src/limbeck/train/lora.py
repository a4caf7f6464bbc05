"""Low-rank adapters (LoRA, arXiv 2106.09685) by peft: a large student that learns few weights."""

from __future__ import annotations

from typing import Any

from limbeck.errors import extra

_NAME = "default"


def add_adapters(network: Any, rank: int) -> Any:
    """Put an adapter of this rank beside every linear layer but the head, in place.

    All other weights are frozen. An adapter's share is scaled by alpha / rank = 2. Returns what
    `merge_adapters` takes. Raises InputError where peft is not installed.
    """
    with extra("lora"):
        from peft import LoraConfig, LoraModel
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    return LoraModel(network, config, _NAME)


def merge_adapters(adapted: Any) -> Any:
    """The network with its adapters added into the weights: an ordinary one again."""
    return adapted.merge_and_unload()
