"""Which of several answers to one prompt are learnt from: what most say, and the best of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

from limbeck.records import Answer


def outvoted(
    answers: Sequence[Answer], final: Callable[[Answer], Hashable | None]
) -> dict[str, str]:
    """Of a prompt's `answers`, all that were sampled, those that most do not agree with.

    More than half of all must have the same `final` answer, whatever became of them otherwise;
    None agrees with nothing. Returns why, by answer id (self-consistency, arXiv 2203.11171,
    which takes the commonest, however few it may be).
    """
    said = {answer.id: final(answer) for answer in answers}
    votes = Counter(value for value in said.values() if value is not None)
    value, most = votes.most_common(1)[0] if votes else (None, 0)
    why = f"majority: {most} of {len(answers)} agree"
    if 2 * most <= len(answers):
        return dict.fromkeys(said, why)
    return {i: f"{why}, on another answer" for i, one in said.items() if one != value}


def beyond_best(
    answers: Sequence[Answer], scores: Mapping[str, float], best: int
) -> dict[str, str]:
    """Of a prompt's `answers` that passed, those beyond the `best` so many; why, by answer id.

    The highest of `scores` (0 where one has none) come first, the earlier of equals.
    """
    ordered = sorted(answers, key=lambda a: -scores.get(a.id, 0.0))
    return {a.id: f"best: {best} of {len(answers)} are kept" for a in ordered[best:]}
