"""`torch.compile`, a decoder layer at a time, where it works."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from limbeck import ranks
from limbeck.errors import first_line
from limbeck.models.local import device
from limbeck.progress import say
from limbeck.train.batch import Batch


def compile_layers(body: Any, batch: Batch, dtype: torch.dtype) -> bool:
    """Compile the layers of a body in place for batches of any shape; whether that was done.

    A copy of the first one is tried on `batch` beforehand, forward and backward, in `dtype` on
    `device()`. Where that fails on any rank, all ranks go on uncompiled, and the reason is said.
    """
    reason = _try(body, batch, dtype)
    (failed,) = ranks.total([reason is not None])
    if failed:
        say(f"{'compile':>9}  not compiled: {reason or 'it failed on another rank'}")
        return False
    for layer in body.layers:
        layer.compile(dynamic=True)
    return True


def _try(body: Any, batch: Batch, dtype: torch.dtype) -> str | None:
    """Why a layer cannot be compiled; None where it can."""
    given: list[tuple[Any, Any]] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        given.append((args, kwargs))

    hook = body.layers[0].register_forward_pre_hook(note, with_kwargs=True)
    here = next(body.parameters()).device
    with torch.no_grad(), hook:
        body(
            input_ids=batch.token_ids.to(here),
            attention_mask=batch.visible.to(here),
            position_ids=batch.positions.to(here),
            use_cache=False,
        )

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device(), dtype if value.is_floating_point() else None)

    args, kwargs = tree_map(placed, given[0])
    layer = copy.deepcopy(body.layers[0]).to(device(), dtype)
    try:
        layer.compile(dynamic=True)
        layer(*args, **kwargs).sum().backward()
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None
