"""A tiny chat model of our own, trained in seconds: small, and real enough to speak.

It has learnt by heart to answer `What is K plus J?` for small K and J, so it ends its answers and
is sure of some tokens and less sure of others, as a teacher is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen"),
)
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAYERS, HIDDEN, CONTEXT = 4, 48, 128


def sums() -> list[tuple[str, str]]:
    """Every prompt that the tiny teacher knows, with its answer."""
    return [
        (f"What is {WORDS[a]} plus {WORDS[b]}?", f"It is {WORDS[a + b]}.")
        for a in range(8)
        for b in range(6)
    ]


def write_prompts(path: Path) -> Path:
    """The prompts as JSONL."""
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p, _ in sums()))
    return path


def make_tokenizer(texts: list[str] | None = None, size: int = 360) -> Any:
    """A byte-level BPE with ChatML's special tokens, trained on `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts or [f"{p} {a}" for p, a in sums()], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    made.chat_template = TEMPLATE
    return made


def make_model(folder: Path, *, steps: int = 250, seed: int = 0, licence: str = "mit") -> Path:
    """Train the tiny teacher and save it to `folder` with a model card."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)  # threads cost more than they bring at this size
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model: Any = LlamaForCausalLM(config)
    ids, labels = _lessons(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / steps)
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# tiny\n")
    return folder


def _lessons(tokenizer: Any) -> tuple[Any, Any]:
    import torch

    rows = []
    for prompt, answer in sums():
        before = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        asked = tokenizer(before, add_special_tokens=False)["input_ids"]
        said = tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
        rows.append((asked, said))
    width = max(len(a) + len(b) for a, b in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for i, (asked, said) in enumerate(rows):
        ids[i, : len(asked) + len(said)] = torch.tensor(asked + said)
        labels[i, len(asked) : len(asked) + len(said)] = torch.tensor(said)
    return ids, labels
