"""The store of answers: SQLite in WAL mode, keyed by content, durable before an answer counts."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import InputError
from limbeck.files import disk_full
from limbeck.records import OUTCOMES, Answer, Outcome, Permission, Sampling, Usage

VERSION = 2
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    id TEXT PRIMARY KEY,
    prompt_id TEXT NOT NULL,
    model TEXT NOT NULL,
    route TEXT NOT NULL,
    sampling TEXT NOT NULL,      -- JSON
    text TEXT NOT NULL,
    reasoning TEXT NOT NULL,
    tool_calls TEXT NOT NULL,    -- JSON
    token_ids BLOB NOT NULL,     -- int32, little-endian
    finish_reason TEXT NOT NULL,
    tokens_in INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL,
    seconds REAL NOT NULL,
    outcome TEXT NOT NULL,
    why TEXT NOT NULL,
    asked_at TEXT NOT NULL,      -- ISO 8601, UTC; "" where an older limbeck did not keep it
    permission TEXT NOT NULL     -- permissions.id; "" likewise
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS permissions (
    id TEXT PRIMARY KEY,
    document TEXT NOT NULL       -- JSON: the Permission under which answers were asked for
) WITHOUT ROWID;
"""
FROM_VERSION_1 = """
BEGIN;
ALTER TABLE answers ADD COLUMN asked_at TEXT NOT NULL DEFAULT '';
ALTER TABLE answers ADD COLUMN permission TEXT NOT NULL DEFAULT '';
PRAGMA user_version = 2;
COMMIT;
"""
CLOCKED = ("seconds", "asked_at")


@dataclass(frozen=True, slots=True)
class Origin:
    """When an answer was asked for (ISO 8601, UTC) and the id of the permission for it."""

    asked_at: str
    permission: str


class AnswerStore:
    """Answers by id. What `add` returned from survives kill -9 and a power cut.

    Each answer is kept with the moment at which it was added and the `permission` that the store
    was opened with. A store opened `read_only` is not touched, not even brought to this format.
    """

    def __init__(
        self, path: Path, permission: Permission | None = None, *, read_only: bool = False
    ) -> None:
        self.path, self._permission = path, permission
        with self._named_errors():
            self._db = _open(path, read_only)
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found > VERSION:
                raise InputError(
                    f"{path} was written by a newer limbeck (format {found}, known: {VERSION}). "
                    "Upgrade limbeck."
                )
            if read_only and found < VERSION:
                raise InputError(
                    f"{path} was written by an older limbeck (format {found}, now {VERSION}). "
                    "Bring it up to date with: limbeck collect"
                )
            if found < VERSION:
                self._db.executescript(FROM_VERSION_1 if found == 1 else "")
                self._db.executescript(SCHEMA)
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, answers: Iterable[Answer]) -> None:
        """Write the answers in one transaction: all of them or none. A known id is replaced."""
        permission = self._permission
        origin = (_now(), permission.id if permission else "")
        rows = [_row(answer) + origin for answer in answers]
        marks = ",".join("?" * 17)
        with self._named_errors(), self._db:
            self._db.executemany(f"INSERT OR REPLACE INTO answers VALUES ({marks})", rows)  # noqa: S608
            if permission:
                document = json.dumps(asdict(permission), ensure_ascii=False, sort_keys=True)
                row = (permission.id, document)
                self._db.execute("INSERT OR IGNORE INTO permissions VALUES (?, ?)", row)

    def reject(self, ids: Iterable[str], why: str) -> None:
        """Give these answers the outcome rejected, all in one transaction; the rest of them stays.

        An answer that was rejected for the same reason before is left as it is.
        """
        change = "UPDATE answers SET outcome = 'rejected', why = ? WHERE id = ? AND why != ?"
        with self._named_errors(), self._db:
            self._db.executemany(change, [(why, i, why) for i in ids])

    def have(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that are in the store."""
        return {answer.id for answer in self.get(ids)}

    def get(self, ids: Sequence[str]) -> list[Answer]:
        """The answers with these ids that are in the store, in the order of `ids`."""
        found = {row[0]: _answer(row[:15]) for row in self._rows("*", ids)}
        return [found[i] for i in ids if i in found]

    def origins(self, ids: Sequence[str]) -> dict[str, Origin]:
        """When and under which permission those of `ids` that are here were asked for."""
        rows = self._rows("id, asked_at, permission", ids)
        return {i: Origin(asked_at, permission) for i, asked_at, permission in rows}

    def permissions(self) -> dict[str, dict[str, Any]]:
        """Every permission under which an answer here was asked for, by id."""
        with self._named_errors():
            rows = self._db.execute("SELECT id, document FROM permissions ORDER BY id").fetchall()
        return {id_: json.loads(document) for id_, document in rows}

    def digests(self, *, clock: bool = True) -> dict[str, str]:
        """The SHA-256 of every row by answer id, then by `permission/ID`; sorted.

        It covers what is stored and not how SQLite lays it out. Without `clock`, answers are
        hashed without what another run of the same recipe would clock otherwise.
        """
        digests: dict[str, str] = {}
        with self._named_errors():
            for table, prefix in (("answers", ""), ("permissions", "permission/")):
                cursor = self._db.execute(f"SELECT * FROM {table} ORDER BY id")  # noqa: S608
                names = [column[0] for column in cursor.description]
                for row in cursor:
                    told = dict(zip(names, row, strict=True))
                    for name in () if clock else CLOCKED:
                        told.pop(name, None)
                    digests[prefix + row[0]] = _digest(told)
        return digests

    def _rows(self, columns: str, ids: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        with self._named_errors():
            for start in range(0, len(ids), 500):
                some = ids[start : start + 500]
                marks = ",".join("?" * len(some))
                query = f"SELECT {columns} FROM answers WHERE id IN ({marks})"  # noqa: S608
                yield from self._db.execute(query, some)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise disk_full(self.path) from None
            raise InputError(f"{self.path} cannot be used as an answer store: {error}") from None
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{self.path} is damaged ({error}). Try: sqlite3 {self.path} .recover"
            ) from None


def outcomes(answers: Iterable[Answer]) -> dict[Outcome, int]:
    """How many answers ended in each outcome; all five are named."""
    counted = Counter(answer.outcome for answer in answers)
    return {outcome: counted[outcome] for outcome in OUTCOMES}


def _open(path: Path, read_only: bool) -> sqlite3.Connection:
    if not read_only:
        db = sqlite3.connect(path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        return db
    # A store that was closed well has no write-ahead log, and is then readable on any medium.
    log = path.with_name(f"{path.name}-wal")
    mode = "mode=ro" if log.exists() else "immutable=1"
    return sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True)


def _digest(row: dict[str, Any]) -> str:
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=bytes.hex)
    return hashlib.sha256(text.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _row(a: Answer) -> tuple[object, ...]:
    return (
        a.id, a.prompt_id, a.model, a.route, json.dumps(asdict(a.sampling), sort_keys=True),
        a.text, a.reasoning, json.dumps(a.tool_calls), np.array(a.token_ids, "<i4").tobytes(),
        a.finish_reason, a.usage.tokens_in, a.usage.tokens_out, a.usage.seconds, a.outcome, a.why,
    )  # fmt: skip


def _answer(row: tuple[object, ...]) -> Answer:
    (id_, prompt_id, model, route, sampling, text, reasoning, calls, token_ids, finish, tokens_in,
     tokens_out, seconds, outcome, why) = row  # fmt: skip
    assert isinstance(token_ids, bytes)
    return Answer(
        id=str(id_),
        prompt_id=str(prompt_id),
        model=str(model),
        route=str(route),
        sampling=Sampling(**json.loads(str(sampling))),
        text=str(text),
        reasoning=str(reasoning),
        tool_calls=tuple(json.loads(str(calls))),
        token_ids=tuple(np.frombuffer(token_ids, "<i4").tolist()),
        finish_reason=str(finish),
        usage=Usage(int(tokens_in), int(tokens_out), float(seconds)),  # pyright: ignore[reportArgumentType]
        outcome=outcome,  # pyright: ignore[reportArgumentType]
        why=str(why),
    )
