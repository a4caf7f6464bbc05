"""Small networks, and prompts with answers, that several tests share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck.models.local import LocalModel
from limbeck.models.protocol import Asked
from limbeck.models.weights import find
from limbeck.records import Example, Message, Prompt, Sampling, Targets
from tiny import make_tokenizer, sums

LENGTHS = [12, 5, 30, 7, 7, 19, 2, 25, 11, 3]


def prompt(text: str, source: str = "prompts.jsonl:1") -> Prompt:
    """A train prompt of one user message."""
    messages = (Message("user", text),)
    return Prompt(Prompt.identify(messages), messages, source, "train")


def prompts(n: int = 48) -> list[Prompt]:
    """The first n prompts that the tiny teacher knows."""
    return [prompt(text, f"prompts.jsonl:{i}") for i, (text, _) in enumerate(sums()[:n], 1)]


def load(folder: Path, **options: Any) -> LocalModel:
    """The model in `folder`, in float32."""
    return LocalModel(find(str(folder)), precision="float32", **options)


def asked(model: LocalModel, some: Sequence[Prompt], max_tokens: int = 16) -> list[Asked]:
    """The prompts with the model's greedy answers, in order."""
    answers = {a.prompt_id: a for b in model.generate(some, Sampling(max_tokens)) for a in b}
    return [(p, answers[p.id]) for p in some]


def network(kind: str = "Llama", *, seed: int = 0, **changes: Any) -> Any:
    """An untrained causal language model of an architecture of transformers, in float32.

    Its weights are drawn large, so that its distributions are far from uniform.
    """
    import transformers

    settings: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "attn_implementation": "sdpa",
    }
    config = getattr(transformers, f"{kind}Config")(**settings | changes)
    torch.manual_seed(seed)
    return getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config).eval()


def save(made: Any, folder: Path, tokenizer: Any = None) -> Path:
    """Write a network and its tokenizer, the tiny one by default, as a model folder."""
    made.save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return folder


def examples_of(lengths: list[int], *, targets: bool = True, seed: int = 0) -> list[Example]:
    """Random tokens, of which some are learnt: each has targets that say whose they are."""
    rng = np.random.default_rng(seed)
    made: list[Example] = []
    for number, length in enumerate(lengths):
        ids = rng.integers(0, 64, length)
        mask = rng.random(length) < 0.6
        mask[0], mask[-1] = False, True
        at = np.flatnonzero(mask)
        told = Targets(
            answer_id=str(number),
            token_ids=ids[at],
            top_ids=np.stack([at, np.full(len(at), number)], -1),
            logprobs=-np.stack([at, ids[at]], -1).astype(np.float32),
            tail=(number + at / 100).astype(np.float32),
            tail_ids=np.stack([at, ids[at], np.full(len(at), number)], -1),
            tail_entropy=(number - at / 100).astype(np.float32),
            temperature=1.0,
            tokenizer_hash="",
        )
        made.append(Example(str(number), ids, mask, told if targets else None))
    return made


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Log-probabilities in float64, row by row."""
    wide = logits.astype(np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


@torch.no_grad()
def dense(model: LocalModel, one: Asked, temperature: float = 1.0) -> NDArray[np.float64]:
    """The oracle: log-probabilities (T, V) of one answer's tokens, by the network's own forward
    pass over this row alone, cut to the tokenizer's vocabulary."""
    before = model.tokenizer.prompt_ids(one[0])
    ids = torch.tensor([[*before, *one[1].token_ids]])
    logits = model.network(input_ids=ids).logits[0, len(before) - 1 : -1]
    return log_softmax(logits[:, : len(model.tokenizer.inner)].numpy() / temperature)
