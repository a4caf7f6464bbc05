"""Decisions that a person signed, and the table in which a gateway looks them up.

`decisions.sqlite` holds one list that only grows: who put which account on which step of the
ladder, why, when and until when; an appeal that was granted is the step `lifted`. The last row
of an account counts. Nothing here decides anything. `Decisions` and `Gate`, which a gateway uses,
need the standard library alone.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from limbeck.errors import InputError

Step: TypeAlias = Literal["observe", "throttle", "hide-reasoning", "mark", "verify", "suspend"]
STEPS: tuple[str, ...] = get_args(Step)
LIFTED = "lifted"
FILE = "decisions.sqlite"
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS decisions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    account TEXT NOT NULL,
    step TEXT NOT NULL CHECK (step IN ({", ".join(f"'{step}'" for step in (*STEPS, LIFTED))})),
    campaign TEXT NOT NULL,
    signed_by TEXT NOT NULL CHECK (trim(signed_by) <> ''),
    why TEXT NOT NULL,
    at REAL NOT NULL,
    until REAL
) STRICT;
CREATE INDEX IF NOT EXISTS of_account ON decisions (account, number);
CREATE TRIGGER IF NOT EXISTS no_change BEFORE UPDATE ON decisions
    BEGIN SELECT raise(ABORT, 'decisions are only added'); END;
CREATE TRIGGER IF NOT EXISTS no_removal BEFORE DELETE ON decisions
    BEGIN SELECT raise(ABORT, 'decisions are only added'); END;
CREATE TRIGGER IF NOT EXISTS no_replacement BEFORE INSERT ON decisions
    WHEN EXISTS (SELECT 1 FROM decisions WHERE number = NEW.number)
    BEGIN SELECT raise(ABORT, 'decisions are only added'); END;
"""
STANDING = """SELECT account, step, campaign, until FROM decisions
    WHERE number IN (SELECT max(number) FROM decisions GROUP BY account)"""
FRESH_NS = 50_000_000
"""A file changed so lately may change again within the same tick of its clock."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What counts for an account now; `until` in seconds since 1970, None for no end."""

    step: str
    campaign: str
    until: float | None


def decide(
    path: Path,
    accounts: Sequence[str],
    *,
    step: Step,
    campaign: str,
    by: str,
    why: str = "",
    until: float | None = None,
    again: bool = False,
) -> tuple[int, int]:
    """Put accounts on a step, in the name of the person who signs; all of them or none.

    Accounts of which an appeal was granted are left out, unless `again`.

    Returns:
        How many were put on it, and how many were left out.

    Raises:
        InputError: Nobody signed.
    """
    signed = _signed(by)
    now = time.time()
    with closing(_opened(path)) as store, store:
        stands = {row[0]: row[1] for row in store.execute(STANDING)}
        chosen = [name for name in accounts if again or stands.get(name) != LIFTED]
        store.executemany(
            """INSERT INTO decisions (account, step, campaign, signed_by, why, at, until)
            VALUES (?, ?, ?, ?, ?, ?, ?)""",
            [(name, step, campaign, signed, why.strip(), now, until) for name in chosen],
        )
    return len(chosen), len(accounts) - len(chosen)


def lift(path: Path, account: str, *, by: str, why: str) -> Standing:
    """Grant an appeal: whatever stands against the account ends, and the appeal is on record.

    Returns:
        What stood.

    Raises:
        InputError: Nobody signed, no reason is given, or nothing stands against the account.
    """
    signed = _signed(by)
    if not why.strip():
        raise InputError("An appeal needs its reason: --why TEXT")
    if not path.exists():
        raise InputError(f"{path.parent} holds no decisions, so there is nothing to lift")
    with closing(_opened(path)) as store, store:
        row = store.execute(
            """SELECT step, campaign, until FROM decisions WHERE account = ?
            ORDER BY number DESC""",
            (account,),
        ).fetchone()
        if row is None or row[0] == LIFTED:
            raise InputError(f"Nothing stands against the account {account}")
        store.execute(
            """INSERT INTO decisions (account, step, campaign, signed_by, why, at)
            VALUES (?, ?, ?, ?, ?, ?)""",
            (account, LIFTED, row[1], signed, why.strip(), time.time()),
        )
    return Standing(*row)


def history(path: Path, account: str) -> list[dict[str, Any]]:
    """Everything that was decided about an account, in order."""
    if not path.exists():
        return []
    sql = """SELECT step, campaign, signed_by, why, at, until FROM decisions
        WHERE account = ? ORDER BY number"""
    try:
        with closing(_to_read(path, 30)) as store:
            store.row_factory = sqlite3.Row
            return [dict(row) for row in store.execute(sql, (account,))]
    except sqlite3.DatabaseError as error:
        raise _no_table(path, error) from None


def said(row: Mapping[str, Any]) -> str:
    """A row of `history`, for a person."""
    line = f"Decided ({row['campaign']}): {row['step']}, signed by {row['signed_by']}"
    line += f" on {_moment(row['at'])}"
    line += f", until {_moment(row['until'])}" if row["until"] is not None else ""
    return f"{line}: {row['why']}" if row["why"] else line


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def _signed(by: str) -> str:
    if not by.strip():
        raise InputError("A person signs a decision: give a name, as --by 'A. Person'")
    return by.strip()


def _opened(path: Path) -> sqlite3.Connection:
    try:
        store = sqlite3.connect(path, timeout=30)
        store.executescript(SCHEMA)
    except sqlite3.DatabaseError as error:
        raise _no_table(path, error) from None
    return store


def _to_read(path: Path, timeout: float) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=timeout)


def _no_table(path: Path, error: sqlite3.DatabaseError) -> InputError:
    return InputError(f"{path} is no table of decisions: {error}")


class Decisions:
    """What stands against each account, from memory; the file is read again when it changes.

    A file that cannot be read, or is gone, leaves what was last known in force, and says so in the
    log of the process (`limbeck.guard`). May be shared by threads.

    Raises:
        InputError: At the start there is no such file, or it holds no decisions.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._known: dict[str, Standing] = {}
        if not self._path.is_file():
            raise InputError(f"There is no {self._path}; make it with: limbeck guard decide")
        try:
            self._known = self._read()
        except sqlite3.DatabaseError as error:
            raise _no_table(self._path, error) from None

    def step(self, account: str) -> str | None:
        """The step that an account is on now, or None."""
        found = self.standing(account)
        return found.step if found else None

    def standing(self, account: str) -> Standing | None:
        """The same with its campaign and its end."""
        self._refresh()
        found = self._known.get(account)
        if found is None or (found.until is not None and found.until <= time.time()):
            return None
        return found

    def _refresh(self) -> None:
        try:
            about = self._path.stat()
            stamp = (about.st_mtime_ns, about.st_size, about.st_ino)
            if stamp == self._stamp:
                return
            with self._lock:
                self._known = self._read()
                settled = time.time_ns() - about.st_mtime_ns > FRESH_NS
                self._stamp = stamp if settled else None
        except (OSError, sqlite3.DatabaseError) as error:
            if self._stamp != (0, 0, 0):
                logging.getLogger("limbeck.guard").error(
                    "%s: %s; what was last known stays in force", self._path, error
                )
            self._stamp = (0, 0, 0)

    def _read(self) -> dict[str, Standing]:
        with closing(_to_read(self._path, 5)) as store:
            rows = store.execute(STANDING).fetchall()
        return {row[0]: Standing(*row[1:]) for row in rows if row[1] != LIFTED}


Scope: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gate:
    """ASGI middleware: suspended accounts get 403, throttled campaigns 429 beyond their budget.

    Accounts on `verify` get 403 too, which asks for verification. The step is handed to the app as
    `scope["limbeck.step"]`, so that it hides reasoning or marks outputs itself. The budget is one
    campaign's, in this process: calls a minute, whatever account makes them.

    Args:
        app: What is protected.
        decisions: What stands.
        account_of: The account of a call, from its headers (names in lower case), or None.
        per_minute: Calls a minute that a throttled campaign keeps.
    """

    def __init__(
        self,
        app: App,
        decisions: Decisions,
        account_of: Callable[[Mapping[str, str]], str | None],
        per_minute: float = 60.0,
    ) -> None:
        self._app, self._decisions, self._account_of = app, decisions, account_of
        self._gap = 60.0 / per_minute
        self._next: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, or answer it."""
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        account = self._account_of(headers)
        found = self._decisions.standing(account) if account else None
        if found is None:
            return await self._app(scope, receive, send)
        if found.step in ("suspend", "verify"):
            return await _refuse(scope, send, 403, found.step)
        wait = self._wait(found.campaign) if found.step == "throttle" else 0.0
        if wait:
            return await _refuse(scope, send, 429, found.step, max(1, math.ceil(wait)))
        return await self._app(scope | {"limbeck.step": found.step}, receive, send)

    def _wait(self, campaign: str) -> float:
        """Seconds until the campaign's next call; 0 takes its turn now."""
        now = time.monotonic()
        due = self._next.get(campaign, now)
        if due > now:
            return due - now
        self._next[campaign] = now + self._gap
        return 0.0


WORDS = {
    "suspend": "This account is suspended.",
    "verify": "This account must be verified first.",
    "throttle": "Too many calls.",
}


async def _refuse(scope: Scope, send: Send, status: int, step: str, wait: int = 0) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008, "reason": WORDS[step]})
    body = f'{{"error": {{"type": "{step}", "message": "{WORDS[step]}"}}}}'.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if wait:
        headers.append((b"retry-after", b"%d" % wait))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    return None
