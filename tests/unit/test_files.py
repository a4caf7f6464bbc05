from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_store import answer

from limbeck.collect.store import AnswerStore
from limbeck.errors import InputError, ServiceError
from limbeck.files import (
    disk_full,
    full_disk_named,
    put_back,
    sha256_file,
    sweep_parts,
    sweep_parts_of,
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


def inside(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


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


EXCHANGED = """
import os, shutil, signal, sys
from pathlib import Path
from limbeck.files import whole_folder
folder, last, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
steps = 0
def dying(do):
    def wrapped(*words, **more):
        global steps
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
        return do(*words, **more)
    return wrapped
Path.replace, os.unlink, os.rmdir = dying(Path.replace), dying(os.unlink), dying(os.rmdir)
with whole_folder(folder / name) as part:
    for number in range(3):
        (part / str(number)).write_text("new")
"""


def test_killed_at_any_step_of_the_exchange_the_old_or_the_new_folder_is_whole(
    tmp_path: Path,
) -> None:
    old = {"ingest.json": b"old", "0": b"old", "below/1": b"old"}
    new = {"0": b"new", "1": b"new", "2": b"new"}
    seen: list[bool] = []
    for last in range(20):
        folder = tmp_path / str(last)
        for name, content in old.items():
            (folder / "state" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "state" / name).write_bytes(content)
        command = [sys.executable, "-c", EXCHANGED, str(folder), str(last), "state"]
        code = subprocess.run(command).returncode
        put_back(folder / "state")
        now = tree(folder / "state")
        assert now in (old, new)
        seen.append(now == new)
        sweep_parts(folder)
        assert tree(folder / "state") == now and inside(folder) == {"state"}
        if code == 0:
            break
        assert code == -9
    assert seen == sorted(seen) and seen[-1] and seen.count(False) == 2 and seen.count(True) > 3


def test_the_next_folder_goes_on_after_a_kill(tmp_path: Path) -> None:
    path, aside = tmp_path / "state", tmp_path / ".state.limbeck-old"
    aside.mkdir()
    (aside / "a").write_text("old")
    with pytest.raises(BrokenError), whole_folder(path):
        assert tree(path) == {"a": b"old"}
        raise BrokenError
    assert tree(tmp_path) == {"state/a": b"old"}
    shutil.copytree(path, aside)
    with whole_folder(path) as part:
        (part / "b").write_text("new")
    assert tree(tmp_path) == {"state/b": b"new"} and inside(tmp_path) == {"state"}


def test_a_folder_named_by_a_link_or_a_dot_is_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a").write_text("old")
    (tmp_path / "link").symlink_to("disk")
    with whole_folder(tmp_path / "link") as part:
        (part / "b").write_text("new")
    assert (tmp_path / "link").is_symlink() and tree(tmp_path / "disk") == {"b": b"new"}
    monkeypatch.chdir(tmp_path / "disk")
    with whole_folder(Path()) as part:
        (part / "c").write_text("newer")
    assert tree(tmp_path / "disk") == {"c": b"newer"}
    assert inside(tmp_path) == {"disk", "link"}


def test_no_folder_takes_the_place_of_a_file_or_a_mount(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    for path, what in ((tmp_path / "a", "a is a file"), (Path("/"), "/ is a mount")):
        with pytest.raises(InputError, match=what), whole_folder(path):
            raise AssertionError
    assert tree(tmp_path) == {"a": b"mine"}


def test_parts_of_some_files_are_swept_and_no_others(tmp_path: Path) -> None:
    others = [
        ".b.12345678.part",
        ".a.json.part",
        ".a.json.late.part",
        "below/.a.json.12345678.part",
    ]
    (tmp_path / "below").mkdir()
    for name in (*others, ".a.json.1234_678.part"):
        (tmp_path / name).touch()
    (tmp_path / ".c.abcdefgh.part").mkdir()
    sweep_parts_of(tmp_path / "a.json", tmp_path / "c")
    assert tree(tmp_path).keys() == set(others)
    assert not (tmp_path / ".c.abcdefgh.part").exists()


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
