"""What a service told of its tokens, as the targets of a student; or its text alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Literal, TypeAlias

import numpy as np

from limbeck.collect.alignment import ENDS, Aligner, Pieces
from limbeck.collect.store import AT_ONCE, AnswerStore
from limbeck.errors import InputError
from limbeck.models.protocol import QUIET, Asked, OnTokens
from limbeck.models.tokenizer import ChatTokenizer, byte_vocabulary
from limbeck.recipe import TrainSection
from limbeck.records import Answer, Prompt, Sampling, Targets, TopLogprobs

Way: TypeAlias = Literal["token by token", "by bytes", "text alone"]
ALIKE = 0.9  # of the answers are cut as the student would; sampling may cut the others otherwise


def pieces_of(tokenizer: ChatTokenizer) -> Pieces | None:
    """A student's tokenizer by its bytes; None where it is not byte-level."""
    plain = tokenizer.plain
    vocabulary = byte_vocabulary(plain)
    if vocabulary is None or tokenizer.inner.eos_token_id is None:
        return None
    encode = lambda text: plain.encode(text, add_special_tokens=False).ids  # noqa: E731
    return Pieces(vocabulary, encode, tokenizer.inner.eos_token_id)


def plan(probed: Mapping[str, Any], tokenizer: ChatTokenizer | None) -> tuple[Way, str]:
    """How the student will learn, by what the probe found, and why."""
    if tokenizer is None:
        return "text alone", "no student.base says whose tokens the student has"
    if not probed.get("logprobs"):
        return "text alone", probed.get("fake") or "the service tells no log-probabilities"
    student = pieces_of(tokenizer)
    if student is None:
        return "text alone", "the student's tokenizer is not byte-level"
    written, named = ([bytes.fromhex(t) for t in some] for some in probed.get("tokens") or ([], []))
    rows = [TopLogprobs(token, 0.0, ()) for token in written]
    if rows and _one_vocabulary({*written, *named}, student) and _cut_alike(rows, student):
        return "token by token", "the service's tokens are the student's"
    return "by bytes", "the service's tokens are not the student's"


class ToldTeacher:
    """A service's log-probabilities, in the store, as a model that scores.

    Args:
        store: the answers.
        answers: those that will be scored.
        tokenizer: the student's.
    """

    route = "store"

    def __init__(
        self, store: AnswerStore, answers: Sequence[Answer], tokenizer: ChatTokenizer
    ) -> None:
        student = pieces_of(tokenizer)
        self.store, self.tokenizer = store, tokenizer
        self.name = self.fingerprint = answers[0].model if answers else ""
        seen: set[bytes] = set()
        self.told = alike = 0
        for told in _each(store, answers) if student else ():
            seen |= {token for row in told for token, _ in row.top}
            seen |= {row.token for row in told}
            self.told += 1
            alike += student is not None and _cut_alike(told, student)
        same = student is not None and alike >= ALIKE * self.told
        same = same and student is not None and _one_vocabulary(seen, student)
        self.way: Way = "text alone"
        if student is not None and self.told:
            self.way = "token by token" if same else "by bytes"
            self.aligner = Aligner(student, frozenset(seen - ENDS), same=same)
        self.tokens = self.known = 0

    def count(self, asked: Sequence[Asked], top_k: int) -> int:
        """Of how many tokens the distribution is known, those scored in an earlier process too."""
        if self.tokens < sum(len(answer.token_ids) for _, answer in asked):
            self.tokens = self.known = 0
            for _ in self.score(asked, top_k, 1.0):
                pass
        return self.known

    def generate(
        self, prompts: Iterable[Prompt], sampling: Sampling, on_tokens: OnTokens = QUIET
    ) -> Iterator[list[Answer]]:
        """What is stored answers nothing new."""
        raise InputError("A store of answers cannot be asked")

    def score(
        self, asked: Sequence[Asked], top_k: int, temperature: float, tail_samples: int = 0
    ) -> Iterator[Targets]:
        """Targets of each answer's student tokens; the text itself where nothing is known."""
        found = self.store.logprobs([answer.id for _, answer in asked])
        for _, answer in asked:
            told, ids = found.get(answer.id, ()), answer.token_ids
            made = self.aligner.align(told, ids, answer.text.encode(), top_k)
            made = made or self.aligner.text(ids, top_k)
            self.tokens, self.known = self.tokens + len(ids), self.known + int(made.known.sum())
            yield Targets(
                answer_id=answer.id,
                token_ids=np.array(ids, np.int64),
                top_ids=made.top_ids,
                logprobs=made.logprobs,
                tail=made.tail,
                tail_ids=np.zeros((len(ids), 0), np.int64),
                tail_entropy=np.zeros(len(ids), np.float32),
                temperature=temperature,
                tokenizer_hash=self.tokenizer.hash,
            )


def _each(store: AnswerStore, answers: Sequence[Answer]) -> Iterator[tuple[TopLogprobs, ...]]:
    ids = [answer.id for answer in answers]
    for start in range(0, len(ids), AT_ONCE):
        yield from store.logprobs(ids[start : start + AT_ONCE]).values()


def _one_vocabulary(tokens: Set[bytes], student: Pieces) -> bool:
    """Whether every one of a teacher's tokens is the student's too, special ones aside."""
    special = lambda token: token.startswith(b"<") and token.endswith(b">")  # noqa: E731
    return all(t in student.ids or t in ENDS or special(t) for t in tokens)


def _cut_alike(told: Sequence[TopLogprobs], student: Pieces) -> bool:
    """Whether the student would cut an answer as its teacher did."""
    tokens = [row.token for row in told if row.token not in ENDS]
    try:
        text = b"".join(tokens).decode()
    except UnicodeDecodeError:
        return False
    return [student.vocabulary[i] for i in student.encode(text)] == tokens


def check_section(section: TrainSection) -> None:
    """Raise InputError for a [train] that a service's log-probabilities cannot serve."""
    if section.divergence != "forward_kl":
        raise InputError(
            f"train.divergence = {section.divergence!r} needs the teacher's probability of what "
            "the student would rather write, and a service tells only its own likeliest: use "
            "forward_kl."
        )
    if section.temperature != 1:
        raise InputError(
            "train.temperature must be 1 with a teacher behind a service: what it told of its "
            "likeliest tokens does not say how much the others would have at another."
        )
