"""Tools, calls and schemas out of rows and files: read once, into one shape, whoever wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.collect.rows import kind
from limbeck.errors import InputError
from limbeck.records import Message

Tools = tuple[Mapping[str, Any], ...]


def read_tools(where: str, value: Any) -> Tools:
    """Tools as chat completions write them, or {name, description, parameters} alone.

    JSON text is read too: a Parquet column has one type.
    """
    value = _json(where, value)
    if not isinstance(value, list):
        raise InputError(f"{where} must be a list of tools, this is {kind(value)}.")
    tools: list[dict[str, Any]] = []
    for number, one in enumerate(value, 1):
        tool = one.get("function", one) if isinstance(one, dict) else None
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise InputError(f"{where}, tool {number} must have a name.")
        schema = tool.get("parameters") or {"type": "object", "properties": {}}
        said = tool.get("description") or ""
        if not isinstance(schema, dict) or not isinstance(said, str):
            raise InputError(
                f"{where}, tool {number}: parameters must be a JSON schema, and description text."
            )
        tools.append({"name": tool["name"], "description": said, "parameters": schema})
    names = [tool["name"] for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{where}: the tool {twice!r} stands there twice.")
    return tuple(tools)


def read_schema(where: str, value: Any) -> dict[str, Any]:
    """A JSON schema, or a response_format that holds one."""
    value = _json(where, value)
    if isinstance(value, dict) and value.get("type") == "json_schema":
        value = value.get("json_schema", value)
        value = value.get("schema") if isinstance(value, dict) else value
    if not isinstance(value, dict) or not value:
        raise InputError(f"{where} must be a JSON schema, this is {kind(value)}.")
    return value


def read_file(key: str, path: str) -> Any:
    """What the JSON file that the recipe names at `key` holds."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{key} = {path!r} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{key}: {path} is not valid JSON ({error}).") from None


def read_calls(where: str, value: Any, before: int) -> Tools:
    """The calls of an assistant's turn; those without an id get one, `before` came earlier."""
    value = _json(where, value)
    if not isinstance(value, list):
        raise InputError(f"{where}: tool_calls must be a list, this is {kind(value)}.")
    calls: list[dict[str, Any]] = []
    for number, one in enumerate(value, before + 1):
        call = one.get("function", one) if isinstance(one, dict) else None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise InputError(f"{where}: each of tool_calls must have a function with a name.")
        arguments = _json(where, call.get("arguments") or {})
        if not isinstance(arguments, dict):
            raise InputError(f"{where}: the arguments of a call must be a JSON object.")
        id_ = one.get("id") or f"call_{number}"
        calls.append({"id": id_, "name": call["name"], "arguments": arguments})
    return tuple(calls)


def answered(where: str, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The turns, each tool's with the id of its call: those that tell none go by their order."""
    open_calls: list[str] = []
    turns: list[Message] = []
    for number, message in enumerate(messages, 1):
        open_calls += [call["id"] for call in message.tool_calls]
        if message.role == "tool":
            id_ = message.call_id or next(iter(open_calls), "")
            if id_ not in open_calls:
                raise InputError(
                    f"{where}, message {number} is what a tool gave back, and no call before it "
                    f"{'is ' + repr(id_) if id_ else 'waits for one'}."
                )
            open_calls.remove(id_)
            message = replace(message, call_id=id_)
        turns.append(message)
    return tuple(turns)


def _json(where: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}).") from None
