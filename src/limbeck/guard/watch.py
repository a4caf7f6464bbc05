"""`limbeck guard watch`: scan again whenever calls have come in, and raise each finding once.

Every look at a growing log is one more chance to be wrong. Look t may spend the share
1 ÷ (t (t + 1)) of `ALPHA`, and these shares add up to 1 over looks without end; within a look it is
divided among all groups tested (Bonferroni). By the union bound the chance that a false finding is
ever raised is then at most `ALPHA`, whenever somebody stops and however the looks depend on each
other: alpha-spending (Lan and DeMets, 1983; Foster and Stine, 2008, for tests that come in a row).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from limbeck.errors import InputError
from limbeck.files import full_disk_named, locked, put_back, sweep_parts_of
from limbeck.guard import score, walk
from limbeck.guard import state as kept
from limbeck.guard.engine import Kind
from limbeck.guard.findings import Price
from limbeck.guard.inbox import NAME, Inbox, Ledger
from limbeck.guard.logs import refuse_inside
from limbeck.guard.readers.postgres import shown
from limbeck.guard.readers.source import Source
from limbeck.interrupt import on_interrupt
from limbeck.progress import say

ALPHA = 0.05
"""The chance that a false finding is ever raised."""
SAME = 0.5
"""Campaigns that have this share of the smaller one's members in common are one finding."""
LONGEST = 366 * 86_400
"""The most seconds between looks, or that a file is left alone."""
SNAPSHOT = ".limbeck-snapshot"
WRITTEN = (NAME, "accounts.parquet", "campaigns.json", "campaigns.stix.json", "report.html")


@dataclass(frozen=True, slots=True)
class How:
    """How a look is made: prices, the engine and what it may take."""

    price: Price = field(default_factory=Price)
    kind: Kind = "duckdb"
    memory: str = "4GB"
    threads: int = 2


def level(look: int, alpha: float = ALPHA) -> float:
    """The p-value, over all groups tested, that a campaign needs at a look (from 1)."""
    return alpha * score.spent(look)


def watch(
    source: Source,
    out: Path,
    *,
    accounts: Source | None = None,
    every: float = 60.0,
    settle: float = 10.0,
    once: bool = False,
    how: How = How(),
) -> dict[str, Any]:
    """Watch a state folder, or a folder of logs, for ever or for one look.

    Args:
        source: The folder; of a state folder, `guard ingest` makes it grow.
        out: Where to write; the state of a folder of logs grows in `out`/state.
        accounts: A table of accounts, read anew with each new log.
        every: Seconds between looks for new files.
        settle: Seconds for which a file must not have changed before it is taken.
        once: Take what is there, look once, and return.
        how: What a look takes.

    Returns:
        The number of the last look, and the findings raised by this call.

    Raises:
        InputError: Folders, times or accounts that cannot be, or one look and nothing to look at.
    """
    folder = Path(source.where)
    own = _own(folder, out, accounts, every, settle)
    out.mkdir(parents=True, exist_ok=True)
    raised: list[dict[str, Any]] = []
    busy = f"Another watch is writing to {out}; name another folder"
    with locked(out / ".lock", busy), _asked_to_stop() as asked:
        state = out / SNAPSHOT if own else out / "state"
        _tidy(out, own)
        ledger = Ledger(out, state)
        inbox = Inbox(source, out, accounts, settle, how.threads)
        before = 0
        while True:
            left = 0 if own else inbox.take(ledger)
            if once and left:
                time.sleep(settle)
                left = inbox.take(ledger)
            if left:
                say(f"{'watch':>9}  {left} files are still being written, and left")
            if inbox.refused != before:
                say(f"{'watch':>9}  {inbox.refused} files stand refused; see {ledger.path}")
            before = inbox.refused
            if _unseen(ledger, folder if own else state) and (not own or _snapshot(folder, state)):
                raised += _look(ledger, state, out, how)
            if once and not ledger.look["number"]:
                raise InputError(_nothing(inbox, left, ledger))
            if once:
                return {"look": ledger.look["number"], "raised": raised}
            if asked.is_set():
                raise KeyboardInterrupt
            time.sleep(every)


def _own(folder: Path, out: Path, accounts: Source | None, every: float, settle: float) -> bool:
    """Whether `folder` is a state folder; InputError for what cannot be watched."""
    if not (0 < every <= LONGEST and 0 <= settle <= LONGEST):
        raise InputError(
            "--every must be above 0 and --settle not below it, in seconds, and neither over a year"
        )
    if not folder.is_dir():
        name = shown(str(folder))
        raise InputError(f"{name} is no folder; watch one of logs, or a state folder")
    if (folder / "ingest.json").exists():
        if accounts is not None:
            raise InputError(f"{folder} is a state folder: give --accounts to guard ingest instead")
        return True
    refuse_inside(out, folder)
    if folder.resolve().is_relative_to(out.resolve()):
        raise InputError(
            f"{folder} is inside {out}, which is for what is found; name another --out"
        )
    return False


def _tidy(out: Path, own: bool) -> None:
    """Remove what a killed watch left; never what others put into `out`."""
    if not own:
        put_back(out / "state")
        sweep_parts_of(out / "state")
    sweep_parts_of(*(out / name for name in WRITTEN))


def _nothing(inbox: Inbox, left: int, ledger: Ledger) -> str:
    why = f"{inbox.refused} files there are refused until they change, see {ledger.path}"
    why = why if inbox.refused else "no log there can be read"
    grows = f"; {left} are still being written" if left else ""
    return f"No look was made, since {inbox.folder} gives nothing to look at: {why}{grows}"


@contextmanager
def _asked_to_stop() -> Generator[threading.Event]:
    """Ctrl-C, also where its exception was lost: in a callback, Python prints it and goes on."""
    asked = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.default_int_handler(number, frame)

    with on_interrupt(note):
        yield asked


def _look(ledger: Ledger, state: Path, out: Path, how: How) -> list[dict[str, Any]]:
    """Scan what is new. The look is spent before its result is known, and redone if it was cut."""
    seen = _print(state)
    if ledger.look["seen"] != seen:
        number = ledger.look["number"] + 1
        ledger.look = {"number": number, "seen": seen, "done": False}
        ledger.save()
    number = ledger.look["number"]
    say(f"{'watch':>9}  look {number}")
    told = walk.walk(state, out, how.price, kind=how.kind, memory=how.memory, threads=how.threads)
    path = out / "findings.jsonl"
    fresh = new(told, _earlier(path), number)
    _append(path, fresh)
    ledger.look["done"] = True
    ledger.save()
    for one in fresh:
        say(
            f"{'finding':>9}  {one['finding']}: {one['accounts']:,} accounts took "
            f"{one['calls']:,} answers; see {out / 'report.html'}, {one['campaign']}"
        )
    if waiting := len(told["campaigns"]) - len(fresh):
        say(f"{'watch':>9}  {waiting} campaigns raised before, or not sure enough over all looks")
    return fresh


def _unseen(ledger: Ledger, state: Path) -> bool:
    """Whether a state folder holds what no look has finished with."""
    seen = _print(state)
    return bool(seen) and (ledger.look["seen"] != seen or not ledger.look["done"])


def _print(state: Path) -> str:
    """What tells one content of a state folder from another; empty where there is none."""
    try:
        return hashlib.sha256((state / "ingest.json").read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def new(
    told: dict[str, Any], earlier: list[dict[str, Any]], look: int, alpha: float = ALPHA
) -> list[dict[str, Any]]:
    """The findings that a look raises: sure enough, and none of those raised earlier."""
    needed = level(look, alpha)
    known = [set(one["members"]) for one in earlier]
    raised: list[dict[str, Any]] = []
    for one in told["campaigns"]:
        p = one["confidence"]["p_value"]
        members = set(one["members"])
        if p > needed or any(_same(members, other) for other in known):
            continue
        known.append(members)
        raised.append(
            {
                "finding": f"F{len(known)}",
                "raised": datetime.now(UTC).isoformat(timespec="seconds"),
                "look": look,
                "campaign": one["id"],
                "p_value": p,
                "needed_p_value": needed,
                **{key: one[key] for key in CARRIED},
            }
        )
    return raised


CARRIED = ("accounts", "calls", "tokens_out", "value", "first_call", "last_call", "members")


def _same(one: set[str], other: set[str]) -> bool:
    return len(one & other) >= SAME * min(len(one), len(other))


def _earlier(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0]
    return [json.loads(line) for line in whole.split("\n") if line]


def _append(path: Path, findings: list[dict[str, Any]]) -> None:
    """Add whole lines, durably; what a killed process left of a line goes first."""
    if not findings:
        return
    with full_disk_named(path), path.open("ab+") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in findings]
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())


def _snapshot(folder: Path, state: Path) -> bool:
    """Hold another's state folder as it is, by links; False while it is being replaced."""
    part, before = state.with_name(f"{state.name}.part"), _print(folder)
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        kept.link(folder, part)
        for name in kept.ANEW:
            if name == "ingest.json" or (folder / name).exists():
                shutil.copyfile(folder / name, part / name)
    except FileNotFoundError:
        return False
    if not before == _print(part) == _print(folder):
        return False
    shutil.rmtree(state, ignore_errors=True)
    part.replace(state)
    return True
