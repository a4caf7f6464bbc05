"""What every model can be asked, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

from limbeck.records import Answer, Prompt, Sampling, Targets

Asked: TypeAlias = tuple[Prompt, Answer]
OnTokens: TypeAlias = Callable[[int], None]


def _quiet(_: int) -> None:
    pass


QUIET: OnTokens = _quiet


class Model(Protocol):
    """One protocol for teacher, student, control and judge.

    `fingerprint` is the hash of what the model is (its weights), `route` how it is reached: both
    are part of an answer's identity.
    """

    name: str
    route: str
    fingerprint: str

    def generate(
        self, prompts: Iterable[Prompt], sampling: Sampling, on_tokens: OnTokens = QUIET
    ) -> Iterator[list[Answer]]:
        """Answer every prompt; lists come as they finish, in an order the model chooses.

        A list is durable when the next one is asked for.

        For the same prompts in the same state of the store the order is the same, so that an
        interrupted run goes on as if it had not been. `on_tokens` hears of new tokens.
        """
        ...

    def score(
        self, asked: Sequence[Asked], top_k: int, temperature: float, tail_samples: int = 0
    ) -> Iterator[Targets]:
        """The model's distribution over each token of each answer, in the order given.

        `top_k` log-probabilities a token are kept, and `tail_samples` tokens drawn from the others,
        the same ones whenever this answer is scored.
        """
        ...
