"""Prompts to answers: ask for what is missing, store what comes, count how each ended."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.collect.store import AnswerStore
from limbeck.collect.verify import verified
from limbeck.models.protocol import Model
from limbeck.progress import stage_bar
from limbeck.records import Answer, Prompt, Sampling


def missing(
    prompts: Sequence[Prompt], model: str, route: str, sampling: Sampling, store: AnswerStore
) -> list[Prompt]:
    """The prompts that the store has no answer to from this model, route and sampling."""
    keys = {p.id: Answer.identify(p.id, model, route, sampling) for p in prompts}
    there = store.have(list(keys.values()))
    return [p for p in prompts if keys[p.id] not in there]


def ask(
    model: Model, prompts: Sequence[Prompt], sampling: Sampling, store: AnswerStore, label: str
) -> list[Answer]:
    """Answer every prompt that has no answer yet, and return the answers to all, in order.

    Each batch is durable before the next begins: kill -9 loses at most the batch in flight.
    """
    todo = missing(prompts, model.fingerprint, model.route, sampling, store)
    if todo:
        done = len(prompts) - len(todo)
        with stage_bar(label, len(prompts), "answers", done) as meter:
            answers = model.generate(todo, sampling, lambda n: meter.advance(tokens=n))
            for batch in answers:
                store.add(verified(answer) for answer in batch)
                meter.advance(rows=len(batch))
    return stored(prompts, model.fingerprint, model.route, sampling, store)


def stored(
    prompts: Sequence[Prompt], model: str, route: str, sampling: Sampling, store: AnswerStore
) -> list[Answer]:
    """The stored answers to these prompts, in the prompts' order."""
    return store.get([Answer.identify(p.id, model, route, sampling) for p in prompts])
