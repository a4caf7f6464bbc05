"""The sizes of a model by its files' headers alone: no weight is read, nothing heavy loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from limbeck.errors import InputError, first_line
from limbeck.models.weights import Weights, place_of, require_gguf

_LAYER = re.compile(r"(?:^|\.)(?:layers|blk|h|blocks)\.(\d+)\.")
_KEYS: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "d_model", "embedding_length"),
    "inner": ("intermediate_size", "n_inner", "ffn_dim", "feed_forward_length"),
    "heads": ("num_attention_heads", "n_head", "attention.head_count"),
    "kv_heads": ("num_key_value_heads", "attention.head_count_kv"),
    "head_dim": ("head_dim", "attention.key_length"),
    "context": ("max_position_embeddings", "n_positions", "context_length"),
}
_TABLES = re.compile(r"(?:^|\.)(?:embed_tokens|wte|token_embd)\.weight$")


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's sizes; parameters are counted once.

    `inner` is the width of its feed-forward, and `normed` the numbers a token that go through a
    norm in one layer.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    normed: int
    layer_parameters: int
    other_parameters: int

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.layers * self.layer_parameters + self.other_parameters

    def cut(self, layers: int) -> Shape:
        """The same model with so many layers."""
        return replace(self, layers=layers)


def read_shape(weights: Weights, tensors: Mapping[str, tuple[int, ...]] | None = None) -> Shape:
    """The shape of weights, from config.json and safetensors headers or a GGUF's header.

    The header of a GGUF, with its vocabulary, takes seconds to read: where it was unpacked before,
    what it became is read. `tensors` are the tensors' shapes where they are known otherwise. Raises
    InputError where the headers do not tell a decoder's sizes.
    """
    place = place_of(weights)
    if weights.file is not None and not place.exists():
        told, tensors = _gguf(weights.file)
    else:
        told, tensors = _config(place), tensors or _tensors(place)
    name = weights.name
    sizes = {size: _first(told, keys) for size, keys in _KEYS.items()}
    layers = {int(found[1]) for tensor in tensors if (found := _LAYER.search(tensor))}
    table = next((shape for key, shape in tensors.items() if _TABLES.search(key)), None)
    if not layers or table is None or not sizes["hidden"] or not sizes["heads"]:
        raise InputError(f"{name}: its headers do not tell layers, width, heads and vocabulary")
    hidden, heads = sizes["hidden"], sizes["heads"]
    in_layers = sum(prod(shape) for key, shape in tensors.items() if _LAYER.search(key))
    return Shape(
        layers=len(layers),
        hidden=hidden,
        inner=sizes["inner"] or 4 * hidden,
        heads=heads,
        kv_heads=sizes["kv_heads"] or heads,
        head_dim=sizes["head_dim"] or hidden // heads,
        vocabulary=prod(table) // hidden,
        context=sizes["context"] or 1 << 30,
        normed=_normed(tensors, hidden, heads + (sizes["kv_heads"] or heads)),
        layer_parameters=in_layers // len(layers),
        other_parameters=sum(map(prod, tensors.values())) - in_layers,
    )


def _normed(tensors: Mapping[str, tuple[int, ...]], hidden: int, heads: int) -> int:
    """The widths of the first layer's norms; one of queries or keys is met once a head."""
    widths = 0
    for key, shape in tensors.items():
        found = _LAYER.search(key)
        if found and found[1] == "0" and "norm" in key and len(shape) == 1:
            widths += shape[0] if shape[0] >= hidden else shape[0] * heads // 2
    return widths or 2 * hidden


def _first(told: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    """The first of these keys that is there; a list (one a layer) counts by its largest."""
    value = next((told[key] for key in keys if told.get(key)), 0)
    return int(max(value) if isinstance(value, list) else value)


def _config(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return told | told.get("text_config", {})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / 'config.json'} cannot be read: {error}") from None


def _tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                keys = file.keys()
                found |= {key: tuple(file.get_slice(key).get_shape()) for key in keys}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} is no safetensors file: {error}") from None
    return found


def _gguf(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Metadata, without the architecture that keys begin with, and tensor shapes of a GGUF."""
    require_gguf()
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        prefix = f"{reader.fields['general.architecture'].contents()}."
        found = [f for f in reader.fields.values() if f.name.startswith(prefix)]
        told = {field.name.removeprefix(prefix): field.contents() for field in found}
    except Exception as error:
        raise InputError(f"{path} is no GGUF that can be read: {first_line(error)}") from None
    return told, {t.name: tuple(t.shape.tolist()) for t in reader.tensors}
