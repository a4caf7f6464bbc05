"""Walks with the tiny teacher: one that is finished and shared, and new ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tiny import write_prompts
from walking import Done, Walk


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher's prompts, in one file for all walks: its path is in the recipe's id."""
    return write_prompts(tmp_path_factory.mktemp("sums") / "prompts.jsonl")


@pytest.fixture(scope="session")
def finished(tiny: Path, sums: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Walk, Done]:
    """A walk that nothing disturbed, to be read only, and what its `distill --json` said."""
    done = Walk(tmp_path_factory.mktemp("finished"))
    done.write(teacher={"model": str(tiny)}, prompts={"source": str(sums)})
    return done, done.limbeck("distill", "recipe.toml", "--json")


@pytest.fixture
def copied(finished: tuple[Walk, Done], tmp_path: Path) -> Walk:
    """A copy of the finished walk, to be changed."""
    shutil.copytree(finished[0].folder, tmp_path / "copy")
    return Walk(tmp_path / "copy")


@pytest.fixture
def walk(tiny: Path, sums: Path, tmp_path: Path) -> Callable[..., Walk]:
    """`walk(section={key: value})`: a new folder with a recipe that differs so from the usual."""

    def new(**sections: Mapping[str, Any]) -> Walk:
        made = Walk(tmp_path / "walk")
        made.folder.mkdir()
        usual = {"teacher": {"model": str(tiny)}, "prompts": {"source": str(sums)}}
        made.write(**{k: {**usual.get(k, {}), **sections.get(k, {})} for k in {*usual, *sections}})
        return made

    return new
