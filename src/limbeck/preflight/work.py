"""What a recipe comes to: how many prompts, answers and tokens, counted where they can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.models.protocol import SCORE_TOKENS
from limbeck.models.tokenizer import ChatTokenizer
from limbeck.recipe import Recipe
from limbeck.records import Answer, Prompt

SAMPLE = 500  # prompts that are tokenised; the others are taken to be like them
BYTES_A_TOKEN, TOKENS_A_TURN = 4, 6
# Of answers that are not there yet: their share that is kept, and the mean length of all and of
# the kept ones as a share of `max_tokens`. Where answers are stored, theirs are taken.
KEPT, LENGTH, KEPT_LENGTH = 0.8, 0.6, 0.5


@dataclass(frozen=True, slots=True)
class Work:
    """Numbers of rows, and mean tokens of a row. `due` are the prompts without an answer yet.

    `padded_prompt` is the longest of a batch that is scored. `shared` are the tokens that all
    prompts begin with, which are read once. `counted` says whether lengths and shares of answers
    are those of stored answers.
    """

    prompts: int
    due: int
    held_out: int
    prompt_tokens: float
    longest_prompt: int
    padded_prompt: int
    shared: int
    answer_tokens: float
    kept_tokens: float
    kept: float
    counted: bool

    @property
    def examples(self) -> int:
        """Answers to learn from."""
        return max(1, round((self.prompts - self.held_out) * self.kept))

    @property
    def kept_back(self) -> int:
        """Kept answers to held-out prompts."""
        return max(1, round(self.held_out * self.kept))

    @property
    def example_tokens(self) -> float:
        """Mean tokens of a prompt with its kept answer."""
        return self.prompt_tokens + self.kept_tokens


def count(
    recipe: Recipe,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer] = (),
    tokenizer: ChatTokenizer | None = None,
    scale: float = 1.0,
) -> Work:
    """Count the work that a recipe's prompts come to.

    Args:
        recipe: the recipe.
        prompts: all prompts, or some that stand for `scale` times as many.
        answers: those that are stored.
        tokenizer: counts a sample of the prompts; without it four bytes are a token.
        scale: all prompts over those given.
    """
    longest = recipe.teacher.sampling(recipe.seed).max_tokens
    sample = prompts[:: max(1, len(prompts) // SAMPLE)]
    rows = [tokenizer.prompt_ids(p) for p in sample] if tokenizer else []
    lengths = [len(row) for row in rows] if tokenizer else [_by_bytes(p) for p in sample]
    kept = [len(a.token_ids) for a in answers if a.outcome == "kept"]
    counted = bool(kept)
    every = [len(a.token_ids) for a in answers]
    kept_tokens = sum(kept) / len(kept) if counted else KEPT_LENGTH * longest
    mean = sum(lengths) / max(1, len(lengths))
    return Work(
        prompts=round(len(prompts) * scale),
        due=round((len(prompts) - len(answers)) * scale),
        held_out=round(sum(p.split == "held_out" for p in prompts) * scale),
        prompt_tokens=mean,
        longest_prompt=max(lengths, default=0),
        padded_prompt=_padded(lengths, max(1, int(SCORE_TOKENS / (mean + kept_tokens)))),
        shared=_shared(rows),
        answer_tokens=sum(every) / len(every) if counted else LENGTH * longest,
        kept_tokens=kept_tokens,
        kept=len(kept) / len(every) if counted else KEPT,
        counted=counted,
    )


def _padded(lengths: Sequence[int], batch: int) -> int:
    """The mean of the longest of each batch."""
    longest = [max(lengths[at : at + batch]) for at in range(0, len(lengths), batch)]
    return round(sum(longest) / max(1, len(longest)))


def _shared(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with; 0 for a row alone."""
    if len(rows) < 2:
        return 0
    pairs = enumerate(zip(min(rows), max(rows), strict=False))
    return next((at for at, (one, other) in pairs if one != other), len(min(rows)))


def _by_bytes(prompt: Prompt) -> int:
    size = sum(len(m.content.encode()) for m in prompt.messages)
    return size // BYTES_A_TOKEN + TOKENS_A_TURN * (len(prompt.messages) + 1)
