"""Decisions: signed, kept, lifted on appeal, and looked up by a real gateway."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guard_found import Found
from limbeck.__main__ import BUG, main, run
from limbeck.errors import InputError
from limbeck.guard import enforce

MARK = ["decide", "OUT", "--campaign", "C1", "--step", "mark"]
NAME = "o'b; DROP TABLE decisions; --"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "decisions.sqlite"
    enforce.decide(made, ["a", NAME], step="throttle", campaign="C1", by="A. Person")
    return made


def test_the_last_signed_row_counts_and_nothing_is_rewritten(path: Path) -> None:
    known = enforce.Decisions(path)
    assert (known.step("a"), known.step(NAME), known.step("b")) == ("throttle", "throttle", None)
    enforce.decide(path, ["a"], step="suspend", campaign="C2", by="A. Person", why="more of it")
    assert known.standing("a") == enforce.Standing("suspend", "C2", None)
    enforce.lift(path, "a", by="B. Person", why="students")
    assert known.step("a") is None
    steps = [(row["step"], row["signed_by"]) for row in enforce.history(path, "a")]
    assert steps == [
        ("throttle", "A. Person"), ("suspend", "A. Person"), ("lifted", "B. Person")
    ]  # fmt: skip
    with sqlite3.connect(path) as store:
        again = "VALUES (1, 'a', 'observe', 'C1', 'B', '', 0, NULL)"
        for sql in (
            "DELETE FROM decisions",
            "UPDATE decisions SET step = 'observe'",
            f"INSERT OR REPLACE INTO decisions {again}",
        ):
            with pytest.raises(sqlite3.DatabaseError, match="only added"):
                store.execute(sql)


def test_an_older_table_gets_its_guard_when_it_is_next_written(path: Path) -> None:
    with sqlite3.connect(path) as store:
        store.execute("DROP TRIGGER no_replacement")
    before = path.read_bytes()
    assert len(enforce.history(path, "a")) == 1 and path.read_bytes() == before
    enforce.decide(path, ["a"], step="mark", campaign="C1", by="A. Person")
    with sqlite3.connect(path) as store, pytest.raises(sqlite3.DatabaseError, match="only added"):
        store.execute("REPLACE INTO decisions SELECT * FROM decisions WHERE number = 1")


def test_a_granted_appeal_is_not_undone_in_passing(path: Path) -> None:
    enforce.lift(path, "a", by="B. Person", why="students")
    args: dict[str, Any] = {"step": "suspend", "campaign": "C7", "by": "A. Person"}
    assert enforce.decide(path, ["a", "b"], **args) == (1, 1)
    known = enforce.Decisions(path)
    assert (known.step("a"), known.step("b")) == (None, "suspend")
    assert enforce.decide(path, ["a", "b"], **args, again=True) == (2, 0)
    assert known.step("a") == "suspend"


def test_a_decision_ends_by_itself(path: Path) -> None:
    soon = time.time() + 0.3
    enforce.decide(path, ["a"], step="suspend", campaign="C1", by="A. Person", until=soon)
    known = enforce.Decisions(path)
    assert known.step("a") == "suspend"
    while time.time() <= soon:
        time.sleep(0.02)
    assert known.step("a") is None


def test_every_change_is_seen_though_the_file_looks_the_same(path: Path) -> None:
    """As where several decisions fall within one tick of the file system's clock."""
    known = enforce.Decisions(path)
    tick = time.time_ns() + 10**9
    for step in ["suspend", "observe", "mark"] * 5:
        enforce.decide(path, ["a"], step=step, campaign="C1", by="A. Person")  # pyright: ignore[reportArgumentType]
        os.utime(path, ns=(tick, tick))
        assert known.step("a") == step


def test_a_lost_table_leaves_what_was_known(path: Path, caplog: Any) -> None:
    known = enforce.Decisions(path)
    path.rename(path.with_name("gone"))
    assert known.step("a") == "throttle"
    path.write_bytes(b"no database at all" * 100)
    assert known.step("a") == "throttle"
    assert len(caplog.records) == 1
    path.with_name("gone").replace(path)
    enforce.decide(path, ["a"], step="observe", campaign="C1", by="A. Person")
    assert known.step("a") == "observe"
    with pytest.raises(InputError, match="There is no"):
        enforce.Decisions(path.with_name("nowhere"))
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match="no table of decisions"):
        enforce.Decisions(path)


def test_commands(scanned: Found, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found"
    out.mkdir()
    for name in ("accounts.parquet", "campaigns.json"):
        shutil.copyfile(scanned.out / name, out / name)
    member = scanned.told["campaigns"][0]["members"][0]
    decide = ["guard", "decide", str(out), "--campaign", "C1", "--step", "suspend", "--json"]
    day = ["--until", "2199-01-01"]
    assert run([*decide, *day, "--by", "A. Person", "--why", "read the page"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["accounts"] == scanned.told["flagged"]
    known = enforce.Decisions(told["decisions"])
    assert known.step(member) == "suspend"
    appeal = ["guard", "appeal", str(out), member, "--by", "B. Person"]
    assert run([*appeal, "--why", "a class of students", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lifted"] == "suspend"
    assert known.step(member) is None
    assert run(["guard", "explain", str(out), member, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["decisions"]
    assert [row["step"] for row in rows] == ["suspend", "lifted"]
    assert rows[1]["why"] == "a class of students"
    assert run(["guard", "explain", str(out), member]) == 0
    shown = capsys.readouterr()
    assert not shown.err
    (first, second) = [line for line in shown.out.splitlines() if line.startswith("Decided")]
    day = time.strftime(" on %Y-%m-%d ", time.gmtime(rows[0]["at"]))
    assert day in first and first.endswith(", until 2199-01-01 00:00 UTC: read the page")
    assert "until" not in second and second.endswith(": a class of students")
    assert "a tool or rubric that many use: its even users divide it with a CV²" in shown.out
    assert "Still named without\n  Templates: " in shown.out
    assert run(["guard", "appeal", str(out), "nobody", "--by", "B", "--why", "w"]) == 2
    assert "saw no account nobody" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["accounts.parquet", "campaigns.json"])
def test_a_scan_that_was_cut_is_said_to_be(
    scanned: Found, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for one in ("accounts.parquet", "campaigns.json"):
        whole = (scanned.out / one).read_bytes()
        (tmp_path / one).write_bytes(whole[: len(whole) // 2] if one == name else whole)
    member = scanned.told["campaigns"][0]["members"][0]
    assert run(["guard", "explain", str(tmp_path), member]) == 2
    assert "cannot be read; scan again" in capsys.readouterr().err
    if name == "campaigns.json":
        decide = ["guard", "decide", str(tmp_path), "--campaign", "C1", "--step", "mark"]
        assert run([*decide, "--by", "A. Person"]) == 2


def test_a_bug_does_not_end_as_a_campaign_found_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise IndexError("out of range")

    monkeypatch.setattr("limbeck.guard.walk.state_of", broken)
    with pytest.raises(SystemExit) as ended:
        main(["guard", "scan", "calls", "--out", str(tmp_path), "--json"])
    shown = capsys.readouterr()
    assert ended.value.code == BUG == json.loads(shown.out)["exit_code"]
    assert "Traceback" in shown.err and "IndexError: out of range" in shown.err


@pytest.mark.parametrize(
    "words",
    [
        ["ingest", "x", "--out", "OUT", "--threads", "0"],
        ["scan", "x", "--out", "OUT", "--threads", "-1"],
        ["watch", "x", "--out", "OUT", "--threads", "0"],
        ["scan", "x", "--out", "OUT", "--price-in", "nan"],
        ["scan", "x", "--out", "OUT", "--price-out", "-1"],
        ["scan", "x", "--out", "OUT", "--price-out", "inf"],
        ["scan", "x", "--out", "OUT", "--memory", "banana"],
        ["scan", "x", "--out", "FILE"],
        ["watch", "x", "--out", "FILE"],
    ],
)
def test_a_wrong_option_is_named_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    where = {"OUT": str(tmp_path / "out"), "FILE": str(tmp_path / "file")}
    (tmp_path / "file").write_text("")
    assert run(["guard", *(where.get(word, word) for word in words)]) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"for {words[4] if len(words) > 4 else '--out'}." in said
    assert f"See: limbeck guard {words[0]} --help" in said
    assert not (tmp_path / "out").exists()


def test_a_scan_that_fails_leaves_no_empty_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(["guard", "scan", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert not out.exists()
    out.mkdir()
    assert run(["guard", "scan", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["decide", "OUT", "--campaign", "C9", "--step", "mark", "--by", "A"], "it named C1"),
        ([*MARK, "--by", " "], "A person signs"),
        (MARK, "--by"),
        (["decide", "OUT", "--campaign", "C1", "--step", "ban", "--by", "A"], "ban"),
        (["decide", "NONE", "--campaign", "C1", "--step", "mark", "--by", "A"], "holds no scan"),
        ([*MARK, "--by", "A", "--until", "2001-01-01"], "is over"),
        (["appeal", "OUT", "x", "--by", "A", "--why", "w"], "no decisions"),
    ],
)  # fmt: skip
def test_mistakes_are_answered(
    scanned: Found, tmp_path: Path, capsys: Any, words: list[str], said: str
) -> None:
    where = {"OUT": str(scanned.out), "NONE": str(tmp_path)}
    assert run(["guard", *(where.get(word, word) for word in words)]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert not (scanned.out / enforce.FILE).exists()


@contextmanager
def serving(app: Any) -> Iterator[str]:
    import uvicorn

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


def call(url: str, key: str | None) -> tuple[int, Any, str]:
    request = urllib.request.Request(url, headers={"X-Api-Key": key} if key else {})
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, reply.headers, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = str(scope.get("limbeck.step")).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def test_a_gateway_on_loopback(path: Path, needs: Any) -> None:
    needs(importlib.util.find_spec("uvicorn"), "uvicorn")
    for step, account in (("suspend", "s"), ("verify", "v"), ("hide-reasoning", "h")):
        enforce.decide(path, [account], step=step, campaign="C2", by="A. Person")  # pyright: ignore[reportArgumentType]
    keys = {"key-a": "a", "key-b": NAME, "key-s": "s", "key-v": "v", "key-h": "h", "key-x": "x"}

    def account_of(headers: Any) -> str | None:
        return keys.get(headers.get("x-api-key", ""))

    gate = enforce.Gate(echo, enforce.Decisions(path), account_of, per_minute=1)
    with serving(gate) as url:
        assert call(url, None)[::2] == call(url, "key-x")[::2] == (200, "None")
        assert call(url, "key-h")[::2] == (200, "hide-reasoning")
        assert call(url, "key-s")[0] == 403
        status, _, body = call(url, "key-v")
        assert (status, json.loads(body)["error"]["type"]) == (403, "verify")
        assert call(url, "key-a")[::2] == (200, "throttle")  # the campaign's one call a minute
        for key in ("key-a", "key-b"):  # whoever of the campaign makes it
            status, headers, _ = call(url, key)
            assert status == 429 and 1 <= int(headers["Retry-After"]) <= 60
        enforce.lift(path, "s", by="B. Person", why="a mistake")
        assert call(url, "key-s")[0] == 200
