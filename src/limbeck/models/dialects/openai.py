"""Chat completions, as OpenAI made them and nearly every server speaks them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pydantic_core import from_json

from limbeck.models.dialects.base import (
    BrokenError,
    Document,
    Finish,
    Reply,
    apart,
    count,
    text_of,
    token_bytes,
)
from limbeck.models.tools import tool_table, turn
from limbeck.records import Prompt, Sampling, TopLogprobs, Usage

_FINISH: dict[str, Finish] = {
    "length": "length",
    "model_length": "length",
    "content_filter": "refusal",
    "refusal": "refusal",
    "sensitive": "refusal",
}
_UNFINISHED = frozenset({"error", "insufficient_system_resource", "abort", "cancelled"})


def path(model: str) -> str:
    """Where a question goes, below the base URL."""
    return "/chat/completions"


def headers(key: str) -> dict[str, str]:
    """What shows the key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def body(prompt: Prompt, model: str, sampling: Sampling, cap: str, seed: str) -> dict[str, Any]:
    """The question. Settings at the service's own default are left out: some models refuse them."""
    asked: dict[str, Any] = {
        "model": model,
        "messages": [turn(message, as_text=True) for message in prompt.messages],
        cap: sampling.max_tokens,
    }
    if prompt.tools:
        asked["tools"] = [tool_table(tool) for tool in prompt.tools]
    if prompt.schema is not None:
        told = {"name": "answer", "strict": True, "schema": prompt.schema}
        asked["response_format"] = {"type": "json_schema", "json_schema": told}
    if sampling.temperature != 1:
        asked["temperature"] = sampling.temperature
    if sampling.top_p != 1:
        asked["top_p"] = sampling.top_p
    if seed and sampling.seed:
        asked[seed] = sampling.seed + sampling.sample
    return asked


def read(document: Document) -> Reply:
    """The first choice; BrokenError where there is none."""
    choices = document.get("choices")
    if not isinstance(choices, list) or not choices:
        raise BrokenError("no choices")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise BrokenError("a choice without a message")
    said = choices[0].get("finish_reason")
    if said in _UNFINISHED:
        raise BrokenError(f"finish_reason {said}")
    text, thought = _content(message.get("content"))
    reasoning = text_of(message.get("reasoning_content")) or text_of(message.get("reasoning"))
    if not reasoning and not thought:
        text, thought = apart(text)
    finish = _FINISH.get(said, "stop")
    if refusal := text_of(message.get("refusal")):
        text, finish = text or refusal, "refusal"
    calls = tuple(_call(call) for call in message.get("tool_calls") or ())
    if message.get("content") is None and finish == "stop" and not calls:
        raise BrokenError("null content")
    usage = _usage(document.get("usage"))
    return Reply(text.strip(), reasoning or thought, finish, usage, calls)


def logprobs(body: dict[str, Any], top: int) -> None:
    """Ask for log-probabilities too, in place."""
    body |= {"logprobs": True, "top_logprobs": top}


def read_logprobs(document: Document) -> list[TopLogprobs]:
    """What the service told of each token of the answer."""
    told = (document["choices"][0].get("logprobs") or {}).get("content") or []
    return [
        TopLogprobs(
            token_bytes(row),
            float(row["logprob"]),
            tuple((token_bytes(t), float(t["logprob"])) for t in row.get("top_logprobs") or []),
        )
        for row in told
    ]


def _call(told: Any) -> dict[str, Any]:
    """A call; arguments that are no JSON stay text."""
    function = told["function"]
    arguments: Any = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        with suppress(ValueError):
            arguments = from_json(arguments)
    return {"id": text_of(told.get("id")), "name": function["name"], "arguments": arguments}


def _content(content: Any) -> tuple[str, str]:
    """Text and reasoning of a message's content: text, or a list of typed parts."""
    if not isinstance(content, list):
        return text_of(content), ""
    text, thought = "", ""
    for part in content:
        if part.get("type") == "thinking":
            inner = part.get("thinking")
            thought += inner if isinstance(inner, str) else _content(inner)[0]
        else:
            text += text_of(part.get("text"))
    return text, thought


def _usage(told: Any) -> Usage | None:
    if not isinstance(told, dict) or "prompt_tokens" not in told:
        return None
    cached = count(told.get("prompt_tokens_details"), "cached_tokens")
    return Usage(
        tokens_in=count(told, "prompt_tokens"),
        tokens_out=count(told, "completion_tokens"),
        cached=cached or count(told, "prompt_cache_hit_tokens", "cached_tokens"),
        reasoning=count(told.get("completion_tokens_details"), "reasoning_tokens"),
    )
