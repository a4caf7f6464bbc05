"""What tests of lineage and papers, of guard, and of training share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guard_found import Found, found
from papers import Made, make_run

if TYPE_CHECKING:  # it imports torch
    from school import School


@pytest.fixture(scope="session")
def finished_made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A finished run with real stores, to be read only."""
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def made(finished_made: Made, tmp_path: Path) -> Made:
    """A copy of it, to be changed."""
    folder = tmp_path / "run"
    shutil.copytree(finished_made.folder, folder)
    return replace(finished_made, folder=folder)


@pytest.fixture(scope="session")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """A finished scan that named one campaign, to be read only."""
    return found(tmp_path_factory.mktemp("scanned"))


@pytest.fixture(scope="session")
def school(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> School:
    """A small lesson with its teacher's targets, to be read only."""
    from school import make_school

    return make_school(tiny, tmp_path_factory.mktemp("school") / "start")


@pytest.fixture
def determinism_left_as_it_was() -> Iterator[None]:
    """Training asks torch for determinism, which other tests do without."""
    import torch

    yield
    torch.use_deterministic_algorithms(False)
