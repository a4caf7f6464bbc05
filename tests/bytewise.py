"""Language models over bytes whose every probability is known, and tokenizers that cut them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from limbeck.collect.alignment import Pieces
from limbeck.models.tokenizer import byte_vocabulary
from limbeck.records import TopLogprobs

LETTERS = "abc"
END = "<|im_end|>"


def tokenizer(corpus: Sequence[str], merges: int) -> Any:
    """A byte-level BPE without a pre-tokenizer's words, so that a token may hold any bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=257 + merges,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus, trainer)
    return made


def pieces(made: Any) -> Pieces:
    """The tokenizer as an aligner sees it."""
    found = byte_vocabulary(made)
    assert found is not None
    return Pieces(found, lambda text: made.encode(text).ids, made.token_to_id(END))


@dataclass(frozen=True)
class World:
    """Every text of up to `longest` letters with its probability, by a Markov chain over bytes."""

    seed: int
    longest: int = 6

    @cached_property
    def texts(self) -> dict[str, float]:
        rng = np.random.default_rng(self.seed)
        ends = len(LETTERS)
        chain: dict[str, Any] = {}
        found: dict[str, float] = {}
        for length in range(1, self.longest + 1):
            for letters in product(LETTERS, repeat=length):
                text, chance = "".join(letters), 1.0
                for i in range(length):
                    state = text[max(0, i - 2) : i]
                    row = chain.setdefault(state, rng.dirichlet(np.full(ends + 1, 0.6)))
                    if not i:
                        row = row / row[:ends].sum() * (np.arange(ends + 1) < ends)
                    chance *= row[LETTERS.index(text[i])]
                if length < self.longest:
                    state = text[max(0, length - 2) :]
                    chance *= chain.setdefault(state, rng.dirichlet(np.full(ends + 1, 0.6)))[ends]
                found[text] = chance
        total = sum(found.values())
        return {text: chance / total for text, chance in found.items()}

    def sample(self, n: int, seed: int = 0) -> list[str]:
        """Texts drawn from it."""
        rng = np.random.default_rng(seed)
        return rng.choice([*self.texts], n, p=[*self.texts.values()]).tolist()

    def cut(self, made: Any) -> dict[str, list[bytes]]:
        """Every text in a tokenizer's tokens, with the end, which has no bytes."""
        vocabulary = byte_vocabulary(made)
        assert vocabulary is not None
        return {t: [*(vocabulary[i] or b"" for i in made.encode(t).ids), b""] for t in self.texts}


def told(world: World, cut: dict[str, list[bytes]], text: str, top: int = 99) -> list[TopLogprobs]:
    """What a teacher that is this world, with this tokenizer, tells of a text: exactly."""
    rows: list[TopLogprobs] = []
    for i, token in enumerate(cut[text]):
        before = cut[text][:i]
        mass: dict[bytes, float] = {}
        for other, chance in world.texts.items():
            if cut[other][:i] == before:
                mass[cut[other][i]] = mass.get(cut[other][i], 0.0) + chance
        total = sum(mass.values())
        logs = {t: float(np.log(m / total)) for t, m in mass.items() if m > 0}
        likeliest = sorted(logs.items(), key=lambda one: -one[1])[:top]
        rows.append(TopLogprobs(token, logs[token], tuple(likeliest)))
    return rows
