"""A folder into which logs are put: each file is taken once and whole, whatever is killed when.

What was taken stands in a ledger, with the number that the log gets in `ingest.json`. The entry is
written first; the state folder, which appears whole or not at all, then makes it true. An entry
whose log never came is forgotten, and its file taken again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, TypeAlias

from limbeck.errors import InputError
from limbeck.files import write_text
from limbeck.guard import logs
from limbeck.guard.readers.source import Source, files
from limbeck.progress import say

Seen: TypeAlias = tuple[int, int]
"""Size and time of change, in nanoseconds."""


class Ledger:
    """`watch.json`: files taken and refused, and the looks at what they held."""

    def __init__(self, path: Path, state: Path) -> None:
        self._path = path
        told: dict[str, Any] = {}
        if path.exists():
            told = json.loads(path.read_text(encoding="utf-8"))
        done = count(state)
        taken: dict[str, list[int]] = told.get("files", {})
        self.files = {name: entry for name, entry in taken.items() if entry[2] <= done}
        self.refused: dict[str, list[int]] = told.get("refused", {})
        self.look: dict[str, Any] = told.get("look", {"number": 0, "seen": "", "done": True})

    def save(self) -> None:
        """Make it durable."""
        told = {"version": 1, "files": self.files, "refused": self.refused, "look": self.look}
        write_text(self._path, json.dumps(told, indent=1, ensure_ascii=False) + "\n")

    def knows(self, name: str, seen: Seen) -> bool:
        """Whether a file as it is now was taken, or refused."""
        taken = self.files.get(name)
        return (taken is not None and taken[:2] == list(seen)) or (
            self.refused.get(name) == list(seen)
        )


def count(state: Path) -> int:
    """How many logs a state folder was made of."""
    note = state / "ingest.json"
    return len(json.loads(note.read_text(encoding="utf-8"))["logs"]) if note.exists() else 0


class Inbox:
    """What is new in a folder, put into the state folder `out`/state."""

    def __init__(
        self, source: Source, out: Path, accounts: Source | None, settle: float, threads: int
    ) -> None:
        self.folder, self.state = Path(source.where), out / "state"
        self._source, self._accounts, self._threads = source, accounts, threads
        self._batch = out / "taking"
        self._settle = settle
        self._before: dict[str, tuple[Seen, float]] = {}

    def take(self, ledger: Ledger) -> int:
        """Take in what no longer grows; gives how many new files still do, and are left."""
        ready: dict[str, Seen] = {}
        left = 0
        for path in self._listed():
            name = path.relative_to(self.folder).as_posix()
            seen = _seen(path)
            if seen is None or ledger.knows(name, seen):
                continue
            if self._settled(name, seen):
                ready[name] = seen
            else:
                left += 1
        self._ingest(ready, ledger)
        return left

    def _listed(self) -> list[Path]:
        try:
            return files(str(self.folder))
        except InputError:
            return []

    def _settled(self, name: str, seen: Seen) -> bool:
        """Unchanged for a while, by the file's time or, where that runs ahead, by our own."""
        now = time.monotonic()
        before, since = self._before.get(name, (None, now))
        since = since if before == seen else now
        self._before[name] = (seen, since)
        return time.time() - seen[1] / 1e9 >= self._settle or now - since >= max(self._settle, 1e-9)

    def _ingest(self, ready: dict[str, Seen], ledger: Ledger) -> None:
        """All at once, since each reading compares with all calls before; if need be one by one."""
        if not ready:
            return
        shutil.rmtree(self._batch, ignore_errors=True)  # a killed process left it
        held = {name: seen for name, seen in ready.items() if self._link(name)}
        if not held:
            return
        for name in sorted(held.keys() & ledger.files.keys()):
            say(f"{'watch':>9}  {name} has changed: it is read again, and calls known are refused")
        number = count(self.state) + 1
        before = dict(ledger.files)
        ledger.files |= {name: [*seen, number] for name, seen in held.items()}
        ledger.save()
        try:
            source = Source(str(self._batch), self._source.format, self._source.account)
            logs.ingest(source, self.state, accounts=self._accounts, threads=self._threads)
        except InputError as error:
            ledger.files = before
            if len(held) == 1:
                say(f"{'watch':>9}  {next(iter(held))} is left until it changes: {error}")
                ledger.refused |= {name: list(seen) for name, seen in held.items()}
            ledger.save()
            if len(held) > 1:
                for name, seen in held.items():
                    self._ingest({name: seen}, ledger)
        finally:
            shutil.rmtree(self._batch, ignore_errors=True)

    def _link(self, name: str) -> bool:
        """Hold a file, so that it may be renamed or removed meanwhile; False if it is gone."""
        path = self._batch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self.folder / name, path)
        except FileNotFoundError:
            return False
        except OSError:
            shutil.copyfile(self.folder / name, path)
        return True


def _seen(path: Path) -> Seen | None:
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_size, about.st_mtime_ns
