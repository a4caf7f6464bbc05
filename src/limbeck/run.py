"""The run folder: one recipe, its stages and their markers, and the lock that one process holds."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeAlias

from limbeck import __version__
from limbeck.errors import InputError
from limbeck.files import disk_full, sweep_parts, write_text
from limbeck.progress import duration, say
from limbeck.recipe import RUNS_ALIKE, Recipe, differences, read_recipe
from limbeck.records import identity

Stage: TypeAlias = Literal[
    "permit", "prompts", "collect", "targets", "student", "train", "control",
    "validate", "export", "report",
]  # fmt: skip
Fact: TypeAlias = str | int | float
PACKAGES = ("limbeck", "torch", "transformers", "safetensors", "tokenizers", "numpy", "pyarrow")


PRESENTED = ("export.name", "export.licence", "permit.")
"""How keys begin that may change at any time: no weight depends on how the student is given out, or
by whose leave."""
CARRIED_OUT = (
    "budget.", "teacher.in_flight", "teacher.insecure", "teacher.key",
    *(f"train.{key}" for key in RUNS_ALIKE),
)  # fmt: skip
"""Likewise: they decide how a run is carried out, and nothing of what it makes."""


class Run:
    """A folder that holds everything one recipe makes, and knows which stages are done.

    A stage is done when the manifest holds its key, the hash of all that determines it: the same
    key is never worked on twice, and another key means that the stage is due again.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self._manifest_path = folder / "manifest.json"
        self.manifest = self._read_manifest()

    @property
    def id(self) -> str:
        """The run's id: the hash of its recipe."""
        return self.recipe.id

    def is_done(self, stage: Stage, key: str, *outputs: Path) -> bool:
        """Whether `stage` was finished under `key` and what it wrote is still there."""
        entry = self.manifest["stages"].get(stage, {})
        return entry.get("key") == key and "finished" in entry and all(p.exists() for p in outputs)

    @contextmanager
    def work(self, stage: Stage, key: str) -> Iterator[dict[str, Fact]]:
        """Mark `stage` as begun; when the block ends well, as finished with the facts it filled in.

        Seconds add up over interrupted tries of the same key, as far as they were recorded.
        """
        before = self.manifest["stages"].get(stage, {})
        spent = before.get("seconds", 0.0) if before.get("key") == key else 0.0
        entry: dict[str, Any] = {"key": key, "started": _now(), "seconds": spent}
        self.manifest["stages"][stage] = entry
        self._save()
        began = time.monotonic()
        facts: dict[str, Fact] = {}
        try:
            yield facts
        except BaseException as error:
            entry["seconds"] = round(spent + time.monotonic() - began, 3)
            self._save()
            if f"os error {errno.ENOSPC}" in str(error):  # how safetensors says it
                raise disk_full(self.folder) from None
            raise
        entry |= {"finished": _now(), "seconds": round(spent + time.monotonic() - began, 3)}
        entry["facts"] = facts
        self._save()
        told = [f"{k} {_brief(v)}" for k, v in facts.items() if k not in _QUIET]
        say(f"{stage:>9}  {', '.join(told) or 'done'}  [{duration(entry['seconds'])}]")

    def forget(self, *stages: Stage) -> None:
        """Take the marks of these stages away: they are due again."""
        for stage in stages:
            self.manifest["stages"].pop(stage, None)
        self._save()

    def _read_manifest(self) -> dict[str, Any]:
        try:
            found = json.loads(self._manifest_path.read_text(encoding="utf-8"))
            if not all(isinstance(entry, dict) for entry in found["stages"].values()):
                raise TypeError("a stage is no table")
            return found
        except FileNotFoundError:
            return {
                "limbeck": __version__,
                "run_id": self.id,
                "name": self.recipe.name,
                "created": _now(),
                "machine": machine(),
                "versions": versions(),
                "stages": {},
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(
                f"{self._manifest_path} is damaged ({reason}). Remove it and run again: "
                "answers and finished targets are kept."
            ) from None

    def adopt(self) -> None:
        """Write the run's recipe into the folder, as the one that everything in it is made by."""
        self.manifest |= {"run_id": self.id, "name": self.recipe.name}
        if self._manifest_path.exists():
            self._save()
        write_text(self.folder / "recipe.toml", self.recipe.to_toml())

    def _save(self) -> None:
        write_text(self._manifest_path, json.dumps(self.manifest, indent=1) + "\n")


_QUIET = frozenset(
    {"card", "decision", "fingerprint", "layers_kept", "method", "route", "sha256", "teacher"}
)


def resolve(target: Path, folder: Path | None) -> tuple[Recipe, Path]:
    """The recipe and the run folder meant by `target`, a recipe file or a run folder."""
    if target.is_dir():
        if lacking := _lacking(target):
            raise InputError(f"{target} is no run folder: it has no {lacking}")
        return read_recipe(target / "recipe.toml"), target
    recipe = read_recipe(target)
    return recipe, folder or Path("runs") / recipe.name


@contextmanager
def open_run(recipe: Recipe, folder: Path) -> Iterator[Run]:
    """Make or reopen the run folder of this recipe, and hold it alone until the block ends.

    A changed recipe is taken over as long as nothing but answers was made by the old one: what is
    wrong with a recipe shows by then. Raises InputError when the folder belongs to another recipe
    or another process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_strangers(folder)
    with _locked(folder):
        sweep_parts(folder)
        run = Run(folder, recipe)
        _claim(run)
        yield run


def _refuse_strangers(folder: Path) -> None:
    ours = re.compile(r"\.lock|\.recipe\.toml\..*\.part")
    strangers = sorted(p.name for p in folder.iterdir() if not ours.fullmatch(p.name))
    if strangers and (lacking := _lacking(folder)):
        raise InputError(
            f"{folder} holds {strangers[0]!r} but no {lacking}: not a run folder. "
            "Name an empty one with --run."
        )


def _lacking(folder: Path) -> str:
    """What a run folder has and this one has not; "" if nothing.

    A recipe alone does not make one: it may lie among its author's own files, prompts.jsonl too.
    """
    if not (folder / "recipe.toml").exists():
        return "recipe.toml"
    begun = (folder / ".lock").exists() or (folder / "manifest.json").exists()
    return "" if begun else "manifest.json"


def _claim(run: Run) -> None:
    saved = run.folder / "recipe.toml"
    if not saved.exists():
        run.adopt()
        return
    keys = differences(run.recipe, read_recipe(saved))
    if not keys:
        return
    made = [stage for stage, entry in run.manifest["stages"].items() if "finished" in entry]
    if all(key.startswith((*PRESENTED, *CARRIED_OUT)) for key in keys):
        if shown := [key for key in keys if key.startswith(PRESENTED)]:
            say(f"{'recipe':>9}  changed in {', '.join(shown)}: the student is exported anew")
        run.adopt()
        return
    if set(made) - {"permit", "prompts"}:
        raise InputError(
            f"{run.folder} is the run of another recipe; they differ in {', '.join(keys)}. "
            "Name another folder with --run, or change the recipe back."
        )
    say(f"{'recipe':>9}  changed in {', '.join(keys)}; nothing was made by the old one")
    run.adopt()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / ".lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise InputError(
                f"Another process (pid {file.read().strip() or 'unknown'}) is working in {folder}."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def key_of(*parts: Any) -> str:
    """The key of a stage: the hash of everything that determines what it writes."""
    return identity("stage", *parts)


def versions() -> dict[str, str]:
    """The versions of what decides results."""
    found: dict[str, str] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Fact]:
    """What the run was made on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "memory_gb": round(memory, 1),
        "platform": platform.platform(terse=True),
    }


def _cpu_name() -> str:
    try:
        for row in Path("/proc/cpuinfo").read_text().splitlines():
            if row.startswith("model name"):
                return row.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _brief(value: Fact) -> str:
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else value
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
