from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_store import answer

from limbeck.collect.store import AnswerStore
from limbeck.errors import ServiceError
from limbeck.files import (
    disk_full,
    full_disk_named,
    sha256_file,
    sweep_parts,
    whole_file,
    whole_folder,
    write_text,
)

ENOUGH = 64 * 2**10


class BrokenError(Exception):
    pass


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with whole_file(path) as part:
        part.write_text("one")
        assert not path.exists() and part.parent == path.parent
    assert tree(tmp_path) == {"new/folder/a.txt": b"one"}
    assert path.stat().st_mode & 0o777 == 0o644
    write_text(path, "zwei ’")
    assert path.read_bytes() == "zwei ’".encode()


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt, OSError])
def test_a_file_that_fails_leaves_what_was_there(
    tmp_path: Path, old: bytes | None, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(error), whole_file(path) as part:
        part.write_text("new")
        raise error
    assert tree(tmp_path) == ({} if old is None else {"a.txt": old})


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "model"
    for turn in ("one", "two"):
        with whole_folder(path) as part:
            (part / "below").mkdir()
            (part / "below" / turn).write_text(turn)
    assert tree(tmp_path) == {"runs/model/below/two": b"two"}
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt])
def test_a_folder_that_fails_leaves_what_was_there(
    tmp_path: Path, old: bool, error: type[BaseException]
) -> None:
    path = tmp_path / "model"
    if old:
        path.mkdir()
        (path / "a").write_text("old")
    with pytest.raises(error), whole_folder(path) as part:
        (part / "a").write_text("new")
        raise error
    assert tree(tmp_path) == ({"model/a": b"old"} if old else {})
    assert path.exists() == old and len(list(tmp_path.iterdir())) == old


KILLED = """
import os, signal, sys
from pathlib import Path
from limbeck.files import whole_file, whole_folder
folder = Path(sys.argv[1])
with whole_file(folder / "deep" / "a.txt") as file, whole_folder(folder / "model") as model:
    file.write_text("half")
    (model / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    keep = {"deep/a.txt": b"old", "model/b": b"old", ".hidden": b"", "x.part": b""}
    for name, content in keep.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert killed.returncode == -9
    assert tree(tmp_path).items() > keep.items(), "the old is still there, and so are the halves"
    sweep_parts(tmp_path)
    assert tree(tmp_path) == keep
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "model", ".hidden", "x.part"}


def test_sha256_is_of_the_whole_file(tmp_path: Path) -> None:
    content = os.urandom(3 * 2**20 + 1)
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_other_errors_of_the_system_pass() -> None:
    for number, named in ((errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False)):
        with pytest.raises(ServiceError if named else PermissionError), full_disk_named(Path("x")):
            raise OSError(number, "told by the system")
    assert "a file could not be written" in str(disk_full(None))


@pytest.fixture
def small_disk(tmp_path: Path, needs: Callable[[object, str], None]) -> Iterator[Path]:
    """A file system of its own with room for hardly anything."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={4 * ENOUGH}", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    needs(mounted, "the right to mount a file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def full(path: Path) -> str:
    return f"The disk is full: {path} could not be written. Free some space"


def test_a_full_disk_is_named_and_the_old_is_kept(small_disk: Path) -> None:
    file, folder = small_disk / "a.bin", small_disk / "model"
    with whole_file(file) as part:
        part.write_bytes(b"old")
    with pytest.raises(ServiceError) as caught, whole_file(file) as part:
        part.write_bytes(bytes(8 * ENOUGH))
    assert str(caught.value).startswith(full(file)) and caught.value.exit_code == 3
    with pytest.raises(ServiceError) as caught, whole_folder(folder) as part:
        (part / "a").write_bytes(bytes(2 * ENOUGH))
        (part / "b").write_bytes(bytes(8 * ENOUGH))
    assert str(caught.value).startswith(full(folder))
    assert tree(small_disk) == {"a.bin": b"old"}


def test_a_store_on_a_full_disk_says_so_and_keeps_what_it_has(small_disk: Path) -> None:
    path = small_disk / "answers.sqlite"
    with AnswerStore(path) as store:
        store.add([answer("p")])
        with pytest.raises(ServiceError) as caught:
            for number in range(20):
                store.add([answer(str(number), "x" * ENOUGH)])
        assert str(caught.value).startswith(full(path))
    with AnswerStore(path) as store:
        found = store.get([answer(name).id for name in ("p", "0")])
        assert found == [answer("p"), replace(answer("0"), text="x" * ENOUGH)][: len(found)]
        assert len(found) >= 1
