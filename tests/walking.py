"""The command line as a user types it: each command is a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

STAGES = (
    "permit", "prompts", "collect", "targets", "student", "train", "control",
    "validate", "export", "report",
)  # fmt: skip
SECRETS = {"OPENAI_API_KEY": "sk-end-to-end-4f1c", "HF_TOKEN": "hf_endtoend4f1c"}
SAID = (
    *STAGES, "recipe", "model", "self-check", "probe", "plan", "estimate", "cost", "limbeck",
)  # fmt: skip
OURS = re.compile(rf" *({'|'.join(SAID)})  ")
RECIPE: dict[str, dict[str, Any]] = {
    "teacher": {"max_tokens": 16, "batch_size": 8},
    "prompts": {"held_out": 0.25, "near_duplicates": 1.0},
    "student": {"layers": 3},
    "train": {
        "steps": 20,
        "batch_tokens": 256,
        "micro_tokens": 128,
        "row_tokens": 64,
        "top_k": 8,
        "checkpoint_seconds": 0.001,
    },
    "validate": {"resamples": 1000},
}

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Walk:
    """A folder with a recipe for the tiny teacher, in which `limbeck` is typed."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.toml"

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "sums"

    def write(self, **sections: Mapping[str, Any]) -> None:
        """Write recipe.toml: `RECIPE`, with these keys of these sections changed."""
        told = {k: {**RECIPE.get(k, {}), **sections.get(k, {})} for k in {*RECIPE, *sections}}
        self.recipe.write_text(tomli_w.dumps({"name": "sums", **told}))

    def change(self, **sections: Mapping[str, Any]) -> None:
        """Change these keys of the recipe that the run folder keeps."""
        path = self.run / "recipe.toml"
        told = tomllib.loads(path.read_text())
        for section, keys in sections.items():
            told[section].update(keys)
        path.write_text(tomli_w.dumps(told))

    def limbeck(self, *arguments: object, typed: str = "", python: tuple[str, ...] = ()) -> Done:
        """Run `limbeck ARGUMENTS` to its end, with `typed` on standard input."""
        command = [sys.executable, *python, "-m", "limbeck", *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment(), input=typed, capture_output=True,
            text=True, errors="surrogateescape", timeout=600, preexec_fn=_as_in_a_terminal,
        )  # fmt: skip

    def start(self, *arguments: object, out: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start `limbeck ARGUMENTS`, its standard error in the file `stderr`."""
        command = [sys.executable, "-m", "limbeck", *map(str, arguments)]
        with (self.folder / "stderr").open("w") as errors:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment(), text=True,
                stdin=subprocess.DEVNULL, stdout=out, stderr=errors,
                preexec_fn=_as_in_a_terminal,
            )  # fmt: skip

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.run / "manifest.json").read_text())

    def forget(self, *stages: str) -> None:
        """Take the marks of these stages out of the manifest, so that they are due again."""
        if not (self.run / "manifest.json").exists():
            return
        manifest = self.manifest()
        for stage in stages:
            manifest["stages"].pop(stage, None)
        (self.run / "manifest.json").write_text(json.dumps(manifest))

    def environment(self) -> dict[str, str]:
        """The variables that its processes get."""
        paths = [str(Path(__file__).parents[1] / "src"), os.environ.get("PYTHONPATH", "")]
        own = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "LIMBECK_CACHE": str(self.folder / "cache"),
        }
        return {**os.environ, **own, **SECRETS}


def _as_in_a_terminal() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below `folder` but the lock, which names the last process.

    The day on which answers were asked for, which papers tell, is left out: midnight comes.
    """
    return {
        str(path.relative_to(folder)): hashlib.sha256(_undated(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def _undated(path: Path) -> bytes:
    papers = path.name == "README.md" or path.name.startswith("bom.")
    day = rb"\b20\d\d-\d\d-\d\d" if papers else rb"(?!)"
    return re.sub(day, b"DAY", path.read_bytes())


def imported(errors: str) -> set[str]:
    """The top-level packages that `python -X importtime` saw imported."""
    return {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in errors.splitlines()
        if line.startswith("import time:")
    }


def stored(run: Path) -> int:
    """How many answers a run has."""
    path = run / "answers.sqlite"
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path, timeout=0)) as db:
        return db.execute("SELECT count(*) FROM answers").fetchone()[0]


def parts(folder: Path) -> list[Path]:
    """What was left half-written below `folder`."""
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


def complaint(done: Done, code: int) -> str:
    """The one line in which a command says why it ended with `code`; none of it is a traceback."""
    assert done.returncode == code, done.stderr
    return last_line(done.stderr)


def last_line(errors: str) -> str:
    """The line of ours that ends a failed command, and before which come only ours."""
    lines = [line for line in errors.splitlines() if line.strip()]
    assert all(OURS.match(line) for line in lines), errors
    told = [line for line in lines if line.startswith("  limbeck  ")]
    assert told == lines[-1:], errors
    return told[0].removeprefix("  limbeck  ")
