"""Files that appear whole or not at all, and folders that one process owns."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from limbeck.errors import InputError, ServiceError

FULL = (errno.ENOSPC, errno.EDQUOT)
OLD = ".limbeck-old"
"""How the name of a folder ends that another is taking the place of."""
RANDOM = 8
"""Characters that `tempfile` puts into a name."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary sibling to write; on success it is synced and renamed to `path`.

    A crash, an exception or a full disk leaves `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        with full_disk_named(path):
            yield part
            _sync(part)
        part.chmod(0o644)
        part.replace(path)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary sibling folder to fill; on success it takes the place of `path`.

    A link is followed. A kill at any point leaves the old folder whole, or the new one: at `path`,
    or aside, from where `put_back` and the next `whole_folder` fetch it. Raises InputError as
    `place_of` does.
    """
    place = place_of(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    put_back(place)
    old, part = _aside(place), _part(place)
    try:
        with full_disk_named(path):
            yield part
            for file in part.rglob("*"):
                _sync(file)
        part.chmod(0o755)
        if old.exists():  # a process was killed just before it would have removed it
            _remove(old)
        if place.exists():
            place.replace(old)
        part.replace(place)
        _sync(place.parent)
        if old.exists():
            _remove(old)
    finally:
        put_back(place)
        shutil.rmtree(part, ignore_errors=True)


def place_of(path: Path) -> Path:
    """Where a whole folder would come, links followed; InputError for a file, and for a mount."""
    place = path.resolve()
    if place.is_mount() or (place.exists() and not place.is_dir()):
        what = "a mount" if place.is_mount() else "a file"
        raise InputError(f"{path} is {what}, and no folder can take its place; name another")
    return place


def put_back(path: Path) -> None:
    """Fetch back the old folder where a process was killed just before the new one came."""
    place = path.resolve()
    if not place.exists() and (old := _aside(place)).exists():
        old.replace(place)


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}{OLD}")


def _part(place: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".part", dir=place.parent))


def _remove(old: Path) -> None:
    """Under another name, since what is aside may be put back, and is to be whole."""
    part = _part(old)
    old.replace(part)
    shutil.rmtree(part, ignore_errors=True)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[int]:
    """Hold a lock file, made if need be; InputError says `busy` where another process holds it.

    Gives its descriptor.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(busy) from None
        yield file.fileno()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def sweep_parts(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`, and below it: all is ours."""
    for old in list(folder.rglob(f".*{OLD}")):
        place = old.with_name(old.name[1 : -len(OLD)])
        _remove(old) if place.exists() else put_back(place)
    _sweep(folder.rglob(".*.part"))


def sweep_parts_of(*paths: Path) -> None:
    """Remove what a killed process left half-written of these files and folders."""
    for path in paths:
        _sweep(path.parent.glob(f".{glob.escape(path.name)}.{'?' * RANDOM}.part"))


def _sweep(parts: Iterable[Path]) -> None:
    for part in list(parts):
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn the operating system's "no space left" into an error that says where and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise disk_full(path) from error


def disk_full(path: Path | str | None) -> ServiceError:
    """The error for a disk that filled up while `path` was written."""
    return ServiceError(
        f"The disk is full: {path or 'a file'} could not be written. "
        "Free some space and run the same command again; it goes on from here."
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
