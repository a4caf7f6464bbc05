"""A conversation with the student, and with its teacher beside it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from limbeck.errors import InputError
from limbeck.models import weights as models
from limbeck.progress import console, say
from limbeck.recipe import Recipe
from limbeck.records import Message, Prompt, Sampling
from limbeck.run import resolve

if TYPE_CHECKING:
    from limbeck.models.local import LocalModel


def converse(
    folder: Path, *, beside: bool, prompt: str | None, max_tokens: int, as_json: bool
) -> None:
    """Answer `prompt` once, or each line typed until an empty one; history is kept.

    With `as_json`, prints one document with every turn: prompt, answers, tokens a second.
    """
    if max_tokens < 1:
        raise InputError(f"--max-tokens must be 1 or more, not {max_tokens}")
    if prompt is not None and not _utf8(prompt).strip():
        raise InputError("--prompt is empty: give it a question, or leave it out to type some")
    recipe, folder = resolve(folder, None)
    speakers = _speakers(recipe, folder, beside)
    system = recipe.prompts.system
    opening = (Message("system", system),) if system else ()
    history: dict[str, tuple[Message, ...]] = dict.fromkeys(speakers, opening)
    turns: list[dict[str, Any]] = []
    out = Console(highlight=False, emoji=False)
    while True:
        asked = prompt if prompt is not None else _typed()
        if not asked.strip():
            break
        turn: dict[str, Any] = {"prompt": asked}
        for role, model in speakers.items():
            turn[role] = _turn(model, history[role], asked, max_tokens)
            history[role] += (Message("user", asked), Message("assistant", turn[role]["text"]))
            if not as_json:
                rate = f"{turn[role]['tokens_per_s']:.0f} tokens/s"
                out.print(f"[bold]{role}[/] [dim]({rate})[/]")
                out.print(turn[role]["text"], markup=False, soft_wrap=True)
        turns.append(turn)
        if prompt is not None:
            break
    if as_json:
        print(json.dumps({"turns": turns}, ensure_ascii=False))  # noqa: T201


def _speakers(recipe: Recipe, folder: Path, beside: bool) -> dict[str, LocalModel]:
    student = folder / "student"
    if not (student / "config.json").exists():
        raise InputError(f"{folder} has no student yet: run limbeck distill {folder} first")
    from limbeck.models.local import LocalModel

    speakers = {"student": LocalModel(models.find(str(student)))}
    if beside:
        section = recipe.teacher
        if section.served:
            raise InputError("--beside needs the teacher's weights, and a service keeps its own")
        found = models.find(section.model, revision=section.revision, sha256=section.sha256)
        trusted = section.trust_remote_code
        speakers["teacher"] = LocalModel(found, trust_remote_code=trusted)
    return speakers


def _turn(
    model: LocalModel, history: tuple[Message, ...], asked: str, max_tokens: int
) -> dict[str, Any]:
    messages = (*history, Message("user", asked))
    prompt = Prompt(Prompt.identify(messages), messages, "chat", "held_out")
    began = time.perf_counter()
    (answer,) = next(model.generate([prompt], Sampling(max_tokens)))
    seconds = time.perf_counter() - began
    return {"text": answer.text, "tokens_per_s": round(answer.usage.tokens_out / seconds, 1)}


def _typed() -> str:
    try:
        if sys.stdin.isatty():
            return _utf8(console.input("[bold cyan]you>[/] "))
        return _utf8(input())
    except UnicodeDecodeError as error:
        raise InputError(f"what was typed is not valid UTF-8: {error}") from None
    except EOFError:
        say("")
        return ""


def _utf8(typed: str) -> str:
    """The text; InputError where bytes were let through that are none."""
    try:
        typed.encode()
    except UnicodeEncodeError:
        raise InputError("what was typed is not valid UTF-8") from None
    return typed
