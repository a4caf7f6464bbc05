"""The nouns that walk from room to room: frozen records, hashed by what determines them.

Per-token arrays share the length of `token_ids`, and field `t` describes token `t`; the shift to
next-token prediction happens in one place, the loss.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Split: TypeAlias = Literal["train", "held_out"]
Outcome: TypeAlias = Literal["kept", "rejected", "truncated", "refused", "failed"]
Decision: TypeAlias = Literal["allow", "conditional", "deny", "unknown"]
Purpose: TypeAlias = Literal["research", "internal", "product"]
Distribution: TypeAlias = Literal["none", "weights", "service"]

Role: TypeAlias = Literal["teacher", "student", "control"]
OUTCOMES: tuple[Outcome, ...] = ("kept", "rejected", "truncated", "refused", "failed")


def identity(*parts: Any) -> str:
    """The id of whatever `parts` determine: 32 hex digits of the SHA-256 of their canonical JSON.

    Equal parts give equal ids on every machine and Python version, so ids can be joined on.
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or tool.

    An assistant may call tools: `tool_calls` are {"id", "name", "arguments"} each, the arguments a
    table. What a tool gave back is a turn of its own, and `call_id` the call's id.
    """

    role: str
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked. `source` says where it stood, as `file:row`.

    `reference` is the right answer, where the recipe names one.
    It may call `tools`, {"name", "description", "parameters"} each, the parameters a JSON schema.
    With a `schema` its answer has to be JSON that fits it.
    """

    id: str
    messages: tuple[Message, ...]
    source: str
    split: Split
    tags: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    schema: Mapping[str, Any] | None = None
    reference: str = ""

    @staticmethod
    def identify(
        messages: tuple[Message, ...],
        tools: tuple[Mapping[str, Any], ...] = (),
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """The id of a prompt with these messages, whatever file it came from."""
        turns = [
            [m.role, m.content, *([m.tool_calls, m.call_id] if m.tool_calls or m.call_id else [])]
            for m in messages
        ]
        return identity("prompt", turns, *([tools, schema] if tools or schema else []))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. Temperature 0 is greedy; `seed` matters only above it.

    `sample` counts the answers to one prompt, from 0.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written, and the seconds of model time that this answer took its share of.

    `cached` of those read came at a cache's price, `reasoning` of those written are no part of the
    text. `lost_in` and `lost_out` are what earlier tries may have been billed that brought nothing,
    at most. `batch` says that they cost what a batch's do.
    """

    tokens_in: int
    tokens_out: int
    seconds: float = 0.0
    cached: int = 0
    reasoning: int = 0
    lost_in: int = 0
    lost_out: int = 0
    batch: bool = False


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """What a service told of one token that it wrote: its bytes and its log-probability in nats.

    `top` are the likeliest there, with theirs; the token itself may be among them. The end of an
    answer may have no bytes.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer to one prompt, with the one outcome it ended in and why.

    `reasoning` is no part of `text`, and `tool_calls` are as a message has them.
    `token_ids` are the answer's own tokens, closing token included, without the prompt's; a service
    tells none, but perhaps `logprobs`, which the store keeps apart and gives back when asked.
    """

    id: str
    prompt_id: str
    model: str
    route: str
    sampling: Sampling
    text: str
    reasoning: str
    tool_calls: tuple[Mapping[str, Any], ...]
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: Usage
    outcome: Outcome
    why: str = ""
    logprobs: tuple[TopLogprobs, ...] = ()

    @staticmethod
    def identify(prompt_id: str, model: str, route: str, sampling: Sampling) -> str:
        """The key under which an answer is stored and found again."""
        return identity("answer", prompt_id, model, route, _fields(sampling))


@lru_cache(maxsize=16)
def _fields(sampling: Sampling) -> dict[str, Any]:
    """As a table; kept, since it is wanted for every answer. A first sample is no sample."""
    fields = asdict(sampling)
    if not sampling.sample:
        del fields["sample"]
    return fields


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """The teacher's distribution over each token of one answer: top-k, its tail, draws from it.

    With T answer tokens, K kept and S drawn: `token_ids` int64 (T,), `top_ids` int64 (T, K),
    `logprobs` float32 (T, K) in nats, `tail` float32 (T,), the probability of everything outside
    the K; `tail_ids` int64 (T, S), tokens drawn from there, some perhaps more than once;
    `tail_entropy` float32 (T,), −Σ p·log p over everything outside the K, in nats.
    `exp(logprobs).sum(-1) + tail` is 1. `exp(logprobs)` on the K and tail/S on each of the S is an
    unbiased estimate of the whole distribution, so that its forward KL to q is estimated by
    Σ_K p·(log p − log q) − Σ_S tail/S·log q − tail_entropy. With S = 0 the tail is one bucket;
    dense targets are K = V with a tail of 0.
    """

    answer_id: str
    token_ids: NDArray[np.int64]
    top_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    tail: NDArray[np.float32]
    tail_ids: NDArray[np.int64]
    tail_entropy: NDArray[np.float32]
    temperature: float
    tokenizer_hash: str


@dataclass(frozen=True, slots=True, eq=False)
class PackedTargets:
    """The same as it is stored: `rows` of a shard's `tensors`, which its answers share.

    What the tensors hold stands in `collect/packing.py`, which unpacks a batch of these at once.
    """

    answer_id: str
    tensors: Mapping[str, NDArray[Any]]
    rows: slice
    vocabulary: int
    temperature: float
    tokenizer_hash: str


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """What the student trains on: `token_ids` int64 (T,) and `loss_mask` bool (T,).

    `loss_mask[t]` says that token t is learnt. `targets`, where there are any, have one row for
    each true entry of the mask, in order.
    """

    answer_id: str
    token_ids: NDArray[np.int64]
    loss_mask: NDArray[np.bool_]
    targets: Targets | PackedTargets | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state of training that can be gone on from."""

    path: str
    base: str
    step: int
    run_id: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One tested claim: `delta` is student minus `against`, with its paired interval.

    `passed` says that the interval lies on the right side of `margin` (0 for superiority); it is
    None where the row only reports. `n` counts prompts, or timed batches for a speed.
    """

    metric: str
    against: Literal["teacher", "control"]
    teacher: float | None
    student: float | None
    control: float | None
    delta: float
    interval: tuple[float, float]
    margin: float | None
    n: int
    passed: bool | None
    better: Literal["higher", "lower"]
    gate: bool


@dataclass(frozen=True, slots=True)
class Reason:
    """What one text says of one model that shaped the rows: a link of a permission's chain.

    Attributes:
        model: Its name, as a recorded permission has to repeat it.
        role: What it did: teacher, user, paraphraser, judge.
        kind: How it was reached: weights, api, consumer, resale.
        entry: The register's entry; "recorded permission", or "" where nothing was found.
        title: What people call the text.
        decision: What this text alone comes to.
        clause: In our own words.
        duties: What it asks of the student.
        stated_in: Where it is said that this text is the one, as "general.license in X.gguf".
        source: Where the text stands.
        read_as: What was read in its place, "" if nothing was.
        date_read: As 2026-11-21 or 2026-11.
        sha256: Of what was read, "" where no hash was taken.
    """

    model: str
    role: str
    kind: str
    entry: str
    title: str
    decision: Decision
    clause: str
    duties: tuple[str, ...] = ()
    stated_in: str = ""
    source: str = ""
    read_as: str = ""
    date_read: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Permission:
    """Whether outputs that came by `route` may train a model, under which duties, by whose word.

    `reasons` is the whole chain, of every model that shaped the rows; the other fields sum it up.
    `missing` are the facts that would settle it, each with the key that states it.
    """

    route: str
    decision: Decision
    duties: tuple[str, ...]
    clause: str
    source: str
    date_read: str
    id: str = ""
    reasons: tuple[Reason, ...] = ()
    missing: tuple[str, ...] = ()
    purpose: Purpose | None = None
