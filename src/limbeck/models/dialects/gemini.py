"""Gemini's generateContent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.models.dialects.base import BrokenError, Document, Reply, count, text_of, token_bytes
from limbeck.records import Message, Sampling, TopLogprobs, Usage

_REFUSED = frozenset(
    {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE", "MODEL_ARMOR"}
)
_WHOLE = frozenset({"STOP", "MAX_TOKENS", *_REFUSED})


def path(model: str) -> str:
    """Where a question goes, below the base URL."""
    return f"/models/{model}:generateContent"


def headers(key: str) -> dict[str, str]:
    """What shows the key."""
    return {"x-goog-api-key": key}


def body(
    messages: Sequence[Message], model: str, sampling: Sampling, cap: str, seed: str
) -> dict[str, Any]:
    """The question; system messages stand apart, the assistant is called model."""
    roles = {"user": "user", "assistant": "model"}
    settings: dict[str, Any] = {cap: sampling.max_tokens}
    if sampling.temperature != 1:
        settings["temperature"] = sampling.temperature
    if sampling.top_p != 1:
        settings["topP"] = sampling.top_p
    if seed and sampling.seed:
        settings[seed] = sampling.seed
    asked: dict[str, Any] = {
        "contents": [
            {"role": roles[m.role], "parts": [{"text": m.content}]}
            for m in messages
            if m.role != "system"
        ],
        "generationConfig": settings,
    }
    if system := "\n\n".join(m.content for m in messages if m.role == "system"):
        asked["systemInstruction"] = {"parts": [{"text": system}]}
    return asked


def read(document: Document) -> Reply:
    """The first candidate; a blocked prompt is a refusal; BrokenError where there is neither."""
    usage = _usage(document.get("usageMetadata"))
    blocked = (document.get("promptFeedback") or {}).get("blockReason")
    if blocked:
        return Reply(f"[blocked: {blocked}]", "", "refusal", usage)
    candidates = document.get("candidates")
    if not isinstance(candidates, list) or not candidates:
        raise BrokenError("no candidates")
    said = candidates[0].get("finishReason")
    if said not in _WHOLE:
        raise BrokenError(f"finishReason {said}")
    parts = (candidates[0].get("content") or {}).get("parts") or []
    text = "".join(text_of(part.get("text")) for part in parts if not part.get("thought"))
    thought = "".join(text_of(part.get("text")) for part in parts if part.get("thought"))
    if said in _REFUSED:
        return Reply(text or f"[blocked: {said}]", thought, "refusal", usage)
    if not text and said == "STOP":
        raise BrokenError("no text")
    return Reply(text.strip(), thought, "length" if said == "MAX_TOKENS" else "stop", usage)


def logprobs(body: dict[str, Any], top: int) -> None:
    """Ask for log-probabilities too, in place."""
    body["generationConfig"] |= {"responseLogprobs": True, "logprobs": top}


def read_logprobs(document: Document) -> list[TopLogprobs]:
    """What the service told of each token of the answer."""
    told = document["candidates"][0].get("logprobsResult") or {}
    tops = told.get("topCandidates") or []
    return [
        TopLogprobs(
            token_bytes(row),
            float(row["logProbability"]),
            tuple(
                (token_bytes(t), float(t["logProbability"])) for t in top.get("candidates") or []
            ),
        )
        for row, top in zip(told.get("chosenCandidates") or [], tops, strict=False)
    ]


def _usage(told: Any) -> Usage | None:
    if not isinstance(told, dict) or "promptTokenCount" not in told:
        return None
    thoughts = count(told, "thoughtsTokenCount")
    return Usage(
        tokens_in=count(told, "promptTokenCount"),
        tokens_out=count(told, "candidatesTokenCount") + thoughts,
        cached=count(told, "cachedContentTokenCount"),
        reasoning=thoughts,
    )
