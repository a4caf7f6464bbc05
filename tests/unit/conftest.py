"""Runs that tests of lineage and papers share."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from guard_found import Found, found
from papers import Made, make_run


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
