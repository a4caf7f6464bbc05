"""How a provider of ours is to behave, and what it reads and says in each of three dialects."""

from __future__ import annotations

import asyncio
import json
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
    usage: bool = True
    overhead: int = 9  # tokens a message takes beyond its words


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


def read(path: str, body: dict[str, Any]) -> Asked:
    if "v1beta" in path:
        parts = [(c["role"], c["parts"][0]["text"]) for c in body["contents"]]
        system = body.get("systemInstruction", {}).get("parts", [{}])[0].get("text", "")
        settings = body.get("generationConfig", {})
        model, _, verb = path.rpartition("/")[2].partition(":")
        cap, logprobs = settings.get("maxOutputTokens", 1 << 20), settings.get("logprobs", 0)
        stream = verb.startswith("stream")
        return Asked("gemini", model, system, parts[-1][1], cap, logprobs, stream, body)
    dialect: Dialect = "anthropic" if path.endswith("/messages") else "openai"
    turns = body["messages"]
    told = [m["content"] for m in turns if m["role"] == "system"]
    system = body.get("system") or " ".join(told)
    cap = body.get("max_completion_tokens") or body.get("max_tokens") or 1 << 20
    logprobs = int(body.get("top_logprobs") or 0)
    prompt = turns[-1]["content"]
    stream = bool(body.get("stream"))
    return Asked(dialect, body["model"], system, prompt, cap, logprobs, stream, body)


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
    rows: list[dict[str, Any]] = []
    for place, word in enumerate(text.split()):
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
    return {
        "id": id_,
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": [*thought, {"type": "text", "text": text}],
        "stop_reason": {"stop": "end_turn", "length": "max_tokens"}[finish],
        "usage": {"input_tokens": tokens[0], "output_tokens": tokens[1]},
    }


def gemini(
    id_: str, asked: Asked, text: str | None, finish: str, tokens: tuple[int, int], has: Behaviour
) -> dict[str, Any]:
    thought = [{"text": has.reasoning, "thought": True}] if has.reasoning else []
    parts = [*thought, *([] if text is None else [{"text": text}])]
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
