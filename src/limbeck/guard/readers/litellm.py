"""LiteLLM's `LiteLLM_SpendLogs`, exported as Parquet, CSV or JSON Lines.

An account is the hashed key, and where there is none, the user. Prompts are off by default there.
Columns as in LiteLLM's `schema.prisma`, read in November 2026.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, cast

from limbeck.guard.arrow import Array, pa, pc
from limbeck.guard.readers.block import Block, array, text_of

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "call_id": ("request_id",),
    "time": ("startTime",),
    "account": ("api_key", "user", "end_user"),
    "model": ("model_group", "model"),
    "network": ("requester_ip_address",),
    "session": ("session_id",),
    "tokens_in": ("prompt_tokens",),
    "tokens_out": ("completion_tokens",),
}
"""Where a canonical column is found: in the first of these that is not empty."""
MESSAGES, REQUEST = "messages", "proxy_server_request"
PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens", "max_completion_tokens"),
    "logprobs": ("logprobs",),
    "stream": ("stream",),
}


def is_litellm(names: list[str]) -> bool:
    """Whether a file of these columns is such an export."""
    return {"request_id", "startTime", "prompt_tokens"} <= set(names)


def wanted(account: str | None) -> list[str]:
    """The columns to read of those that are there."""
    needed = [name for options in COLUMNS.values() for name in options]
    return list(dict.fromkeys([*needed, MESSAGES, REQUEST, *([account] if account else [])]))


def canonical(block: Block, account: str | None) -> Block:
    """The block under canonical names; `account` is a column to take instead of the usual."""
    found = block.columns
    columns: dict[str, Array] = {}
    for name, options in COLUMNS.items():
        if name == "account" and account:
            options = (account,)
        present = [_filled(found[option]) for option in options if option in found.column_names]
        if present:
            columns[name] = pc.coalesce(*_alike(present))
    texts = _python(found, MESSAGES)
    requests = [_object(text) for text in _python(found, REQUEST)]
    if texts or requests:
        none: Mapping[str, Any] = {}
        both = zip(texts or [None] * len(requests), requests or [none] * len(texts), strict=True)
        columns["prompt"] = array(
            [text_of(text) or text_of(request.get(MESSAGES)) for text, request in both]
        )
    for name, options in PARAMETERS.items():
        if requests:
            columns[name] = array([_first(request, options) for request in requests])
    return replace(block, columns=pa.table(columns))


def _filled(column: Array) -> Array:
    """Empty texts made null; times stay times, numbers numbers."""
    kinds = ("dictionary", "binary", "large_binary", "string_view", "binary_view")
    if any(getattr(pa.types, f"is_{kind}")(column.type) for kind in kinds):
        column = _texts(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
    return column


def _alike(columns: list[Array]) -> list[Array]:
    """Columns of one type: those of no value left out, and texts where others differ."""
    some = [one for one in columns if not pa.types.is_null(one.type)] or columns[:1]
    same = all(one.type == some[0].type for one in some)
    return some if same else [_texts(one) for one in some]


def _texts(column: Array) -> Array:
    return pa.chunked_array([_strings(chunk) for chunk in column.chunks], pa.string())


def _strings(chunk: Array) -> Array:
    try:
        return chunk.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        values = chunk.to_pylist()
        texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
        return array([v if v is None or isinstance(v, str) else str(v) for v in texts])


def _python(found: Any, name: str) -> list[Any]:
    if name not in found.column_names:
        return []
    values = found[name].to_pylist()
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]


def _object(text: Any) -> Mapping[str, Any]:
    if isinstance(text, str) and text.startswith("{") and len(text) > 2:
        try:
            text = json.loads(text)
        except (ValueError, RecursionError):
            return {}
    return cast(Mapping[str, Any], text) if isinstance(text, dict) else {}


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)
