"""Prompts to answers: ask for what is missing, store what comes, count how each ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from limbeck.collect.store import AT_ONCE, AnswerStore
from limbeck.collect.verify import verified
from limbeck.errors import InputError
from limbeck.models.protocol import Model
from limbeck.progress import stage_bar
from limbeck.records import OUTCOMES, Answer, Prompt, Sampling, Split

ALL_REFUSED = 50  # refusals from the first answer on, after which the rest is not asked


@dataclass(frozen=True, slots=True)
class Asking:
    """Whom, by which way and how: with a prompt, all that an answer is stored under.

    A truncated answer is looked for once more under `again` tokens, where that is more. Train
    prompts have `samples` answers each, held-out ones the first alone.
    """

    model: str
    route: str
    sampling: Sampling
    again: int = 0
    samples: int = 1

    @property
    def each(self) -> tuple[Asking, ...]:
        """One for each sample."""
        draw = lambda n: replace(self.sampling, sample=n)  # noqa: E731
        return tuple(replace(self, sampling=draw(n), samples=1) for n in range(self.samples))

    def wants(self, prompt: Prompt) -> bool:
        """Whether this sample is drawn of a prompt's answers."""
        return not self.sampling.sample or prompt.split == "train"

    def key(self, prompt: Prompt) -> str:
        """Under which the answer to this prompt is stored."""
        return Answer.identify(prompt.id, self.model, self.route, self.sampling)

    @property
    def longer(self) -> Asking | None:
        """The same with the higher cap; None where truncated answers are left alone."""
        if self.again <= self.sampling.max_tokens:
            return None
        return replace(self, sampling=replace(self.sampling, max_tokens=self.again), again=0)


def missing(prompts: Iterable[Prompt], asking: Asking, store: AnswerStore) -> Iterator[Prompt]:
    """The prompts that the store has no answer to, as they are asked for; of one sample."""
    for some in _chunks(prompts):
        keys = [asking.key(p) for p in some]
        there = store.have(keys)
        keyed = zip(some, keys, strict=True)
        yield from (p for p, key in keyed if key not in there and asking.wants(p))


def truncated(prompts: Iterable[Prompt], asking: Asking, store: AnswerStore) -> Iterator[Prompt]:
    """The prompts whose answer was cut off at its cap."""
    for some in _chunks(prompts):
        answers = store.get([asking.key(p) for p in some])
        cut = {a.prompt_id for a in answers if a.outcome == "truncated"}
        yield from (p for p in some if p.id in cut)


def gather(
    model: Model,
    prompts: Iterable[Prompt],
    asking: Asking,
    store: AnswerStore,
    label: str,
    total: int,
    done: int = 0,
) -> None:
    """Answer every prompt that has no answer yet; `done` of `total` have one.

    Each list of answers is durable before the next is asked for: kill -9 loses at most what was in
    flight. Prompts are drawn as they are needed, so there may be more than fit in memory.
    """
    came, refused = 0, 0
    with stage_bar(label, total, "answers", done) as meter:
        due = missing(prompts, asking, store)
        for batch in model.generate(due, asking.sampling, lambda n: meter.advance(tokens=n)):
            checked = [verified(answer) for answer in batch]
            store.add(checked)
            meter.advance(rows=len(batch))
            came += len(checked)
            refused += sum(answer.outcome == "refused" for answer in checked)
            if came == refused >= ALL_REFUSED:
                raise InputError(
                    f"{model.name} refused all of {refused} prompts, first: {checked[0].why}. "
                    "Change the prompts or prompts.system, or ask another teacher."
                )


def ask(
    model: Model, prompts: Sequence[Prompt], sampling: Sampling, store: AnswerStore, label: str
) -> list[Answer]:
    """Answer every prompt that has no answer yet, and return the answers to all, in order."""
    asking = Asking(model.fingerprint, model.route, sampling)
    due = sum(1 for _ in missing(prompts, asking, store))
    if due:
        gather(model, prompts, asking, store, label, len(prompts), len(prompts) - due)
    return stored(prompts, asking, store)


def stored(prompts: Iterable[Prompt], asking: Asking, store: AnswerStore) -> list[Answer]:
    """The stored answers to these prompts, in their order (see `paired`)."""
    return [answer for _, answer in paired(prompts, asking, store) if answer is not None]


def paired(
    prompts: Iterable[Prompt], asking: Asking, store: AnswerStore
) -> Iterator[tuple[Prompt, Answer | None]]:
    """Each prompt with its answer, once a sample."""
    for prompt, answers in grouped(prompts, asking, store):
        yield from ((prompt, answer) for answer in answers)


def grouped(
    prompts: Iterable[Prompt], asking: Asking, store: AnswerStore
) -> Iterator[tuple[Prompt, list[Answer | None]]]:
    """Each prompt with its answers, None where one is not there yet.

    Of two answers, the one counts that was asked for with the higher cap.
    """
    for some in _chunks(prompts):
        drawn = [(one, _answers(some, one, store)) for one in asking.each]
        for prompt in some:
            yield prompt, [found.get(prompt.id) for one, found in drawn if one.wants(prompt)]


def _answers(some: Sequence[Prompt], asking: Asking, store: AnswerStore) -> dict[str, Answer]:
    """One sample's answers, by prompt id."""
    found = {a.prompt_id: a for a in store.get([asking.key(p) for p in some])}
    if longer := asking.longer:
        cut = [p for p in some if p.id in found and found[p.id].outcome == "truncated"]
        second = store.get([longer.key(p) for p in cut])
        found |= {a.prompt_id: a for a in second if a.finish_reason != "error"}
    return found


def collected(prompts: Iterable[Prompt], asking: Asking, store: AnswerStore) -> dict[str, int]:
    """Answers, their tokens and how each ended; every prompt with an answer is in one outcome.

    Raises InputError where no answer was kept to learn from, or none to test on.
    """
    ended = dict.fromkeys(OUTCOMES, 0)
    kept: dict[Split, int] = {"train": 0, "held_out": 0}
    tokens = {"tokens_in": 0, "tokens_out": 0}
    for prompt, answer in paired(prompts, asking, store):
        if answer is not None:
            ended[answer.outcome] += 1
            kept[prompt.split] += answer.outcome == "kept"
            tokens["tokens_in"] += answer.usage.tokens_in
            tokens["tokens_out"] += answer.usage.tokens_out
    for split, number in kept.items():
        if not number:
            raise InputError(
                f"No answer to a {split} prompt was kept: {ended}. Raise teacher.max_tokens where "
                "answers are truncated, loosen [checks] where they are rejected, or change the "
                "prompts."
            )
    return {"answers": sum(ended.values()), **tokens, **ended}


def _chunks(prompts: Iterable[Prompt]) -> Iterator[list[Prompt]]:
    remaining = iter(prompts)
    while some := list(islice(remaining, AT_ONCE)):
        yield some
