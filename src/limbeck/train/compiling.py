"""`torch.compile`, a decoder layer at a time, where it works."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from limbeck import ranks
from limbeck.errors import first_line
from limbeck.progress import say
from limbeck.train.batch import Batch


def compile_layers(body: Any, batch: Batch, dtype: torch.dtype) -> None:
    """Compile the layers of a body in place for batches of any shape, or say why not.

    A copy of the first one is tried on `batch` beforehand, forward and backward, in `dtype`.
    """
    several = ranks.world() > 1
    if reason := "several processes share the layers" if several else _try(body, batch, dtype):
        say(f"{'compile':>9}  not compiled: {reason}")
        return
    for layer in body.layers:
        layer.compile(dynamic=True)


def _try(body: Any, batch: Batch, dtype: torch.dtype) -> str | None:
    """Why a layer cannot be compiled; None where it can."""
    given: list[tuple[Any, Any]] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        given.append((args, kwargs))

    hook = body.layers[0].register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad(), hook:
        body(
            input_ids=batch.token_ids,
            attention_mask=batch.visible,
            position_ids=batch.positions,
            use_cache=False,
        )

    def rounded(value: Any) -> Any:
        narrow = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if narrow else value

    args, kwargs = tree_map(rounded, given[0])
    layer = copy.deepcopy(body.layers[0]).to(dtype)
    try:
        layer.compile(dynamic=True)
        layer(*args, **kwargs).sum().backward()
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None
