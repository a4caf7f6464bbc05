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
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from limbeck.errors import InputError
from limbeck.files import full_disk_named, place_of, write_text
from limbeck.guard import logs
from limbeck.guard.readers.source import Source, blocks, files
from limbeck.guard.schema import ACCOUNTS
from limbeck.guard.state import alone
from limbeck.progress import say

Seen: TypeAlias = tuple[int, int]
"""Size and time of change, in nanoseconds."""
NAME = "watch.json"
TAKING = ".limbeck-taking"


class Ledger:
    """`out`/watch.json: files taken and refused, and the looks at what they held."""

    def __init__(self, out: Path, state: Path) -> None:
        self.path = path = out / NAME
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
        write_text(self.path, json.dumps(told, indent=1, ensure_ascii=False) + "\n")

    def knows(self, name: str, seen: Seen) -> bool:
        """Whether a file as it is now was taken, or refused."""
        taken = self.files.get(name)
        return (taken is not None and taken[:2] == list(seen)) or self.refuses(name, seen)

    def refuses(self, name: str, seen: Seen) -> bool:
        """Whether a file as it is now was refused."""
        return self.refused.get(name) == list(seen)

    @contextmanager
    def taking(self, held: Mapping[str, Seen], state: Path) -> Generator[None]:
        """Note files as taken by the log that this block puts into `state`; not if it refuses."""
        if not held:
            yield
            return
        number, before = count(state) + 1, dict(self.files)
        self.files |= {name: [*seen, number] for name, seen in held.items()}
        self.save()
        try:
            yield
        except InputError:
            self.files = before
            self.save()
            raise


def count(state: Path) -> int:
    """How many logs a state folder was made of."""
    return len(_note(state).get("logs", []))


def _note(state: Path) -> dict[str, Any]:
    note = state / "ingest.json"
    return json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}


def seen_in(source: Source) -> dict[str, Seen]:
    """The files of a log, or none, by the name that an inbox of their folder gives them."""
    try:
        found = files(source.where, source.format)
    except InputError:
        return {}
    root = Path(source.where)
    about = {path: _seen(path) for path in found}
    return {_name(path, root): seen for path, seen in about.items() if seen is not None}


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root if root.is_dir() else path.parent).as_posix()


class Inbox:
    """What is new in a folder, put into the state folder `out`/state.

    Attributes:
        refused: Files that are there, and were refused as they are now.
    """

    def __init__(
        self, source: Source, out: Path, accounts: Source | None, settle: float, threads: int
    ) -> None:
        self.folder, self.state = Path(source.where), out / "state"
        self._source, self._accounts, self._threads = source, accounts, threads
        self._batch = out / TAKING
        self._settle = settle
        self._before: dict[str, tuple[Seen, float]] = {}
        self._unread: dict[str, Seen] = {}
        self.refused = 0

    def take(self, ledger: Ledger) -> int:
        """Take in what no longer grows; gives how many new files still do, and are left.

        Raises:
            InputError: Something other than a file is wrong: accounts, or the state folder.
        """
        ready: dict[str, Seen] = {}
        left = 0
        there = seen_in(self._source)
        for name, seen in there.items():
            if ledger.knows(name, seen):
                continue
            if self._settled(name, seen):
                ready[name] = seen
            else:
                left += 1
        self._ingest(ready, ledger)
        self.refused = sum(ledger.refuses(name, seen) for name, seen in there.items())
        return left

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
        held = {name: seen for name, seen in ready.items() if self._hold(name, seen)}
        if not held:
            return
        for name in sorted(held.keys() & ledger.files.keys()):
            say(f"{'watch':>9}  {name} has changed: it is read again, and calls known are refused")
        try:
            source = Source(str(self._batch), self._source.format, self._source.account)
            with ledger.taking(held, self.state):
                logs.ingest(source, self.state, accounts=self._accounts, threads=self._threads)
        except InputError as error:
            self._blame_no_file()
            if len(held) == 1:
                self._refuse(*held.popitem(), error, ledger)
            for name, seen in held.items():
                self._ingest({name: seen}, ledger)
        finally:
            shutil.rmtree(self._batch, ignore_errors=True)

    def _blame_no_file(self) -> None:
        """Raise what is wrong with the state folder or the accounts, for which no log can help."""
        with alone(self.state):
            pass  # or another log is being read into it
        logs.noted(place_of(self.state))
        if self._accounts is not None:
            for _ in blocks(self._accounts, ACCOUNTS, ("account",)):
                pass

    def _refuse(self, name: str, seen: Seen, error: InputError, ledger: Ledger) -> None:
        """Say why, of the user's own file, and leave it until it changes."""
        path = str(self.folder / name)
        why = str(error).replace(str(self._batch / name), path).replace(str(self._batch), path)
        say(f"{'watch':>9}  {name} is left until it changes: {why}")
        ledger.refused[name] = list(seen)
        ledger.save()

    def _hold(self, name: str, seen: Seen) -> bool:
        """Link a file, so that it may be renamed or removed meanwhile; False if it cannot be."""
        path = self._batch / name
        try:
            with full_disk_named(path):
                _link((self.folder / name).resolve(), path)
        except FileNotFoundError:
            return False
        except OSError as error:
            if self._unread.get(name) != seen:
                say(f"{'watch':>9}  {name} is left, it cannot be read: {error.strerror}")
            self._unread[name] = seen
            with suppress(OSError):
                path.unlink()
            return False
        return True


def _link(file: Path, path: Path) -> None:
    """Or copy; raises OSError where the file is gone, or may not be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, path)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(file, path)
    path.open("rb").close()


def _seen(path: Path) -> Seen | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns
