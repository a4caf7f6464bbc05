"""What a student's tokens are compared with: stored targets or a live teacher, and their checks.

Shapes: N tokens, H hidden, V vocabulary, K kept a token, S sampled of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import InputError, ServiceError
from limbeck.models.head import Head

_MASS_SLACK = 0.1  # by which stored probabilities, which are rounded, may miss 1


class TargetError(ServiceError):
    """What the teacher says of one token is no distribution. `row` is the token's number."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(
            f"The teacher's distribution for token {row} of the batch {what}. Score the answers "
            "again; if it stays so, the teacher's weights or its precision are at fault."
        )
        self.row = row


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """What was stored of the teacher's distribution for N tokens: its top K and its tail.

    `top_ids` int64 (N, K), distinct in each row; `logprobs` (N, K) in nats; `tail` (N,), the mass
    of all other tokens. For the unbiased forward KL also `tail_ids` int64 (N, S), drawn by the
    teacher outside the top K with replacement, and `tail_entropy` (N,), −Σ p log p outside it.
    """

    top_ids: Tensor
    logprobs: Tensor
    tail: Tensor
    tail_ids: Tensor | None = None
    tail_entropy: Tensor | None = None

    def rows(self, which: slice) -> Sparse:
        """The same for some of the tokens."""
        ids, entropy = self.tail_ids, self.tail_entropy
        return Sparse(
            self.top_ids[which],
            self.logprobs[which],
            self.tail[which],
            None if ids is None else ids[which],
            None if entropy is None else entropy[which],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """A teacher at hand: its final `states` (N, its own H) for the same tokens, and its `head`."""

    states: Tensor
    head: Head


def one_hot(labels: Tensor) -> Sparse:
    """The text as a teacher that is sure of it."""
    nothing = torch.zeros(len(labels), device=labels.device)
    return Sparse(labels[:, None], nothing[:, None], nothing)


def check_states(owner: str, states: Tensor, head: Head) -> None:
    """Raise InputError unless there are states, and `head` is a linear layer that takes them."""
    if not isinstance(head.project, torch.nn.Linear):
        name = type(head.project).__name__
        raise InputError(f"The {owner}'s head is a {name}; the loss needs a plain linear layer.")
    hidden = head.project.weight.shape[1]
    if states.shape[1] != hidden:
        raise InputError(
            f"The {owner}'s head takes states of size {hidden}, and these have {states.shape[1]}: "
            "head and body belong to different models."
        )
    if len(states) == 0:
        raise InputError("There is nothing to learn: every position of the batch is masked.")


def check_targets(targets: Sparse | Live, tokens: int, vocabulary: int) -> None:
    """Raise InputError or TargetError unless `targets` fit a student with this vocabulary."""
    if isinstance(targets, Live):
        rows = len(targets.states)
        check_states("teacher", targets.states, targets.head)
        if targets.head.vocabulary != vocabulary:
            raise InputError(
                f"The teacher's vocabulary has {targets.head.vocabulary} tokens, the student's "
                f"{vocabulary}. Choose a student base with the teacher's tokenizer."
            )
    else:
        rows = len(targets.top_ids)
    if rows != tokens:
        raise ValueError(f"rows differ: {tokens} of states, {rows} of targets")
    if isinstance(targets, Sparse):
        _check_sparse(targets, vocabulary)


def _check_sparse(targets: Sparse, vocabulary: int) -> None:
    if (kept := targets.top_ids.shape[1]) > vocabulary:
        raise InputError(
            f"The targets hold {kept} tokens a position, and the student's vocabulary only has "
            f"{vocabulary}. Lower train.top_k."
        )
    for ids in (targets.top_ids, targets.tail_ids):
        if ids is not None and not 0 <= ids.min() <= ids.max() < vocabulary:
            raise InputError(
                f"The targets name tokens {int(ids.min())} to {int(ids.max())}, and the student's "
                f"vocabulary ends at {vocabulary - 1}: they were made with another tokenizer."
            )
    mass, entropy = targets.logprobs.exp().sum(-1), targets.tail_entropy
    sound = targets.logprobs.isfinite().all(-1)
    if kept < vocabulary:
        mass = mass + targets.tail
        sound &= targets.tail >= 0
    if entropy is not None:
        sound &= entropy.isfinite()
    bad = ~(sound & ((mass - 1).abs() <= _MASS_SLACK))
    if bad.any():
        row = int(bad.nonzero()[0])
        no_number = "holds a value that no distribution has"
        raise TargetError(row, f"adds up to {mass[row]:.3g}, not 1" if sound[row] else no_number)
