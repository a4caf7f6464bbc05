"""What a user can get wrong: one line that names it, the right exit code, nothing half done."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny import make_tokenizer
from tiny import sums as known_sums
from walking import Done, Walk, complaint, parts, stored

NewWalk = Callable[..., Walk]


# -- the recipe --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"train": {"learning_rat": 1e-3}}, ["train.learning_rat", "learning_rate"]),
        ({"trian": {"steps": 1}}, ["trian", "'train'"]),
        ({"train": {"steps": "many"}}, ["train.steps"]),
        ({"train": {"minutes": 3}}, ["steps", "minutes", "epochs"]),
        ({"prompts": {"held_out": 1.5}}, ["held_out", "between 0 and 1"]),
        ({"student": {"layers": 2, "parameters": "1M"}}, ["layers or parameters"]),
        ({"permit": {"purpose": "profit"}}, ["permit.purpose", "'product'"]),
        ({"teacher": {"model": "no/such/folder/here"}}, ["no/such/folder/here"]),
        ({"teacher": {"model": "pypi:no-such-package-4f1c"}}, ["no-such-package-4f1c"]),
        ({"teacher": {"model": "nobody/nothing"}}, ["nobody/nothing"]),
        ({"teacher": {"model": "x" * 300}}, ["xxx"]),
        ({"prompts": {"held_out": "nowhere.jsonl"}}, ["nowhere.jsonl"]),
    ],
)
def test_wrong_key_or_value(walk: NewWalk, wrong: dict[str, Any], named: list[str]):
    there = walk(**wrong)
    told = complaint(there.limbeck("distill", "recipe.toml"), 2)
    assert all(name in told for name in named), told
    assert not (there.run / "answers.sqlite").exists()
    assert not parts(there.folder)


@pytest.mark.parametrize("content", [None, "name = [", 'name = "sums"\n', b"\xff\xfe\x00"])
def test_recipe_that_is_none(walk: NewWalk, content: str | bytes | None):
    there = walk()
    there.recipe.unlink()
    if content is not None:
        there.recipe.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "recipe.toml" in complaint(there.limbeck("distill", "recipe.toml"), 2)
    assert not (there.folder / "runs").exists()


def test_recipe_may_be_mended_before_the_answers(walk: NewWalk, sums: Path):
    """What a refusal advises to change in the recipe can be changed for the same run folder."""
    there = walk(prompts={"field": "question"})
    assert "prompts.field" in complaint(there.limbeck("collect", "recipe.toml"), 2)
    there.recipe.write_text(there.recipe.read_text().replace("question", "query"))
    assert "'query'" in complaint(there.limbeck("collect", "recipe.toml"), 2)
    assert 'field = "query"' in (there.run / "recipe.toml").read_text()


# -- prompts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "does not exist"),
        ("", "holds no prompts"),
        ('{"prompt": "one"}\n{"prompt": 2}\n', ":2: 'prompt' must be text"),
        ('{"prompt": "one"}\n' * 99 + '{"prompt": " "}\n', ":100: 'prompt' is empty"),
        ('{"prompt": "one"}\n{"prompt": \n', ":2: not valid JSON"),
        ('{"question": "one"}\n', "'question'"),
        ('{"prompt": "one"}\n', "held_out"),
    ],
)
def test_prompts_that_are_none(walk: NewWalk, content: str | None, named: str):
    there = walk(prompts={"source": "mine.jsonl"})
    if content is not None:
        (there.folder / "mine.jsonl").write_text(content)
    told = complaint(there.limbeck("distill", "recipe.toml"), 2)
    assert "mine.jsonl" in told
    assert named in told
    assert not (there.run / "prompts.jsonl").exists()
    assert not parts(there.run)


def test_prompt_longer_than_the_context(walk: NewWalk, sums: Path):
    there = walk(prompts={"source": "mine.jsonl"})
    rows = sums.read_text().splitlines()
    rows.insert(6, json.dumps({"prompt": "What is one plus one? " * 40}))
    (there.folder / "mine.jsonl").write_text("\n".join(rows))
    told = complaint(there.limbeck("distill", "recipe.toml"), 2)
    assert "mine.jsonl:7: " in told
    assert "context of tiny (128)" in told
    assert stored(there.run) == 0


# -- the teacher's weights ---------------------------------------------------------------------


def gguf(path: Path) -> Path:
    """A GGUF with a licence and some tensors."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_license("mit")
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    for number in range(2):
        writer.add_tensor(f"blk.{number}.attn_q.weight", np.ones((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_that_is_none(walk: NewWalk):
    there = walk(teacher={"model": "teacher.gguf"})
    (there.folder / "teacher.gguf").write_bytes(b"GGML" + bytes(1000))
    assert "teacher.gguf" in complaint(there.limbeck("distill", "recipe.toml"), 2)


def test_gguf_cut_short(walk: NewWalk, needs: Callable[[object, str], None]):
    needs(importlib.util.find_spec("gguf"), "gguf")
    there = walk(teacher={"model": "teacher.gguf"})
    path = gguf(there.folder / "teacher.gguf")
    os.truncate(path, path.stat().st_size - 2048)
    told = complaint(there.limbeck("distill", "recipe.toml"), 2)
    assert "teacher.gguf" in told
    assert stored(there.run) == 0
    assert not [path for path in (there.folder / "cache").rglob("*") if path.is_file()]
    assert not parts(there.folder)


def test_weights_that_are_not_the_recipe_s(walk: NewWalk, tiny: Path):
    wanted = "0" * 64
    there = walk(teacher={"sha256": wanted})
    told = complaint(there.limbeck("distill", "recipe.toml"), 2)
    assert wanted in told
    assert str(tiny) in told


def test_student_with_another_tokenizer(copied: Walk, tiny: Path):
    other = shutil.copytree(tiny, copied.folder / "other")
    make_tokenizer(["three blind mice", "see how they run"]).save_pretrained(other)
    told_toml = copied.run / "recipe.toml"
    told_toml.write_text(told_toml.read_text().replace("layers = 3\n", ""))
    copied.change(student={"base": str(other)})
    told = complaint(copied.limbeck("distill", copied.run), 2)
    assert "other" in told
    assert "tokenizer" in told
    assert "finished" not in copied.manifest()["stages"]["student"]
    assert not parts(copied.run)


# -- permission --------------------------------------------------------------------------------


def unlicensed(tiny: Path, folder: Path) -> Path:
    """The tiny teacher under a licence that nobody has read."""
    copy = shutil.copytree(tiny, folder / "odd")
    (copy / "README.md").write_text("---\nlicense: odd-licence-9\n---\n")
    return copy


def test_unknown_licence_stops_until_a_permission_is_recorded(walk: NewWalk, tiny: Path):
    """The refusal says which lines to write; with them, the same run folder goes on."""
    there = walk()
    there.write(
        teacher={"model": str(unlicensed(tiny, there.folder))},
        prompts={"source": str(there.folder / "prompts.jsonl")},
    )
    (there.folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": p}) + "\n" for p, _ in known_sums()[:8])
    )
    done = there.limbeck("collect", "recipe.toml")
    assert done.returncode == 1, done.stderr
    assert "odd-licence-9" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (there.run / "answers.sqlite").exists()

    lines = re.findall(r"^  (?:teacher|allowed_by|until|purpose) = .*$", done.stderr, re.MULTILINE)
    permission = "\n".join(lines).replace("YYYY-MM-DD", str(date.today() + timedelta(days=9)))
    (there.folder / "permission.toml").write_text(permission)
    permit = re.search(r"^  (\[permit\])\n  (permission = .*)$", done.stderr, re.MULTILINE)
    assert permit
    there.recipe.write_text(there.recipe.read_text() + "\n".join(["", *permit.groups(), ""]))
    done = there.limbeck("collect", "recipe.toml")
    assert done.returncode == 0, done.stderr
    assert stored(there.run) == 8
    assert json.loads((there.run / "permission.json").read_text())["decision"] == "allow"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"until": date.today() - timedelta(days=1)}, "ran out on"),
        ({"teacher": "another"}, "'another'"),
        ({"purpose": "research"}, "'research'"),
        ({"until": "soon"}, "until"),
    ],
)
def test_permission_that_does_not_hold(walk: NewWalk, wrong: dict[str, Any], named: str):
    import tomli_w

    there = walk(permit={"permission": "permission.toml"})
    right = {"teacher": "tiny", "allowed_by": "me", "until": date.today(), "purpose": "product"}
    (there.folder / "permission.toml").write_text(tomli_w.dumps(right | wrong))
    told = complaint(there.limbeck("distill", "recipe.toml"), 2)
    assert "permission.toml" in told
    assert named in told
    assert not (there.run / "answers.sqlite").exists()


# -- chat --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere"),
        (["runs/sums"], "no student yet"),
        (["runs/sums", "--max-tokens", "0"], "--max-tokens"),
        (["runs/sums", "--prompt", " "], "--prompt"),
        (["runs/sums", "--prompt", os.fsdecode(b"caf\xe9")], "UTF-8"),
    ],
)
def test_chat_without_a_student_or_a_prompt(walk: NewWalk, arguments: list[str], named: str):
    there = walk()
    there.run.mkdir(parents=True)
    shutil.copy(there.recipe, there.run)
    (there.run / ".lock").touch()
    assert named in complaint(there.limbeck("chat", *arguments), 2)


def test_chat_line_that_is_not_text(finished: tuple[Walk, Done]):
    typed = os.fsdecode(b"caf\xe9\n")
    assert "UTF-8" in complaint(finished[0].limbeck("chat", "runs/sums", typed=typed), 2)
