"""What several tests share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from run_folder import write_run_folder

settings.register_profile("patient", deadline=None)  # no test is about how fast a machine is
settings.load_profile("patient")


@pytest.fixture(scope="session")
def needs() -> Callable[[object, str], None]:
    """`needs(found, what)`: without it a test is skipped here, and fails where CI is true."""

    def check(found: object, what: str) -> None:
        if not found:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"needs {what}")

    return check


@pytest.fixture
def run_folder(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A finished run's folder, to be changed, and what its verdict.json says."""
    return write_run_folder(tmp_path / "support-replies")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The same, made once for all tests, to be read only."""
    return write_run_folder(tmp_path_factory.mktemp("finished") / "support-replies")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny chat model, trained once; to be read only."""
    from tiny import make_model

    return make_model(tmp_path_factory.mktemp("tiny") / "tiny")
