"""Answers through the checks: a pass over what is stored, which asks no teacher anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from limbeck.collect.checks import Checks
from limbeck.collect.choose import beyond_best, outvoted
from limbeck.collect.contamination import EvalSet, overlap
from limbeck.collect.judge import Judge
from limbeck.collect.store import AnswerStore
from limbeck.records import Answer, Prompt

Group: TypeAlias = tuple[Prompt, Sequence[Answer]]
"""A prompt with the answers to it that are in the store."""
Groups: TypeAlias = Callable[[], Iterator[Group]]
TOGETHER = 200  # groups whose rejects are written at once


def rejudge(
    groups: Groups,
    checks: Checks,
    store: AnswerStore,
    sets: Sequence[EvalSet] = (),
    judge: Judge | None = None,
) -> dict[str, int]:
    """Judge the stored answers anew, and write what is rejected, with its reason, to the store.

    An answer is held to the checks that stand for themselves, its row to the `sets` of tests
    (unless it is held out itself), the samples of a prompt to their majority; what is left goes to
    the judge, and of what is left then the best are kept. `groups` gives the answers anew each
    time, as the store tells them. Returns how many were rejected, by check and by set.
    """
    store.forget_judged()
    counts: Counter[str] = Counter()
    told = checks.section
    if checks.any or sets or told.majority:
        for some in _some(groups()):
            rejected: dict[str, str] = {}
            for prompt, answers in some:
                rejected |= _alone(prompt, answers, checks, sets, counts)
                if told.majority:
                    found = outvoted(answers, lambda answer: checks.final(answer.text))
                    _add(rejected, found, answers, counts)
            store.judge(rejected)
    if judge is not None:
        judge.ask(lambda: _kept(groups()), store)
    if judge is not None or told.best is not None:
        for some in _some(groups()):
            rejected = {}
            for prompt, answers in some:
                rejected |= _scored(prompt, answers, checks, judge, store, counts)
            store.judge(rejected)
    return dict(counts)


def _alone(
    prompt: Prompt,
    answers: Sequence[Answer],
    checks: Checks,
    sets: Sequence[EvalSet],
    counts: Counter[str],
) -> dict[str, str]:
    """Those that fail for themselves."""
    rejected: dict[str, str] = {}
    for answer in answers:
        if answer.outcome != "kept":
            continue
        if why := checks.why_not(prompt, answer):
            rejected[answer.id] = why
            counts[_name(why)] += 1
        elif prompt.split == "train" and (found := overlap(prompt, answer.text, sets)):
            rejected[answer.id] = found.why
            counts[f"overlap with {found.name}"] += 1
    return rejected


def _scored(
    prompt: Prompt,
    answers: Sequence[Answer],
    checks: Checks,
    judge: Judge | None,
    store: AnswerStore,
    counts: Counter[str],
) -> dict[str, str]:
    """Those that the judge thinks too little of, and those beyond the best."""
    told, rejected = checks.section, dict[str, str]()
    kept = [answer for answer in answers if answer.outcome == "kept"]
    scores: dict[str, float] = {}
    if judge is not None:
        for i, said in judge.scores([(prompt, answer) for answer in kept], store).items():
            if isinstance(said, str):
                rejected[i] = f"judge: {said}"
            elif told.judge is not None and said < told.judge:
                rejected[i] = f"judge: {said} of 10, below {told.judge}"
            else:
                scores[i] = said
        counts["judge"] += len(rejected)
    if told.best is not None:
        left = [answer for answer in kept if answer.id not in rejected]
        for answer in left if judge is None else ():
            said = checks.said(prompt, answer)
            scores[answer.id] = 0.0 if isinstance(said, bool | str) else float(said)
        _add(rejected, beyond_best(left, scores, told.best), left, counts)
    return rejected


def _add(
    rejected: dict[str, str],
    found: dict[str, str],
    answers: Sequence[Answer],
    counts: Counter[str],
) -> None:
    """Add what was found about answers that still were kept."""
    for answer in answers:
        if answer.id in found and answer.id not in rejected and answer.outcome == "kept":
            rejected[answer.id] = found[answer.id]
            counts[_name(found[answer.id])] += 1


def _kept(groups: Iterator[Group]) -> Iterator[tuple[Prompt, Answer]]:
    return ((p, answer) for p, answers in groups for answer in answers if answer.outcome == "kept")


def _some(groups: Iterator[Group]) -> Iterator[list[Group]]:
    some: list[Group] = []
    for group in groups:
        some.append(group)
        if len(some) >= TOGETHER:
            yield some
            some = []
    if some:
        yield some


def _name(why: str) -> str:
    """The check that a reason begins with."""
    return why.partition(":")[0]
