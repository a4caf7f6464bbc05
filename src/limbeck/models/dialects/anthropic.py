"""Anthropic's messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.models.dialects.base import BrokenError, Document, Finish, Reply, count, text_of
from limbeck.records import Message, Sampling, TopLogprobs, Usage

VERSION = "2023-06-01"
_FINISH: dict[str, Finish] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
}


def path(model: str) -> str:
    """Where a question goes, below the base URL."""
    return "/messages"


def headers(key: str) -> dict[str, str]:
    """What shows the key."""
    return {"x-api-key": key, "anthropic-version": VERSION}


def body(
    messages: Sequence[Message], model: str, sampling: Sampling, cap: str, seed: str
) -> dict[str, Any]:
    """The question; system messages stand apart, and defaults are left out."""
    turns = [{"role": m.role, "content": m.content} for m in messages if m.role != "system"]
    asked: dict[str, Any] = {"model": model, "messages": turns, cap: sampling.max_tokens}
    if system := "\n\n".join(m.content for m in messages if m.role == "system"):
        asked["system"] = system
    if sampling.temperature != 1:
        asked["temperature"] = sampling.temperature
    if sampling.top_p != 1:
        asked["top_p"] = sampling.top_p
    return asked


def read(document: Document) -> Reply:
    """The text blocks in a row; BrokenError where there are none."""
    blocks = document.get("content")
    finish = _FINISH.get(text_of(document.get("stop_reason")), "stop")
    if not isinstance(blocks, list) or (not blocks and finish == "stop"):
        raise BrokenError("no content")
    texts = [block.get("text") for block in blocks if block.get("type") == "text"]
    if None in texts:
        raise BrokenError("null content")
    thoughts = [text_of(b.get("thinking")) for b in blocks if b.get("type") == "thinking"]
    return Reply("".join(texts).strip(), "".join(thoughts), finish, _usage(document.get("usage")))


def logprobs(body: dict[str, Any], top: int) -> None:
    """There are none: the question stays as it is."""


def read_logprobs(document: Document) -> list[TopLogprobs]:
    """There are none."""
    return []


def _usage(told: Any) -> Usage | None:
    if not isinstance(told, dict) or "input_tokens" not in told:
        return None
    cached = count(told, "cache_read_input_tokens")
    written = count(told, "cache_creation_input_tokens")
    return Usage(
        tokens_in=count(told, "input_tokens") + cached + written,
        tokens_out=count(told, "output_tokens"),
        cached=cached,
        reasoning=count(told.get("output_tokens_details"), "thinking_tokens", "reasoning_tokens"),
    )
