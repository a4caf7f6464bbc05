"""Anthropic's messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.models.dialects.base import BrokenError, Document, Finish, Reply, count, text_of
from limbeck.records import Message, Prompt, Sampling, TopLogprobs, Usage

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


def body(prompt: Prompt, model: str, sampling: Sampling, cap: str, seed: str) -> dict[str, Any]:
    """The question; system messages stand apart, and defaults are left out."""
    turns = _turns(prompt.messages)
    asked: dict[str, Any] = {"model": model, "messages": turns, cap: sampling.max_tokens}
    if system := "\n\n".join(m.content for m in prompt.messages if m.role == "system"):
        asked["system"] = system
    if prompt.tools:
        asked["tools"] = [
            {"name": tool["name"], "description": tool.get("description", "")}
            | {"input_schema": tool["parameters"]}
            for tool in prompt.tools
        ]
    if prompt.schema is not None:
        asked["output_config"] = {"format": {"type": "json_schema", "schema": prompt.schema}}
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
    calls = tuple(
        {"id": b["id"], "name": b["name"], "arguments": b["input"]}
        for b in blocks
        if b.get("type") == "tool_use"
    )
    usage = _usage(document.get("usage"))
    return Reply("".join(texts).strip(), "".join(thoughts), finish, usage, calls)


def logprobs(body: dict[str, Any], top: int) -> None:
    """There are none: the question stays as it is."""


def read_logprobs(document: Document) -> list[TopLogprobs]:
    """There are none."""
    return []


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation; what tools gave back is the user's turn, all of a round in one."""
    turns: list[dict[str, Any]] = []
    before = ""
    for m in messages:
        if m.role == "tool":
            block = {"type": "tool_result", "tool_use_id": m.call_id, "content": m.content}
            if before == "tool":
                turns[-1]["content"].append(block)
            else:
                turns.append({"role": "user", "content": [block]})
        elif m.tool_calls:
            said = [{"type": "text", "text": m.content}] if m.content else []
            calls = [
                {"type": "tool_use", "id": c["id"], "name": c["name"], "input": c["arguments"]}
                for c in m.tool_calls
            ]
            turns.append({"role": m.role, "content": [*said, *calls]})
        elif m.role != "system":
            turns.append({"role": m.role, "content": m.content})
        before = m.role
    return turns


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
