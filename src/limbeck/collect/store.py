"""The store of answers: SQLite in WAL mode, keyed by content, durable before an answer counts."""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import InputError
from limbeck.files import disk_full
from limbeck.recipe import Recipe
from limbeck.records import (
    OUTCOMES,
    Answer,
    Outcome,
    Permission,
    Sampling,
    TopLogprobs,
    Usage,
)

VERSION = 4
SCHEMA = (
    """CREATE TABLE IF NOT EXISTS answers (
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
    permission TEXT NOT NULL,    -- permissions.id; "" likewise
    cached INTEGER NOT NULL,     -- as the other three, 0 where an older limbeck did not keep it
    reasoning_tokens INTEGER NOT NULL,
    lost_in INTEGER NOT NULL,
    lost_out INTEGER NOT NULL,
    batch INTEGER NOT NULL       -- 1: asked for in a batch, and at its price
) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS permissions (
    id TEXT PRIMARY KEY,
    document TEXT NOT NULL       -- JSON: the Permission under which answers were asked for
) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS judged (
    id TEXT NOT NULL,            -- of an answer that is kept, and rejected by a run's checks
    run TEXT NOT NULL,           -- the key under which that run collects
    why TEXT NOT NULL,
    PRIMARY KEY (id, run)
) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS logprobs (
    id TEXT PRIMARY KEY,         -- answers.id
    told BLOB NOT NULL           -- deflated JSON: [[token, logprob, [[token, logprob], …]], …],
                                 -- a token's bytes as Latin-1 text
) WITHOUT ROWID""",
)
ADDED = {  # columns, by the format that brought them
    2: ("asked_at TEXT NOT NULL DEFAULT ''", "permission TEXT NOT NULL DEFAULT ''"),
    3: tuple(
        f"{column} INTEGER NOT NULL DEFAULT 0"
        for column in ("cached", "reasoning_tokens", "lost_in", "lost_out")
    ),
    4: ("batch INTEGER NOT NULL DEFAULT 0",),
}
COLUMNS = 22
CLOCKED = ("seconds", "asked_at", "cached", "lost_in", "lost_out")
AT_ONCE = 500  # ids in one query


@dataclass(frozen=True, slots=True)
class Origin:
    """When an answer was asked for (ISO 8601, UTC) and the id of the permission for it."""

    asked_at: str
    permission: str


class AnswerStore:
    """Answers by id. What `add` returned from survives kill -9 and a power cut.

    Each answer is kept with the moment at which it was added and the `permission` that the store
    was opened with. A store opened `read_only` is not touched, not even brought to this format.
    Runs that share a store may judge its answers by different checks: one opened as `judged` by a
    run shows what that run rejected as rejected.
    """

    def __init__(
        self,
        path: Path,
        permission: Permission | None = None,
        *,
        read_only: bool = False,
        judged: str = "",
    ) -> None:
        self.path, self._permission, self._run = path, permission, judged
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
                self._upgrade()

    def _upgrade(self) -> None:
        """Make the tables, or add what later formats brought, in one transaction."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")  # another process may be at it
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            for statement in SCHEMA:
                self._db.execute(statement)
            for column in itertools.chain(*(ADDED[v] for v in ADDED if 0 < found < v)):
                self._db.execute(f"ALTER TABLE answers ADD COLUMN {column}")
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, answers: Iterable[Answer]) -> None:
        """Write the answers in one transaction: all of them or none. A known id is replaced."""
        permission = self._permission
        origin = (_now(), permission.id if permission else "")
        answers = list(answers)
        rows = [_row(answer, origin) for answer in answers]
        told = [(a.id, _deflated(a.logprobs)) for a in answers if a.logprobs]
        marks = ",".join("?" * COLUMNS)
        with self._named_errors(), self._db:
            self._db.executemany(f"INSERT OR REPLACE INTO answers VALUES ({marks})", rows)  # noqa: S608
            self._db.executemany("INSERT OR REPLACE INTO logprobs VALUES (?, ?)", told)
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

    def judge(self, rejected: Mapping[str, str]) -> None:
        """Add what this run's checks reject, and why, by answer id; answers stay as they are."""
        rows = [(i, self._run, why) for i, why in rejected.items()]
        with self._named_errors(), self._db:
            self._db.executemany("INSERT OR REPLACE INTO judged VALUES (?, ?, ?)", rows)

    def forget_judged(self) -> None:
        """Take back all that this run's checks rejected."""
        with self._named_errors(), self._db:
            self._db.execute("DELETE FROM judged WHERE run = ?", (self._run,))

    def have(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that need not be asked again: all here but those that a failure cost.

        A question that a failing service spoilt (`finish_reason` error) gets another chance.
        """
        rows = self._rows("SELECT id FROM answers", ids, " AND finish_reason != 'error'")
        return {row[0] for row in rows}

    def get(self, ids: Sequence[str]) -> list[Answer]:
        """The answers with these ids that are in the store, in the order of `ids`."""
        found = {row[0]: _answer(row) for row in self._rows("SELECT * FROM answers", ids)}
        if self._run:
            for i, run, why in self._rows("SELECT * FROM judged", ids):
                if run == self._run and i in found and found[i].outcome == "kept":
                    found[i] = replace(found[i], outcome="rejected", why=why)
        return [found[i] for i in ids if i in found]

    def logprobs(self, ids: Sequence[str]) -> dict[str, tuple[TopLogprobs, ...]]:
        """What services told of the tokens of those of `ids` with which they told anything."""
        rows = self._rows("SELECT id, told FROM logprobs", ids)
        return {id_: _inflated(told) for id_, told in rows}

    def origins(self, ids: Sequence[str]) -> dict[str, Origin]:
        """When and under which permission those of `ids` that are here were asked for."""
        rows = self._rows("SELECT id, asked_at, permission FROM answers", ids)
        return {i: Origin(asked_at, permission) for i, asked_at, permission in rows}

    def permissions(self) -> dict[str, dict[str, Any]]:
        """Every permission under which an answer here was asked for, by id."""
        with self._named_errors():
            rows = self._db.execute("SELECT id, document FROM permissions ORDER BY id").fetchall()
        return {id_: json.loads(document) for id_, document in rows}

    def digests(self, *, clock: bool = True) -> dict[str, str]:
        """The SHA-256 of every row by answer id, then by `judged/ID/RUN` and `permission/ID`.

        It covers what is stored and not how SQLite lays it out. Without `clock`, answers are
        hashed without what another run of the same recipe would clock otherwise.
        """
        digests: dict[str, str] = {}
        with self._named_errors():
            for table, prefix in (
                ("answers", ""), ("judged", "judged/"), ("permissions", "permission/"),
            ):  # fmt: skip
                cursor = self._db.execute(f"SELECT * FROM {table} ORDER BY 1, 2")  # noqa: S608
                names = [column[0] for column in cursor.description]
                for row in cursor:
                    told = dict(zip(names, row, strict=True))
                    id_ = "/".join(told[name] for name in ("id", "run") if name in told)
                    for name in () if clock else CLOCKED:
                        told.pop(name, None)
                    digests[prefix + id_] = _digest(told)
        return digests

    def spent(self, model: str, route: str) -> tuple[Usage, Usage]:
        """All tokens that this model's answers in the store took, lost ones included.

        Those asked for live and those of batches, which have another price.
        """
        query = (
            "SELECT sum(tokens_in), sum(tokens_out), sum(seconds), sum(cached), "
            "sum(reasoning_tokens), sum(lost_in), sum(lost_out) FROM answers "
            "WHERE model = ? AND route = ? AND batch = ?"
        )

        def total(batch: bool) -> Usage:
            with self._named_errors():
                row = self._db.execute(query, (model, route, batch)).fetchone()
            read, written, seconds, cached, reasoning, *lost = (value or 0 for value in row)
            return Usage(read, written, seconds, cached, reasoning, lost[0], lost[1], batch)

        return total(False), total(True)

    def _rows(self, select: str, ids: Sequence[str], also: str = "") -> Iterator[tuple[Any, ...]]:
        """The rows of `select` with one of `ids`, asked for a few hundred at a time."""
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            query = f"{select} WHERE id IN ({','.join('?' * len(some))}){also}"
            with self._named_errors():
                rows = self._db.execute(query, some).fetchall()
            yield from rows

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


def store_of(recipe: Recipe, folder: Path) -> Path:
    """Where a run's answers are kept: in its folder, or with those of other runs."""
    return Path(recipe.teacher.answers or folder / "answers.sqlite")


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


def _row(a: Answer, origin: tuple[str, str]) -> tuple[object, ...]:
    return (
        a.id, a.prompt_id, a.model, a.route, _sampling(a.sampling), a.text, a.reasoning,
        json.dumps(a.tool_calls), np.array(a.token_ids, "<i4").tobytes(),
        a.finish_reason, a.usage.tokens_in, a.usage.tokens_out, a.usage.seconds, a.outcome, a.why,
        *origin, a.usage.cached, a.usage.reasoning, a.usage.lost_in, a.usage.lost_out,
        a.usage.batch,
    )  # fmt: skip


@lru_cache(maxsize=16)
def _sampling(sampling: Sampling) -> str:
    fields = asdict(sampling)
    if not sampling.sample:
        del fields["sample"]
    return json.dumps(fields, sort_keys=True)


def _deflated(told: Sequence[TopLogprobs]) -> bytes:
    rows = [
        [t.token.decode("latin-1"), t.logprob, [[b.decode("latin-1"), p] for b, p in t.top]]
        for t in told
    ]
    return zlib.compress(json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode())


def _inflated(told: bytes) -> tuple[TopLogprobs, ...]:
    return tuple(
        TopLogprobs(token.encode("latin-1"), p, tuple((b.encode("latin-1"), q) for b, q in top))
        for token, p, top in json.loads(zlib.decompress(told))
    )


def _answer(row: tuple[Any, ...]) -> Answer:
    (id_, prompt_id, model, route, sampling, text, reasoning, calls, token_ids, finish, tokens_in,
     tokens_out, seconds, outcome, why, _, _, *rest, batch) = row  # fmt: skip
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
        usage=Usage(tokens_in, tokens_out, seconds, *rest, batch=bool(batch)),
        outcome=outcome,
        why=str(why),
    )
