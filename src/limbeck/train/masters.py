"""Float32 master weights with AdamW, behind a network that may compute in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from limbeck.recipe import TrainSection


class Masters:
    """The weights that the optimizer moves: those of the network that need a gradient.

    In float32 the network's own parameters are the masters. In bfloat16 each has a float32 copy:
    gradients are added up there micro-batch by micro-batch, and after a step the network gets the
    masters rounded, so that small updates are not lost to rounding. Of a network that is sharded
    over ranks these are the parts that lie here, in float32 always: there FSDP does the rounding.
    """

    def __init__(self, network: torch.nn.Module, section: TrainSection, dtype: torch.dtype) -> None:
        learnt = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in learnt]
        self._live = [p for _, p in learnt]
        sharded = any(isinstance(p, DTensor) for p in self._live)
        self._apart = dtype != torch.float32 and not sharded
        if self._apart:
            self._masters = [p.detach().clone().float() for p in self._live]
            round_parameters(network, dtype)
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
        for master in self._masters:  # as AdamW begins, so that a state can be loaded into it
            self.optimizer.state[master] = {
                "step": torch.zeros((), device=master.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }

    def gather(self) -> None:
        """Add this micro-batch's gradients to the masters'; nothing to do where they are one."""
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
        self.forget()
        return _whole(gradient)

    def forget(self) -> None:
        """Drop the gradients that were gathered so far."""
        for parameter in (*self._live, *self._masters):
            parameter.grad = None

    def step(self, learning_rate: float) -> float:
        """Clip, move the masters, hand them to the network; the gradient's norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self._masters, self._clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.hand_over()
        return float(_whole(norm))

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name, themselves and no copies: what is loaded into them counts.

        After loading, `hand_over` brings it to the network.
        """
        tensors: dict[str, Tensor] = {}
        for name, master in zip(self.names, self._masters, strict=True):
            tensors[f"master.{name}"] = master.detach()
            for key, value in self.optimizer.state[master].items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Name and master one after another, gathered from all ranks: all of them must ask."""
        for name, master in zip(self.names, self._masters, strict=True):
            yield name, _whole(master.detach())

    @torch.no_grad()
    def hand_over(self) -> None:
        """Give the masters, rounded, to the network."""
        if self._apart:
            for live, master in zip(self._live, self._masters, strict=True):
                live.copy_(master)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def round_parameters(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Round the weights in place; buffers, such as rotary frequencies, stay as a loaded model's."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
