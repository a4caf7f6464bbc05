"""What every dialect can do, and what a service's answer is once it has been read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from limbeck.records import Prompt, Sampling, TopLogprobs, Usage

Document: TypeAlias = Mapping[str, Any]
Finish: TypeAlias = Literal["stop", "length", "refusal"]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. `usage` is None where the service told none, and `logprobs` are empty.

    `calls` are {"id", "name", "arguments"} each; arguments that are no JSON stay as they came.
    """

    text: str
    reasoning: str
    finish: Finish
    usage: Usage | None
    calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[TopLogprobs, ...] = ()


NOTHING = Reply("", "", "stop", None)


class BrokenError(Exception):
    """A body that is no answer although its status says so; the message says what is wrong."""


class Dialect(Protocol):
    """One way of speaking; a module of this package is one."""

    def path(self, model: str) -> str:
        """Where a question goes, below the base URL."""
        ...

    def headers(self, key: str) -> dict[str, str]:
        """What shows the key."""
        ...

    def body(
        self, prompt: Prompt, model: str, sampling: Sampling, cap: str, seed: str
    ) -> dict[str, Any]:
        """The question. `cap` names the field of the longest answer, `seed` that of the seed.

        Settings at 1, a service's own default, are left out: many models refuse them.
        """
        ...

    def read(self, document: Document) -> Reply:
        """The answer; BrokenError where there is none."""
        ...

    def logprobs(self, body: dict[str, Any], top: int) -> None:
        """Ask for log-probabilities too, in place."""
        ...

    def read_logprobs(self, document: Document) -> list[TopLogprobs]:
        """What the service told of each token of the answer; empty where it told nothing."""
        ...


def text_of(value: Any) -> str:
    """A text, or "" where the service left it out."""
    return value if isinstance(value, str) else ""


def count(table: Any, *names: str) -> int:
    """The first of these counts that the table has, or 0."""
    if isinstance(table, Mapping):
        for name in names:
            if isinstance(found := table.get(name), int):  # pyright: ignore[reportUnknownMemberType]
                return found
    return 0


def token_bytes(told: Mapping[str, Any]) -> bytes:
    """A token's bytes: as told, or else those of its text."""
    raw = told.get("bytes")
    if isinstance(raw, list):
        return bytes(raw)  # pyright: ignore[reportUnknownArgumentType]
    return text_of(told.get("token")).encode("utf-8", "replace")


def apart(text: str) -> tuple[str, str]:
    """Answer and reasoning, where a model wrote its reasoning in front in <think> tags."""
    start = text.lstrip()
    if start.startswith("<think>"):
        thought, end, answer = start.removeprefix("<think>").partition("</think>")
        if end:
            return answer.strip(), thought.strip()
        return "", thought.strip()
    return text, ""
