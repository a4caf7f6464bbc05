"""Text to tokens and back: the tokenizer and its chat template, each known by its content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from limbeck.errors import InputError, first_line
from limbeck.models.tools import call_table, tool_table, turn
from limbeck.records import Answer, Prompt, identity


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
        """The prompt's tokens, up to where the assistant begins to speak.

        Raises InputError where the template leaves out its tools, or refuses its turns.
        """
        turns = [turn(message) for message in prompt.messages]
        text = self._written(prompt, turns)
        if prompt.tools and text == self._written(replace(prompt, tools=()), turns):
            raise InputError(
                f"{prompt.source}: the chat template knows no tools. Use a model that calls tools, "
                "or take the tools out of the prompts."
            )
        return self._cut(text)

    def template_ids(self, prompt: Prompt, answer: Answer, *, reasoning: bool = False) -> list[int]:
        """The answer's tokens as the template writes it, its closing token included.

        With `reasoning`, that is written where the template has a place for it, else before the
        text in <think> tags, as most models that reason write it. Raises InputError where the
        template leaves out what was called.
        """
        said: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if answer.tool_calls:
            said["tool_calls"] = [call_table(call) for call in answer.tool_calls]
        thought = answer.reasoning.strip() if reasoning else ""
        text = self._said(prompt, said | ({"reasoning_content": thought} if thought else {}))
        if thought and thought not in text:
            said["content"] = f"<think>\n{thought}\n</think>\n\n{answer.text}"
            text = self._said(prompt, said)
        names = [call["name"] for call in answer.tool_calls]
        if missing := next((part for part in (thought, *names) if part not in text), None):
            raise InputError(
                f"{prompt.source}: the chat template leaves out {missing[:40]!r} of the answer. "
                "Use a model whose template has a place for it, or prompts without."
            )
        return self._cut(text)

    def _said(self, prompt: Prompt, said: dict[str, Any]) -> str:
        """What a last turn of the assistant adds, up to the token that closes it."""
        turns = [turn(message) for message in prompt.messages]
        before = self._written(prompt, turns)
        whole = self._written(prompt, [*turns, said], answered=True)
        end = self.inner.eos_token
        if not whole.startswith(before):
            raise InputError(
                f"{prompt.source}: the chat template writes the prompt otherwise once it is "
                "answered, so that the answer's tokens cannot be told. Use another model."
            )
        text, closed, _ = whole[len(before) :].rpartition(end)
        return (text if closed else whole[len(before) :].rstrip()) + end

    def _written(
        self, prompt: Prompt, turns: list[dict[str, Any]], *, answered: bool = False
    ) -> str:
        from jinja2 import TemplateError

        tools = [tool_table(tool) for tool in prompt.tools] or None
        try:
            return self.inner.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=not answered
            )
        except TemplateError as error:
            raise InputError(
                f"{prompt.source}: the chat template does not take this prompt: {first_line(error)}"
            ) from None

    def _cut(self, text: str) -> list[int]:
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
