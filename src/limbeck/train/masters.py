"""Float32 master weights with AdamW, behind a network that may compute in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.recipe import TrainSection


class Masters:
    """The weights that the optimizer moves.

    In float32 the network's own parameters are the masters. In bfloat16 each has a float32 copy:
    gradients are added up there micro-batch by micro-batch, and after a step the network gets the
    masters rounded, so that small updates are not lost to rounding.
    """

    def __init__(self, network: torch.nn.Module, section: TrainSection, dtype: torch.dtype) -> None:
        self.names = [name for name, _ in network.named_parameters()]
        self._live = list(network.parameters())
        self._apart = dtype != torch.float32
        if self._apart:
            self._masters = [p.detach().clone().float() for p in self._live]
            network.to(dtype)
        else:
            self._masters = self._live
        decayed = [m for m in self._masters if m.ndim >= 2]
        kept = [m for m in self._masters if m.ndim < 2]
        self._clip = section.clip
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": section.weight_decay},
                {"params": kept, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95),
            eps=1e-8,
            fused=True,
        )

    def gather(self) -> None:
        """Add this micro-batch's gradients to the masters'; nothing to do in float32."""
        if not self._apart:
            return
        for live, master in zip(self._live, self._masters, strict=True):
            if live.grad is None:
                continue
            if master.grad is None:
                master.grad = live.grad.float()
            else:
                master.grad += live.grad
            live.grad = None

    def take_gradient(self, name: str) -> Tensor:
        """The gradient of one parameter, whole, as it was gathered; all gradients are dropped."""
        gradient = self._masters[self.names.index(name)].grad
        assert gradient is not None, "every parameter takes part"
        self.optimizer.zero_grad()
        return gradient

    def step(self, learning_rate: float) -> float:
        """Clip, move the masters, hand them to the network; the gradient's norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self._masters, self._clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._hand_over()
        return float(norm)

    def state(self) -> dict[str, Tensor]:
        """Masters and moments as named float32 tensors."""
        tensors: dict[str, Tensor] = {}
        for name, master in zip(self.names, self._masters, strict=True):
            tensors[f"master.{name}"] = master.detach()
            for key, value in self.optimizer.state.get(master, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for name, master in zip(self.names, self._masters, strict=True):
            master.copy_(tensors[f"master.{name}"])
            moments: dict[str, Any] = {
                key: tensors[f"{key}.{name}"].clone()
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}.{name}" in tensors
            }
            if moments:
                self.optimizer.state[master] = moments
        self._hand_over()

    @torch.no_grad()
    def _hand_over(self) -> None:
        if self._apart:
            for live, master in zip(self._live, self._masters, strict=True):
                live.copy_(master)
