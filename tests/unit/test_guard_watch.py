"""`limbeck guard watch`: error control over looks; folders that are written to meanwhile."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from guard_found import Found
from limbeck.__main__ import run
from limbeck.guard import watch
from limbeck.guard.inbox import Inbox
from limbeck.guard.readers.source import Source

LOOKS, GROUPS, RUNS = 200, 10, 1500


def test_under_the_null_a_false_finding_is_hardly_ever_raised_in_200_looks() -> None:
    """Groups' scores are sums over growing data, so that looks depend on each other."""
    rng = np.random.default_rng(3)
    ever, careless = np.zeros(RUNS, bool), np.zeros(RUNS, bool)
    needed = np.array([watch.level(look) for look in range(1, LOOKS + 1)]) / GROUPS
    for _ in range(GROUPS):
        grown = rng.standard_normal((RUNS, LOOKS)).cumsum(1) / np.sqrt(np.arange(1, LOOKS + 1))
        p = stats.norm.sf(grown)
        ever |= (p <= needed).any(1)
        careless |= (p <= watch.ALPHA / GROUPS).any(1)
    allowance = 3 * np.sqrt(watch.ALPHA * (1 - watch.ALPHA) / RUNS)
    assert ever.mean() <= watch.ALPHA + allowance
    assert careless.mean() > 3 * watch.ALPHA  # without spending, looking often is being wrong
    assert sum(watch.level(look) for look in range(1, 100_000)) <= watch.ALPHA


def told(p: float, members: list[str]) -> dict[str, Any]:
    campaign = dict.fromkeys(watch.CARRIED, 1) | {
        "id": "C1",
        "confidence": {"p_value": p},
        "members": members,
    }
    return {"campaigns": [campaign]}


def test_what_is_raised_needs_more_at_a_later_look_and_is_raised_once() -> None:
    members = [f"a{n}" for n in range(30)]
    p = watch.ALPHA / 6 * 1.01  # fails at look 2, where the share is a sixth
    assert watch.new(told(p, members), [], 2) == []
    (first,) = watch.new(told(p, members), [], 1)
    assert first["p_value"] <= first["needed_p_value"]
    grown = [f"a{n}" for n in range(15, 90)]
    assert watch.new(told(0.0, grown), [first], 3) == []
    (other,) = watch.new(told(0.0, [f"b{n}" for n in range(30)]), [first], 3)
    assert (other["finding"], first["finding"]) == ("F2", "F1")


def test_a_state_folder_is_looked_at_once_and_again_when_cut(
    scanned: Found, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    how = watch.How(threads=1)
    source = Source(str(scanned.state))
    first = watch.watch(source, out, once=True, how=how)
    assert [one["look"] for one in first["raised"]] == [1]
    assert set(first["raised"][0]["members"]) <= scanned.hostile
    assert watch.watch(source, out, once=True, how=how) == {"look": 1, "raised": []}
    lines = (out / "findings.jsonl").read_text()
    assert json.loads(lines) == first["raised"][0]
    # As if killed within the first line of findings.jsonl:
    ledger = json.loads((out / "watch.json").read_text())
    ledger["look"]["done"] = False
    (out / "watch.json").write_text(json.dumps(ledger))
    (out / "findings.jsonl").write_text(lines[: len(lines) // 2])
    again = watch.watch(source, out, once=True, how=how)
    assert again["look"] == 1 and len(again["raised"]) == 1
    assert [json.loads(line) for line in (out / "findings.jsonl").open()] == again["raised"]


def rows(day: int, first: int, count: int) -> str:
    calls = [
        {
            "call_id": f"{day}-{n}",
            "time": f"2026-03-{day:02d}T{n % 24:02d}:00:00Z",
            "account": f"a{n % 40}",
            "model": "m",
            "prompt": f"Explain step by step how to solve number {n}",
            "tokens_in": 9,
            "tokens_out": 9,
        }
        for n in range(first, first + count)
    ]
    return "".join(json.dumps(call) + "\n" for call in calls)


def kept(out: Path) -> list[str]:
    """The ids of the calls in the state folder, and that none was read twice."""
    refused = pq.read_table(out / "state" / "rejects.parquet").to_pylist()
    assert [row for row in refused if "repeats" in row["reason"]] == []
    return sorted(
        one
        for path in (out / "state" / "sketched").rglob("*.parquet")
        for one in pq.read_table(path, columns=["call_id"])["call_id"].to_pylist()
    )


def wait(seen: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not seen() and time.monotonic() < end:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.002)


def test_killed_at_any_point_it_goes_on_and_reads_every_call_once(tmp_path: Path) -> None:
    inbox, out = tmp_path / "it's logs", tmp_path / "out"
    inbox.mkdir()

    def start() -> subprocess.Popen[bytes]:
        words = ["guard", "watch", str(inbox), "--out", str(out), "--every", "0.1"]
        command = [sys.executable, "-m", "limbeck", *words, "--settle", "0.05", "--threads", "1"]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def ledger() -> dict[str, Any]:
        path = out / "watch.json"
        return json.loads(path.read_text()) if path.exists() else {}

    (inbox / "one.jsonl").write_text(rows(1, 0, 300))
    process = start()
    wait(lambda: (out / "watch.json").exists(), process)  # noted, and not yet read
    process.kill()
    process.wait()
    (inbox / "two.jsonl").write_text(rows(2, 0, 200))
    process = start()
    wait(lambda: (out / ".limbeck-work").exists(), process)  # within a look
    process.kill()
    process.wait()
    process = start()
    wait(lambda: ledger().get("look", {}).get("done"), process)
    (inbox / "sub").mkdir()
    (inbox / "sub" / "three.jsonl").write_text(rows(3, 0, 100))
    wait(lambda: len(ledger()["files"]) == 3, process)  # noted, and perhaps read
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    words = ["guard", "watch", str(inbox), "--out", str(out), "--once", "--threads", "1"]
    assert run([*words, "--settle", "0.05"]) == 0
    days = [(1, 300), (2, 200), (3, 100)]
    assert kept(out) == sorted(f"{day}-{n}" for day, count in days for n in range(count))
    assert not (out / ".limbeck-taking").exists() and not list(out.glob(".*.part"))


def test_ctrl_c_whose_exception_is_lost_ends_the_watch_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logs").mkdir()
    turns: list[int] = []

    def take(*_: object) -> int:
        turns.append(len(turns))
        assert len(turns) < 3
        one = threading.Event()
        told = weakref.ref(one, lambda _: signal.raise_signal(signal.SIGINT))
        del one
        return int(told() is not None)

    monkeypatch.setattr(Inbox, "take", take)
    before = signal.getsignal(signal.SIGINT)
    lost: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    with pytest.raises(KeyboardInterrupt):
        watch.watch(Source(str(tmp_path / "logs")), tmp_path / "out", every=0.01)
    assert turns == [0] and len(lost) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_half_written_files_wait_and_bad_ones_stop_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inbox, out = tmp_path / "logs", tmp_path / "out"
    inbox.mkdir()
    (inbox / "good.jsonl").write_text(rows(1, 0, 50))
    (inbox / "bad.csv").write_text("nothing,of,the,kind\n1,2,3,4\n")
    (inbox / ".late.jsonl.part").write_text(rows(2, 0, 9))
    (inbox / "growing.jsonl").write_text(rows(3, 0, 9)[:-40])
    ahead = time.time() + 3600
    os.utime(inbox / "growing.jsonl", (ahead, ahead))
    words = ["guard", "watch", str(inbox), "--out", str(out), "--once", "--settle"]
    assert run([*words, "0.01", "--threads", "1", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"look": 1, "raised": []}
    assert "bad.csv is left until it changes" in shown.err.replace("\n", " ")
    first = kept(out)
    assert {one[0] for one in first} >= {"1"} and not {one[0] for one in first} & {"2"}
    (inbox / ".late.jsonl.part").rename(inbox / "late.jsonl")
    (inbox / "bad.csv").write_text(
        "call_id,time,account,model,tokens_in,tokens_out\nx,2026-03-04T00:00:00Z,a,m,1,1\n"
    )
    assert run([*words, "0.01", "--threads", "1"]) == 0
    assert set(kept(out)) - set(first) == {"x", *(f"2-{n}" for n in range(9))}
    assert json.loads((out / "watch.json").read_text())["look"]["number"] == 2


def test_mistakes_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(rows(1, 0, 1))
    assert run(["guard", "watch", str(file), "--out", str(tmp_path / "o"), "--once"]) == 2
    inside = str(tmp_path / "found")
    assert run(["guard", "watch", str(tmp_path), "--out", inside, "--once"]) == 2
    assert "is inside" in capsys.readouterr().err
    assert run(["guard", "watch", str(tmp_path), "--out", inside, "--every", "0"]) == 2
    assert run(["guard", "watch", inside, "--out", str(tmp_path), "--once"]) == 2  # no folder
    (tmp_path / "found").mkdir()
    assert run(["guard", "watch", inside, "--out", str(tmp_path), "--once"]) == 2
    assert "name another --out" in capsys.readouterr().err
    for option in ("--every", "--settle"):
        for seconds in ("nan", "inf", "1e300", "-1"):
            words = ["guard", "watch", inside, "--out", str(tmp_path / "o"), option, seconds]
            assert run([*words, "--once"]) == 2
            assert "--every must be above 0" in capsys.readouterr().err


def once(inbox: Path, out: Path, *more: str) -> int:
    words = ["guard", "watch", str(inbox), "--out", str(out), "--once", "--settle", "0"]
    return run([*words, "--threads", "1", *more])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.replace("\n", " ")


def noted(out: Path) -> Any:
    return json.loads((out / "watch.json").read_text())


def test_what_others_put_into_out_stays(tmp_path: Path) -> None:
    inbox, out = tmp_path / "logs", tmp_path / "out"
    inbox.mkdir()
    (inbox / "a.jsonl").write_text(rows(1, 0, 30))
    theirs = [f"{name}/notes" for name in ("work", "taking", "snapshot", "logs")]
    theirs += ["logs/.late.jsonl.part", ".mine.part", ".watch.json.part"]
    for name in theirs:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    ours = [".watch.json.abcdefgh.part", ".state.01234567.part/half"]
    for name in ours:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).touch()
    assert once(inbox, out) == 0
    assert once(out / "state", out) == 0  # a state folder may lie there: it is only read
    assert all((out / name).read_text() == "mine" for name in theirs)
    assert not any((out / name).exists() for name in ours)


def test_a_mistake_in_accounts_is_blamed_on_no_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inbox, out, accounts = tmp_path / "logs", tmp_path / "out", tmp_path / "accounts.csv"
    inbox.mkdir()
    for day in (1, 2):
        (inbox / f"{day}.jsonl").write_text(rows(day, 0, 30))
    assert once(inbox, out, "--accounts", str(accounts)) == 2
    assert f"There is no log at {accounts}" in said(capsys)
    accounts.write_text("name\na1\n")
    assert once(inbox, out, "--accounts", str(accounts)) == 2
    assert f"{accounts} lacks the column account" in said(capsys)
    assert noted(out)["refused"] == {} == noted(out)["files"]
    (out / "state").mkdir()
    (out / "state" / "mine").touch()
    assert once(inbox, out) == 2
    assert "state holds something else" in said(capsys) and noted(out)["refused"] == {}
    shutil.rmtree(out / "state")
    (out / "state").touch()
    assert once(inbox, out) == 2
    assert "state is a file" in said(capsys) and noted(out)["refused"] == {}
    (out / "state").unlink()
    accounts.write_text("account\na1\n")
    assert once(inbox, out, "--accounts", str(accounts)) == 0
    assert len(kept(out)) == 60


def test_a_file_that_may_not_be_read_is_named_and_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, out = tmp_path / "logs", tmp_path / "out"
    inbox.mkdir()
    (tmp_path / "1.jsonl").write_text(rows(1, 0, 30))
    (inbox / "1.jsonl").symlink_to("../1.jsonl")
    (inbox / "2.jsonl").write_text(rows(2, 0, 30))
    link = os.link

    def refusing(file: Path, path: Path) -> None:
        if file.name == "2.jsonl":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        link(file, path)

    def denied(file: Path, path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", refusing)
        patched.setattr(shutil, "copyfile", denied)
        assert once(inbox, out) == 0
    assert "2.jsonl is left, it cannot be read: Permission denied" in said(capsys)
    assert len(kept(out)) == 30 and noted(out)["refused"] == {}
    assert once(inbox, out) == 0
    assert len(kept(out)) == 60


def test_one_look_at_nothing_is_an_error_that_names_the_users_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inbox, out = tmp_path / "logs", tmp_path / "out"
    inbox.mkdir()
    assert once(inbox, out) == 2
    assert "No look was made" in said(capsys)
    for name in ("a.csv", "b.csv"):
        (inbox / name).write_text("nothing,of,the,kind\n1,2,3,4\n")
    for again in (False, True):
        assert once(inbox, out) == 2
        err = said(capsys)
        assert f"2 files stand refused; see {out / 'watch.json'}" in err
        assert "2 files there are refused until they change" in err and "taking" not in err
        assert f"{inbox / 'a.csv'} lacks the column" in err or again
    (inbox / "c.jsonl").write_text(rows(1, 0, 30))
    assert once(inbox, out) == 0
    assert "2 files stand refused" in said(capsys)


def test_what_a_scan_read_is_not_read_again(tmp_path: Path) -> None:
    inbox, out = tmp_path / "logs", tmp_path / "out"
    (inbox / "sub").mkdir(parents=True)
    (inbox / "1.jsonl").write_text(rows(1, 0, 30))
    (inbox / "sub" / "2.jsonl").write_text(rows(2, 0, 30))
    (tmp_path / "bad.csv").write_text("nothing\n1\n")
    assert run(["guard", "scan", str(tmp_path / "bad.csv"), "--out", str(out)]) == 2
    assert noted(out)["files"] == {}
    assert run(["guard", "scan", str(inbox), "--out", str(out), "--threads", "1"]) == 0
    (out / "state").rename(out / ".state.limbeck-old")  # as if killed while it was exchanged
    assert once(inbox, out) == 0
    assert len(kept(out)) == 60 and noted(out)["look"]["number"] == 1
    warnings = json.loads((out / "campaigns.json").read_text())["warnings"]
    assert not [line for line in warnings if "refused" in line]
    with (inbox / "1.jsonl").open("a") as file:
        file.write(rows(3, 0, 5))
    assert once(inbox, out) == 0
    assert noted(out)["files"]["1.jsonl"][2] == 2
