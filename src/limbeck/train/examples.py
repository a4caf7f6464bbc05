"""Answers to examples: the tokens a student reads, and which of them it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from limbeck.errors import InputError
from limbeck.models.protocol import Asked
from limbeck.models.tokenizer import ChatTokenizer
from limbeck.records import Example, PackedTargets, Targets


def render(
    asked: Sequence[Asked],
    tokenizer: ChatTokenizer,
    targets: Mapping[str, Targets | PackedTargets] | None = None,
) -> list[Example]:
    """Prompt and answer tokens end to end, of which the answer's and its closing one are learnt.

    `targets` by answer id; without them the examples are for learning from the text alone.
    Raises InputError when the targets were made with another tokenizer.
    """
    examples: list[Example] = []
    for prompt, answer in asked:
        found = targets[answer.id] if targets is not None else None
        if found is not None and found.tokenizer_hash != tokenizer.hash:
            raise InputError(
                f"The targets for {prompt.source} were made with another tokenizer than the "
                "student's. Choose a student base with the teacher's tokenizer."
            )
        before = tokenizer.prompt_ids(prompt)
        token_ids = np.array([*before, *answer.token_ids], np.int64)
        loss_mask = np.arange(len(token_ids)) >= len(before)
        examples.append(Example(answer.id, token_ids, loss_mask, found))
    return examples
