"""Prompts for a service, and a service's route, that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limbeck.collect.ask import Asking, gather, stored
from limbeck.collect.store import AnswerStore
from limbeck.models.routes import Route, route
from limbeck.models.served import ServedModel
from limbeck.recipe import TeacherSection
from limbeck.records import Answer, Message, Prompt, Sampling
from provider import Provider, answer_to

SAMPLING = Sampling(64, 1.0)
BASES = {"openai": "/v1", "anthropic": "/v1", "gemini": "/v1beta"}


def prompts(n: int, words: str = "What is number") -> Iterator[Prompt]:
    """The first n prompts, made as they are asked for."""
    for i in range(n):
        messages = (Message("user", f"{words} {i}?"),)
        yield Prompt(Prompt.identify(messages), messages, f"p.jsonl:{i + 1}", "train")


def way(provider: Provider, dialect: str = "openai", **section: Any) -> Route:
    """The route to a provider of ours."""
    url = provider.url.removesuffix("/v1") + BASES[dialect]
    told = {"model": "teacher", "url": url, "dialect": dialect, **section}
    return route(TeacherSection(**told))


def collect(
    model: ServedModel, n: int, folder: Path, sampling: Sampling = SAMPLING
) -> list[Answer]:
    """Ask for n answers through a store in `folder`, and read back what is there."""
    asking = Asking(model.fingerprint, model.route, sampling)
    with AnswerStore(folder / "answers.sqlite") as store:
        try:
            gather(model, prompts(n), asking, store, "collect", n)
        finally:
            found = stored(prompts(n), asking, store)
    return found


def right(answers: list[Answer], n: int) -> int:
    """How many are kept and say what the provider says to their prompt."""
    asked = {p.id: p.messages[-1].content for p in prompts(n)}
    return sum(a.outcome == "kept" and a.text == answer_to(asked[a.prompt_id]) for a in answers)
