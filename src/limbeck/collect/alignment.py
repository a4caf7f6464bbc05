"""A teacher's log-probabilities over its own tokens as targets for a student's, by their bytes.

A service tells, for each token that it wrote, that token's bytes and log-probability and those of
the likeliest others. From the teacher's boundary at or before a student's token they make a comb:
each alternative is a leaf, and the token that was written leads on to the next one's alternatives,
with the product of the probabilities. A leaf is a string of bytes that the text goes on with. Of
the leaves that agree with the bytes r between that boundary and the student's token, the rest of
each is put to the student's tokenizer: its first token v is what the student would write.

    P(v | r) ≥ Σ of settled leaves r·ρ with first(ρ) = v  ÷  (Σ of leaves that agree with r + rest)

A leaf is settled if v stays the first token whatever may follow. What may follow is enumerated as
every student token that goes on past the leaf's end: the covers of Hayase et al. (arXiv
2506.14123), by which Phan et al. (arXiv 2410.09303, 2512.14954) get probabilities of bytes and of
another tokenizer's tokens from a teacher at hand. One thing is left out as impossible: that the
teacher goes on in a way for which it has a longer token, as it would have written that one. And a
leaf counts for no token where the student's token before it would have been cut otherwise.

Nothing is renormalised to look complete. Every probability is a lower bound, and `tail` is all the
rest: what the service did not tell, and what is not settled. Adding it gives the upper bound. Where
a token begins within one of the teacher's, the denominator conditions on r, and where more than
half of it is not known, or the token that was written is not among those kept, its target is the
text itself: it with probability 1, and `known` is false there.

Why not others: ULD (arXiv 2402.12030) compares sorted probabilities, whoever's they are, and cannot
tell a right token from a wrong one; ALM (arXiv 2503.20083) compares one likelihood a chunk, of what
was written, and says nothing of the alternatives; BLD (arXiv 2604.07466) needs the whole
distribution and a byte head. Measured in docs/decisions/0016.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, islice

import numpy as np
from numpy.typing import NDArray

from limbeck.collect.packing import DEEPEST
from limbeck.records import TopLogprobs

KNOWN = 0.5  # share of what agrees with r that must be known
ENDS = frozenset({
    b"", b"</s>", b"<|im_end|>", b"<|eot_id|>", b"<|endoftext|>", b"<|end|>", b"<|return|>",
    b"<end_of_turn>", b"<eos>",
})  # fmt: skip
"""How services write the end of an answer."""


class Pieces:
    """A byte-level tokenizer, by bytes.

    Args:
        vocabulary: each token's bytes, by id; None for those that are no text.
        encode: text to ids, in isolation and without special tokens.
        end: the token that closes an answer.
    """

    def __init__(
        self,
        vocabulary: Sequence[bytes | None],
        encode: Callable[[str], Sequence[int]],
        end: int,
    ) -> None:
        self.vocabulary, self.end = vocabulary, end
        self.encode = lru_cache(maxsize=1 << 18)(lambda text: tuple(encode(text)))
        self.ids = {piece: i for i, piece in enumerate(vocabulary) if piece}
        self.ordered = sorted(self.ids)
        self.longest = max(map(len, self.ordered))
        self.inner = {p[i : i + 2] for p in self.ordered for i in range(len(p) - 1)}
        never = (*range(9), *range(14, 32), 0xC0, 0xC1, *range(0xF5, 0x100))
        self.never = [self.ids[bytes([b])] for b in never if bytes([b]) in self.ids]

    def first(self, rest: bytes) -> int | None:
        """The first token of `rest`; None where that is no whole text, or cut unfaithfully."""
        text = _text(rest)
        if not text:
            return None
        first = self.encode(text)[0]
        piece = self.vocabulary[first]
        return first if piece and rest.startswith(piece) else None

    def beyond(self, rest: bytes, first: int) -> Iterator[bytes]:
        """By what a token may go on past the end of `rest`, where that could change its first."""
        found = self.vocabulary[first]
        length = len(found) if found else 0
        for start in range(max(0, len(rest) - self.longest), len(rest)):
            if start >= length and self.first(rest[:start]) == first:
                continue
            begun = rest[start:]
            for place in range(bisect_left(self.ordered, begun), len(self.ordered)):
                token = self.ordered[place]
                if not token.startswith(begun):
                    break
                if len(token) > len(begun):
                    yield token[len(begun) :]


@dataclass(frozen=True, slots=True, eq=False)
class Aligned:
    """Targets for T student tokens: `top_ids` int64 and `logprobs` float32 (T, K), `tail` (T,).

    `known` bool (T,) is false where the target is the text itself.
    """

    top_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    tail: NDArray[np.float32]
    known: NDArray[np.bool_]


class Aligner:
    """From one teacher's tokens to one student's.

    Args:
        student: its tokenizer.
        teacher: tokens that the teacher has, all or those that were seen; the fewer, the more
            counts as not settled.
        same: the teacher's tokenizer is the student's; each token then stands for itself.
    """

    def __init__(
        self, student: Pieces, teacher: Set[bytes] = frozenset(), *, same: bool = False
    ) -> None:
        self.student, self.teacher, self.same = student, teacher, same
        self._settled: dict[tuple[bytes, bytes], int | None] = {}

    def align(
        self, told: Sequence[TopLogprobs], ids: Sequence[int], text: bytes, top_k: int
    ) -> Aligned | None:
        """Targets for the answer's student tokens `ids`, of which the last closes it.

        `told` may hold more than `text`: space around it, or reasoning before it. None where the
        tokens of either side do not make up the text. K is `width(top_k)`: a row that knows fewer
        is filled with tokens that no text holds, at a probability of e⁻²⁴.
        """
        pieces = [self.student.vocabulary[i] or b"" for i in ids[:-1]]
        written = [b"" if t.token in ENDS else t.token for t in told]
        whole = b"".join(written)
        offset = whole.rfind(text)
        if not text or offset < 0 or b"".join(pieces) != text:
            return None
        starts = [0, *accumulate(map(len, written))]
        rows: list[dict[int, float]] = []
        before = b""
        for piece in [*pieces, b""]:
            at = bisect_right(starts, offset) - 1
            while at and starts[at - 1] == offset:  # an end has no length
                at -= 1
            closing = not piece and [t.token in ENDS for t in told[at : at + 1]] != [True]
            agreed = whole[starts[at] : offset]
            rows.append({} if closing else self._masses(told, at, agreed, before))
            before, offset = piece, offset + len(piece)
        return self._table(rows, ids, top_k)

    def text(self, ids: Sequence[int], top_k: int) -> Aligned:
        """The same for an answer of which only the text is known."""
        return self._table([{}] * len(ids), ids, top_k)

    def width(self, top_k: int) -> int:
        """How many tokens a row of targets has."""
        return min(top_k, 1 + len(self.student.never))

    def _masses(
        self, told: Sequence[TopLogprobs], at: int, agreed: bytes, before: bytes
    ) -> dict[int, float]:
        """Lower bounds of the probabilities of student tokens after `agreed`, from teacher's `at`.

        Empty where too little is known.
        """
        found: dict[int, float] = {}
        unknown, known = 0.0, 0.0
        for bytes_, token, mass, ended in self._leaves(told, at, agreed, before):
            if bytes_ is None:
                unknown += mass
            elif not bytes_.startswith(agreed):
                unknown += mass if agreed.startswith(bytes_) and not ended else 0.0
            else:
                first = self._first(bytes_[len(agreed) :], token, before, ended)
                if first is None:
                    unknown += mass
                else:
                    found[first] = found.get(first, 0.0) + mass
                    known += mass
        if not agreed:
            return found
        if known < KNOWN * (known + unknown):
            return {}
        return {v: mass / (known + unknown) for v, mass in found.items()}

    def _leaves(
        self, told: Sequence[TopLogprobs], at: int, agreed: bytes, before: bytes
    ) -> Iterator[tuple[bytes | None, bytes, float, bool]]:
        """The comb from the teacher's token `at`: bytes, last token, mass, whether it ends there.

        Bytes are None for the mass that the service did not tell.
        """
        path, mass = b"", 1.0
        for row in told[at:]:
            alternatives = dict.fromkeys([row.token], row.logprob) | dict(row.top)
            chances = {token: float(np.exp(lp)) for token, lp in alternatives.items()}
            yield None, b"", mass * max(0.0, 1 - sum(chances.values())), False
            own = chances.pop(row.token)
            for token, chance in chances.items():
                ended = token in ENDS
                yield path + (b"" if ended else token), token, mass * chance, ended
            ended = row.token in ENDS
            path, mass = path + (b"" if ended else row.token), mass * own
            rest = path[len(agreed) :]
            settled = bool(rest) and self._first(rest, row.token, before, ended) is not None
            if ended or settled:
                yield path, row.token, mass, ended
                return
        yield None, b"", mass, False

    def _first(self, rest: bytes, token: bytes, before: bytes, ended: bool) -> int | None:
        """The student's first token of `rest`, the end of a leaf whose last token is `token`.

        None where what follows may change it, or where `before` would have been cut otherwise.
        """
        if self.same:
            return self.student.end if ended and not rest else self.student.ids.get(rest)
        if not rest:
            return self.student.end if ended else None
        cut = self.student.first if ended else lambda raw: self._unchanging(raw, token)
        joined = before[-1:] + rest[:1] in self.student.inner
        if joined and cut(before + rest) != self.student.ids.get(before):
            return None
        return cut(rest)

    def _unchanging(self, rest: bytes, token: bytes) -> int | None:
        """The first token of every text that begins with `rest`, whose end `token` is, if one."""
        key = (rest, token)
        if key not in self._settled:
            self._settled[key] = self._settle(rest, token)
        return self._settled[key]

    def _settle(self, rest: bytes, token: bytes) -> int | None:
        first = self.student.first(_whole(rest))
        if first is None:
            return None
        for more in self.student.beyond(rest, first):
            if any(token + more[:n] in self.teacher for n in range(1, len(more) + 1)):
                continue
            if self.student.first(_whole(rest + more)) not in (first, None):
                return None
        return first

    def _table(self, rows: Sequence[dict[int, float]], ids: Sequence[int], top_k: int) -> Aligned:
        shape = (len(rows), width := self.width(top_k))
        top_ids, mass = np.zeros(shape, np.int64), np.zeros(shape)
        known = np.zeros(len(rows), bool)
        for t, (row, written) in enumerate(zip(rows, ids, strict=True)):
            # The token that was written comes first: were it left out where it is unlikely, and its
            # text learnt instead, the unlikely would be learnt twice.
            order = sorted(row.items(), key=lambda one: (one[0] != written, -one[1], one[0]))
            kept = dict(order[:width])
            known[t] = kept.get(written, 0.0) > 0
            kept = kept if known[t] else {written: 1.0}
            fill = (i for i in self.student.never if i not in kept)
            kept |= dict.fromkeys(islice(fill, width - len(kept)), 0.0)
            top_ids[t], mass[t] = [*kept], [*kept.values()]
        logprobs = np.log(np.maximum(mass, np.exp(-DEEPEST))).astype(np.float32)
        tail = np.maximum(0.0, 1 - mass.sum(-1)).astype(np.float32)
        return Aligned(top_ids, logprobs, tail, known)


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _whole(raw: bytes) -> bytes:
    """Up to the first byte that is no text, or belongs to a character that is not finished."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return raw[: error.start]
    return raw
