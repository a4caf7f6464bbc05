"""How a provider of ours is to behave, and what it reads and says in each of three dialects."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

Dialect = Literal["openai", "anthropic", "gemini"]


@dataclass(frozen=True)
class Behaviour:
    """How the provider is to behave; `faults` are shares of requests by kind."""

    latency: float = 0.0
    words: int = 12
    key: str = ""
    models: tuple[str, ...] = ()
    faults: dict[str, float] = field(default_factory=dict)
    most_faults: int = 4  # a prompt: a patient client gets everything
    seed: int = 0
    per_minute: float = 0.0  # requests; 0: no limit
    tokens_per_minute: float = 0.0
    kind: Literal["bucket", "window"] = "bucket"
    burst: float = 1.0  # seconds' worth that a bucket holds
    period: float = 60.0  # seconds of a window
    headers: bool = True  # tell the limits
    retry_after: bool = True
    later: tuple[float, float] | None = None  # after so many requests, another limit a minute
    logprobs: Literal["none", "refused", "real", "zeros", "-9999"] = "none"
    most_logprobs: int = 20
    system: bool = True  # heeds a system message
    context: int = 0  # told at /models
    reasoning: str = ""
    calls: Literal["", "good", "unknown", "damaged"] = ""  # a tool, where there is one
    usage: bool = True
    overhead: int = 9  # tokens a message takes beyond its words


Turn = tuple[str, str, list[dict[str, Any]], str]
"""Role, text, calls as {"id", "name", "arguments"}, and of a tool the id of the call (Gemini: its
name)."""


@dataclass
class Asked:
    """A request, whatever its dialect."""

    dialect: Dialect
    model: str
    system: str
    prompt: str
    cap: int
    logprobs: int
    stream: bool
    body: dict[str, Any]
    turns: list[Turn]
    tools: list[dict[str, Any]]
    schema: dict[str, Any] | None


def read(path: str, body: dict[str, Any]) -> Asked:
    if "v1beta" in path:
        return _read_gemini(path, body)
    dialect: Dialect = "anthropic" if path.endswith("/messages") else "openai"
    told = [m["content"] for m in body["messages"] if m["role"] == "system"]
    system = body.get("system") or " ".join(told)
    cap = body.get("max_completion_tokens") or body.get("max_tokens") or 1 << 20
    logprobs = int(body.get("top_logprobs") or 0)
    stream = bool(body.get("stream"))
    if dialect == "anthropic":
        turns = [turn for m in body["messages"] for turn in _anthropic_turns(m)]
        tools = [{**t, "parameters": t["input_schema"]} for t in body.get("tools", [])]
        schema = body.get("output_config", {}).get("format", {}).get("schema")
    else:
        turns = [_openai_turn(m) for m in body["messages"] if m["role"] != "system"]
        tools = [t["function"] for t in body.get("tools", [])]
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    said = turns[-1][1]
    return Asked(
        dialect, body["model"], system, said, cap, logprobs, stream, body, turns, tools, schema
    )


def _openai_turn(m: dict[str, Any]) -> Turn:
    made = [(c["id"], c["function"]) for c in m.get("tool_calls", [])]
    calls = [{"id": i, "name": f["name"], "arguments": json.loads(f["arguments"])} for i, f in made]
    return m["role"], m["content"], calls, m.get("tool_call_id", "")


def _anthropic_turns(m: dict[str, Any]) -> list[Turn]:
    if isinstance(m["content"], str):
        return [(m["role"], m["content"], [], "")]
    results = [b for b in m["content"] if b["type"] == "tool_result"]
    if results:
        return [("tool", b["content"], [], b["tool_use_id"]) for b in results]
    text = "".join(b["text"] for b in m["content"] if b["type"] == "text")
    uses = [b for b in m["content"] if b["type"] == "tool_use"]
    calls = [{"id": b["id"], "name": b["name"], "arguments": b["input"]} for b in uses]
    return [(m["role"], text, calls, "")]


def _read_gemini(path: str, body: dict[str, Any]) -> Asked:
    turns: list[Turn] = []
    for content in body["contents"]:
        role = "assistant" if content["role"] == "model" else "user"
        parts = content["parts"]
        given = [p["functionResponse"] for p in parts if "functionResponse" in p]
        calls = [p["functionCall"] for p in parts if "functionCall" in p]
        assert all(p.get("thoughtSignature") for p in parts if "functionCall" in p)
        called = [{"id": "", "name": c["name"], "arguments": c["args"]} for c in calls]
        text = "".join(p.get("text", "") for p in parts)
        turns += [("tool", r["response"]["output"], [], r["name"]) for r in given]
        turns += [] if given else [(role, text, called, "")]
    system = body.get("systemInstruction", {}).get("parts", [{}])[0].get("text", "")
    settings = body.get("generationConfig", {})
    model, _, verb = path.rpartition("/")[2].partition(":")
    cap, logprobs = settings.get("maxOutputTokens", 1 << 20), settings.get("logprobs", 0)
    schema = settings.get("responseJsonSchema")
    assert (settings.get("responseMimeType") == "application/json") == (schema is not None)
    offered = [f for t in body.get("tools", []) for f in t["functionDeclarations"]]
    tools = [{**f, "parameters": f["parametersJsonSchema"]} for f in offered]
    stream = verb.startswith("stream")
    said = turns[-1][1]
    return Asked("gemini", model, system, said, cap, logprobs, stream, body, turns, tools, schema)


def call_of(asked: Asked, has: Behaviour) -> tuple[str, dict[str, Any]] | None:
    """The tool that is called instead of an answer, if one is."""
    if not has.calls or not asked.tools:
        return None
    name = "no_such_tool" if has.calls == "unknown" else asked.tools[0]["name"]
    return name, {"about": asked.prompt}


def tokens_in(asked: Asked, overhead: int) -> int:
    return len(asked.prompt.split()) + len(asked.system.split()) + overhead


def openai(
    id_: str, asked: Asked, text: str | None, finish: str, tokens: tuple[int, int], has: Behaviour
) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish,
    }
    if has.reasoning:
        choice["message"]["reasoning_content"] = has.reasoning
    if call := call_of(asked, has):
        arguments = json.dumps(call[1])[: -1 if has.calls == "damaged" else None]
        function = {"name": call[0], "arguments": arguments}
        choice["message"] |= {
            "content": None,
            "tool_calls": [{"id": f"{id_}-call", "type": "function", "function": function}],
        }
        choice["finish_reason"] = "tool_calls"
    if asked.logprobs and has.logprobs in ("real", "zeros", "-9999"):
        choice["logprobs"] = {"content": _logprobs(text or "", asked.logprobs, has)}
    return {
        "id": id_,
        "object": "chat.completion",
        "created": 0,
        "model": asked.model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "total_tokens": sum(tokens),
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def _logprobs(text: str, top: int, has: Behaviour) -> list[dict[str, Any]]:
    """A token a word, with the space before it; the likeliest others are longer words."""
    rows: list[dict[str, Any]] = []
    for place, word in enumerate(re.findall(r"\s*\S+", text)):
        best = {"real": -0.1 - 0.01 * place, "zeros": 0.0, "-9999": -9999.0}[has.logprobs]
        fall = {"real": -3.0, "zeros": 0.0, "-9999": 0.0}[has.logprobs]
        tops = [
            {"token": f"{word}{i}" if i else word, "logprob": best + fall * i, "bytes": None}
            for i in range(min(top, has.most_logprobs))
        ]
        rows.append({"token": word, "logprob": best, "bytes": None, "top_logprobs": tops})
    return rows


def anthropic(
    id_: str, asked: Asked, text: str | None, finish: str, tokens: tuple[int, int], has: Behaviour
) -> dict[str, Any]:
    thought = [{"type": "thinking", "thinking": has.reasoning}] if has.reasoning else []
    said: dict[str, Any] = {"type": "text", "text": text}
    if call := call_of(asked, has):
        said = {"type": "tool_use", "id": f"{id_}-call", "name": call[0], "input": call[1]}
        finish = "tool_use"
    return {
        "id": id_,
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": [*thought, said],
        "stop_reason": {"stop": "end_turn", "length": "max_tokens"}.get(finish, finish),
        "usage": {"input_tokens": tokens[0], "output_tokens": tokens[1]},
    }


def gemini(
    id_: str, asked: Asked, text: str | None, finish: str, tokens: tuple[int, int], has: Behaviour
) -> dict[str, Any]:
    thought = [{"text": has.reasoning, "thought": True}] if has.reasoning else []
    parts = [*thought, *([] if text is None else [{"text": text}])]
    if call := call_of(asked, has):
        parts = [*thought, {"functionCall": {"name": call[0], "args": call[1]}}]
    return {
        "responseId": id_,
        "candidates": [
            {
                "content": {"role": "model", "parts": parts},
                "finishReason": {"stop": "STOP", "length": "MAX_TOKENS"}[finish],
            }
        ],
        "usageMetadata": {"promptTokenCount": tokens[0], "candidatesTokenCount": tokens[1]},
    }


def error_response(
    dialect: Dialect, status: int, message: str, headers: dict[str, str] | None = None
) -> web.Response:
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "api_error")
    error: dict[str, Any] = {"type": kind, "message": message}
    document: dict[str, Any] = {"error": error}
    if dialect == "anthropic":
        document["type"] = "error"
    if dialect == "gemini":
        error |= {"code": status, "status": kind.upper()}
    return web.json_response(document, status=status, headers=headers)


async def stream(
    request: web.BaseRequest, document: dict[str, Any], headers: dict[str, str]
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **headers})
    await response.prepare(request)
    await response.write(f"data: {json.dumps(document)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


async def piecemeal(
    request: web.BaseRequest, body: bytes, headers: dict[str, str], *, slow: bool
) -> web.StreamResponse:
    """Byte by byte, or half and then a reset."""
    told = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    response = web.StreamResponse(headers=told)
    await response.prepare(request)
    if slow:
        step = max(1, len(body) // 20)
        for start in range(0, len(body), step):
            await response.write(body[start : start + step])
            await asyncio.sleep(0.01)
        return response
    await response.write(body[: len(body) // 2])
    assert request.transport is not None
    request.transport.abort()
    return response
