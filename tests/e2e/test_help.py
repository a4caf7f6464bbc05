from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from limbeck.cli import app
from limbeck.recipe import read_recipe
from walking import Walk, complaint, imported

COMMANDS = sorted(name for name in app if not name.startswith("-"))
HEAVY = {"torch", "transformers", "numpy", "pyarrow", "scipy"}


@pytest.fixture
def here(tmp_path: Path) -> Walk:
    return Walk(tmp_path)


def test_help_names_every_command_and_imports_nothing_heavy(here: Walk):
    done = here.limbeck("--help", python=("-X", "importtime"))
    assert done.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^\W*{command}\s", done.stdout, re.MULTILINE), command
    assert "Exit codes" in done.stdout
    packages = imported(done.stderr)
    assert "cyclopts" in packages
    assert not packages & HEAVY


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(here: Walk, command: str):
    done = here.limbeck(command, "--help", python=("-X", "importtime"))
    assert done.returncode == 0
    assert re.search(rf"Example: limbeck {command} \S", done.stdout)
    assert not imported(done.stderr) & HEAVY


def test_version_is_the_package_s(here: Walk):
    from limbeck import __version__

    assert here.limbeck("--version").stdout.strip() == __version__


def test_init_writes_a_recipe_that_parses_and_is_not_overwritten(here: Walk):
    done = here.limbeck("init", "mine.toml")
    assert (done.returncode, done.stdout) == (0, "")
    path = here.folder / "mine.toml"
    recipe = read_recipe(path)
    assert recipe.teacher.model
    path.write_text(path.read_text() + "# mine\n")
    assert "mine.toml is already there" in complaint(here.limbeck("init", "mine.toml"), 2)
    assert path.read_text().endswith("# mine\n")


def test_init_into_a_file_s_folder_is_refused(here: Walk):
    (here.folder / "file").write_text("")
    assert "file" in complaint(here.limbeck("init", "file/recipe.toml"), 2)


def test_what_init_leaves_out_are_the_defaults(here: Walk):
    """Every commented key, taken in, is a key that the recipe knows, at its default."""
    here.limbeck("init", "recipe.toml")
    plain = read_recipe(here.recipe)
    text = here.recipe.read_text()
    without = {  # no value is their default
        *("sha256", "field", "system", "competes", "distribution", "permission"),
        *("permission_sha256", "temperature", "url", "key", "answers"),
        *("dollars", "tokens", "input", "output", "lora_rank", "batch", "tools", "schema"),
        *("reference", "after", "equals", "pattern", "json_schema", "function", "judge"),
        *("majority", "best", "benchmarks"),
    }
    taken = re.sub(r"^# (?=(\w+) = )", lambda m: m[0] * (m[1] in without), text, flags=re.MULTILINE)
    assert taken != text
    here.recipe.write_text(taken)
    assert read_recipe(here.recipe) == plain


def test_a_reader_that_leaves_early_is_no_error(here: Walk):
    reader, writer = os.pipe()
    os.close(reader)
    process = here.start("init", "--json", out=writer)
    os.close(writer)
    assert process.wait() == 0
    assert (here.folder / "stderr").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["distil", "recipe.toml"], '"distill"'),
        (["distill", "recipe.toml", "--nope"], "--nope"),
        (["distill"], "recipe"),
        (["distill", "one.toml", "two.toml"], "two.toml"),
        (["chat", "runs/sums", "--max-tokens", "many"], '"many"'),
    ],
)
def test_what_is_no_command_is_refused(here: Walk, arguments: list[str], named: str):
    done = here.limbeck(*arguments)
    assert named in complaint(done, 2)
    assert done.stdout == ""
    assert list(here.folder.iterdir()) == []


def test_refusals_are_json_where_asked(here: Walk):
    done = here.limbeck("distill", "nowhere.toml", "--json")
    assert complaint(done, 2) == json.loads(done.stdout)["error"]
    assert json.loads(done.stdout)["exit_code"] == 2
