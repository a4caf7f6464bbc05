"""Text to tokens and back: the tokenizer and its chat template, each known by its content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from limbeck.errors import InputError, first_line
from limbeck.records import Prompt, identity


class ChatTokenizer:
    """A model's tokenizer with its chat template.

    `hash` covers vocabulary, merges, added tokens, normaliser, pre-tokeniser and the switches that
    change how these are used, so that two tokenizers with equal hashes cut every text alike;
    vocabulary size alone would not tell.
    """

    def __init__(self, folder: Path) -> None:
        self.inner: Any = load_tokenizer(folder)
        if not self.inner.chat_template:
            raise InputError(
                f"{folder}: the tokenizer has no chat template, so prompts cannot be put to it. "
                "Use an instruction-tuned model."
            )
        self.hash = tokenizer_hash(self.inner)
        self.template_hash = identity("template", self.inner.chat_template)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens, up to where the assistant begins to speak."""
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        text = self.inner.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self.inner(text, add_special_tokens=False)["input_ids"]

    @cached_property
    def plain(self) -> Any:
        """The same tokenizer, of the tokenizers library, to which special tokens are plain text."""
        from tokenizers import Tokenizer

        made = Tokenizer.from_str(self.inner.backend_tokenizer.to_str())
        made.encode_special_tokens = True
        return made

    def answer_ids(self, text: str) -> list[int]:
        """An answer's tokens, closed as the assistant closes its own."""
        if self.inner.eos_token_id is None:
            raise InputError(
                f"{self.inner.name_or_path}: the tokenizer has no token that ends an answer "
                "(eos_token). Use an instruction-tuned model."
            )
        ids = self.plain.encode(text, add_special_tokens=False).ids
        return [*ids, self.inner.eos_token_id]

    def text(self, token_ids: Sequence[int]) -> str:
        """What the tokens say, without special tokens."""
        return self.inner.decode(token_ids, skip_special_tokens=True).strip()

    def stop_ids(self, generation_config: Any) -> tuple[int, ...]:
        """The tokens that end an answer, by the tokenizer and the model's generation settings."""
        ids = generation_config.eos_token_id if generation_config else None
        stops = {self.inner.eos_token_id, *(ids if isinstance(ids, list) else [ids])} - {None}
        return tuple(sorted(stops))


def byte_vocabulary(backend: Any) -> list[bytes | None] | None:
    """Each token's bytes, by id, of a byte-level tokenizer; None for tokens that are no text.

    `backend` is one of the tokenizers library. None where its tokens do not stand for the bytes of
    the text as it was written (SentencePiece, a normaliser, a space put in front).
    """
    told = json.loads(backend.to_str())
    if (told["decoder"] or {}).get("type") != "ByteLevel":
        return None
    # The alphabet of GPT-2's byte-level BPE: printable bytes stand for themselves, the others, in
    # order, for the characters from 256 on.
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in shown)
    byte_of = {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(others)}
    added = {token["content"] for token in told["added_tokens"]}
    found: list[bytes | None] = [None] * backend.get_vocab_size()
    for token, i in backend.get_vocab().items():
        if token not in added and all(c in byte_of for c in token):
            found[i] = bytes(byte_of[c] for c in token)
    text = "x é\n"
    pieces = [found[i] or b"" for i in backend.encode(text, add_special_tokens=False).ids]
    return found if b"".join(pieces) == text.encode() else None


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a model folder; InputError with the library's reason where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        reason = first_line(error)
        raise InputError(f"{folder}: its tokenizer cannot be loaded: {reason}") from None


def tokenizer_hash(tokenizer: Any) -> str:
    """The hash of what decides how text is cut (see `ChatTokenizer`)."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = backend["model"], backend["added_tokens"]
    switches = [key for key in ("byte_fallback", "ignore_merges") if model.get(key)]
    sides = ("lstrip", "rstrip", "single_word")
    switches += sorted(f"{t['content']} {side}" for t in added for side in sides if t[side])
    return identity(
        "tokenizer",
        sorted(tokenizer.get_vocab().items()),
        model.get("merges"),
        sorted((t["id"], t["content"], t["special"]) for t in added),
        backend["normalizer"],
        backend["pre_tokenizer"],
        *switches,
    )
