"""A finished run's folder with real prompts, answers, targets and weights, made without a walk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tomli_w
from safetensors.numpy import save_file

from limbeck.collect import store as store_module
from limbeck.collect import targets as targets_module
from limbeck.collect.prompts import write_prompts
from limbeck.collect.store import AnswerStore
from limbeck.collect.targets import Binding, TargetsFolder
from limbeck.export.provenance import Provenance, gather
from limbeck.export.weights import export_student
from limbeck.files import sha256_file, write_text
from limbeck.models.protocol import Asked, Model
from limbeck.models.weights import Weights, find
from limbeck.recipe import Recipe, read_recipe
from limbeck.records import Answer, Message, Permission, Prompt, Sampling, Targets, Usage
from run_folder import write_run_folder

MIT = Permission(
    route="weights:tutor under mit",
    decision="allow",
    duties=("pass on the copyright line and the licence text",),
    clause="Use is free for any purpose; outputs are not restricted. Purpose: product.",
    source="licence in tutor/README.md; https://opensource.org/license/mit",
    date_read="2026-11",
    id="permission-mit",
)
LLAMA = Permission(
    route="weights:Llama-3.1-8B-Instruct under llama3.1",
    decision="allow",
    duties=(
        "name: Llama",
        "licence: llama3.1",
        "display: Built with Llama",
        "notice: Llama 3.1 is licensed under the Llama 3.1 Community License.",
        "policy: https://llama.meta.com/llama3_1/use-policy",
        "ask the owner above 700 million monthly users",
    ),
    clause="Outputs may train other models, whose names start with Llama. Purpose: product.",
    source="model card; https://llama.meta.com/llama3_1/license",
    date_read="2026-11-03",
    id="permission-llama",
)
ROWS = 24  # prompts of a.jsonl; b.jsonl has half as many


@dataclass(frozen=True)
class Made:
    """A finished run, and what it was made of."""

    folder: Path
    teacher: Weights
    answers: dict[str, Answer]

    @property
    def recipe(self) -> Recipe:
        return read_recipe(self.folder / "recipe.toml")

    @property
    def verdict(self) -> dict[str, Any]:
        return json.loads((self.folder / "verdict.json").read_text())

    def change(self, **sections: dict[str, Any]) -> None:
        """Change these keys of the recipe in the run folder; None takes one out."""
        table = self.recipe.model_dump(by_alias=True, exclude_none=True)
        for section, keys in sections.items():
            told = table[section] | keys
            table[section] = {key: value for key, value in told.items() if value is not None}
        write_text(self.folder / "recipe.toml", tomli_w.dumps(table))

    def gather(self, *terms: Permission, base: Weights | None = None) -> Provenance:
        """What the student's papers say under these terms; MIT's by default."""
        with AnswerStore(self.folder / "answers.sqlite", read_only=True) as store:
            return gather(
                self.folder,
                self.recipe,
                self.teacher,
                base or self.teacher,
                terms or (MIT,),
                self.verdict,
                list(self.answers.values()),
                store,
                "0.1.0",
            )


def make_weights(folder: Path, licence: str = "mit", seed: int = 0) -> Weights:
    """A model folder with a few random numbers, a card and a licence text."""
    folder.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    numbers = np.random.default_rng(seed).normal(size=64).astype(np.float32)
    save_file({"weight": numbers}, folder / "model.safetensors")
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    (folder / "LICENSE").write_text(f"The text of {licence}.\n")
    return find(str(folder))


def make_run(root: Path, permission: Permission = MIT) -> Made:
    """A run over two files of prompts, asked on two days, exported.

    Every sixth answer is truncated, every fourth prompt is held out, and the student was trained
    on the kept ones of a.jsonl and not on all of b.jsonl.
    """
    folder, _ = write_run_folder(root / "runs" / "support-replies")
    teacher = make_weights(root / "tutor")
    made = Made(folder, teacher, {})
    made.change(teacher={"model": str(teacher.folder)}, prompts={"source": str(root / "a.jsonl")})
    prompts = [
        *_prompts(root / "a.jsonl", ROWS),
        *_prompts(root / "b.jsonl", ROWS // 2),
    ]
    write_prompts(folder / "prompts.jsonl", prompts)
    asked = _ask(folder, made.recipe, teacher, prompts, permission)
    made.answers.update({answer.id: answer for _, answer in asked})
    kept = [(prompt, answer) for prompt, answer in asked if answer.outcome == "kept"]
    _targets(folder, teacher, kept)
    make_weights(folder / "checkpoints" / "student" / "final", seed=1)
    train = [(p, a) for p, a in kept if p.split == "train"]
    seen = {a.id: 2 if "a.jsonl" in p.source else 1 for p, a in train[:-3]}
    write_text(folder / "checkpoints" / "student" / "answers.json", json.dumps(seen))
    write_text(folder / "permission.json", json.dumps({"id": permission.id}))
    exported = export_student(
        folder / "checkpoints" / "student" / "final", made.gather(permission), folder / "student"
    )
    _manifest(folder, teacher, exported)
    return made


def _prompts(file: Path, rows: int) -> list[Prompt]:
    made = []
    for row in range(1, rows + 1):
        messages = (Message("user", f"Question {row} of {file.name}?"),)
        split = "held_out" if row % 4 == 0 else "train"
        made.append(Prompt(Prompt.identify(messages), messages, f"{file}:{row}", split))
    return made


def _ask(
    folder: Path, recipe: Recipe, teacher: Weights, prompts: Sequence[Prompt], terms: Permission
) -> list[Asked]:
    """Store answers to a.jsonl on the first of November, to b.jsonl on the second."""
    sampling = recipe.teacher.sampling(recipe.seed)
    asked = [(p, _answer(n, p, teacher, sampling)) for n, p in enumerate(prompts, 1)]
    with pytest.MonkeyPatch.context() as patch:
        for day, file in ((1, "a.jsonl"), (2, "b.jsonl")):
            patch.setattr(store_module, "_now", lambda day=day: f"2026-11-0{day}T10:00:00+00:00")
            with AnswerStore(folder / "answers.sqlite", terms) as store:
                store.add(answer for prompt, answer in asked if file in prompt.source)
    return asked


def _answer(number: int, prompt: Prompt, teacher: Weights, sampling: Sampling) -> Answer:
    cut = number % 6 == 0
    return Answer(
        id=Answer.identify(prompt.id, teacher.fingerprint, "local", sampling),
        prompt_id=prompt.id,
        model=teacher.fingerprint,
        route="local",
        sampling=sampling,
        text=f"Answer {number}, as a tutor gives it.",
        reasoning="",
        tool_calls=(),
        token_ids=tuple(range(number, number + 5)),
        finish_reason="length" if cut else "stop",
        usage=Usage(7, 5, 0.1 * number),
        outcome="truncated" if cut else "kept",
        why="longer than 128 tokens" if cut else "",
    )


class _Scorer:
    """A model that only scores: each token's own number is the likeliest."""

    def score(
        self, rows: Sequence[Asked], top_k: int, temperature: float, tail_samples: int = 0
    ) -> Iterator[Targets]:
        for _, answer in rows:
            ids = np.array(answer.token_ids)
            yield Targets(
                answer_id=answer.id,
                token_ids=ids,
                top_ids=ids[:, None] + np.arange(top_k),
                logprobs=np.log(np.tile([0.5, 0.25], (len(ids), 1))).astype(np.float32),
                tail=np.full(len(ids), 0.25, np.float32),
                tail_ids=ids[:, None] + np.arange(top_k, top_k + tail_samples),
                tail_entropy=np.full(len(ids), 0.6, np.float32),
                temperature=temperature,
                tokenizer_hash="tokenizer",
            )


def _targets(folder: Path, teacher: Weights, asked: Sequence[Asked]) -> None:
    binding = Binding(teacher.fingerprint, "tokenizer", "template", 500, 2, 1, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets_module, "SHARD_TOKENS", 60)
        TargetsFolder(folder / "targets", binding).write(cast(Model, _Scorer()), asked)


def _manifest(folder: Path, teacher: Weights, exported: dict[str, Any]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    facts = {
        "collect": {"teacher": teacher.name, "fingerprint": teacher.fingerprint, "route": "local"},
        "validate": {"sha256": sha256_file(folder / "verdict.json")},
        "export": exported,
    }
    for stage, told in facts.items():
        manifest["stages"][stage]["facts"] |= told
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1))


def renamed(permission: Permission, **changes: Any) -> Permission:
    """The permission with other contents, under an id that says so."""
    return replace(permission, **{"id": f"{permission.id}-changed", **changes})
