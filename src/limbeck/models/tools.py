"""Tools and calls in the shape that chat completions, chat templates and trainers write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.records import Message


def tool_table(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as it is offered."""
    return {"type": "function", "function": dict(tool)}


def call_table(call: Mapping[str, Any], *, as_text: bool = False) -> dict[str, Any]:
    """A call as an assistant's turn holds it; its arguments a table, or their JSON."""
    told = call["arguments"]
    if as_text and not isinstance(told, str):
        told = json.dumps(told, ensure_ascii=False)
    function = {"name": call["name"], "arguments": told}
    return {"id": call["id"], "type": "function", "function": function}


def turn(message: Message, *, as_text: bool = False) -> dict[str, Any]:
    """A message as it is spoken."""
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        told["tool_calls"] = [call_table(call, as_text=as_text) for call in message.tool_calls]
    if message.call_id:
        told["tool_call_id"] = message.call_id
    return told


def names(messages: Sequence[Message]) -> dict[str, str]:
    """What was called, by the id of the call."""
    return {call["id"]: call["name"] for m in messages for call in m.tool_calls}


def unsound(calls: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with a model's calls: no such tool, or arguments that are no table; or ""."""
    known = {tool["name"] for tool in tools}
    for call in calls:
        if call["name"] not in known:
            return f"calls {call['name']!r}, which is no tool of the prompt"
        if not isinstance(call["arguments"], dict):
            return f"calls {call['name']} with arguments that are no JSON object"
    return ""
