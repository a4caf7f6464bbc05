"""The store of answers: SQLite in WAL mode, keyed by content, durable before an answer counts."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np

from limbeck.errors import InputError
from limbeck.files import disk_full
from limbeck.records import OUTCOMES, Answer, Outcome, Sampling, Usage

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
    cached INTEGER NOT NULL DEFAULT 0,
    reasoning_tokens INTEGER NOT NULL DEFAULT 0,
    lost_in INTEGER NOT NULL DEFAULT 0,
    lost_out INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""
ADDED = {  # by the format that brought them
    2: ("cached", "reasoning_tokens", "lost_in", "lost_out"),
}
COLUMNS = 19
AT_ONCE = 500  # ids in one query


class AnswerStore:
    """Answers by id. What `add` returned from survives kill -9 and a power cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._named_errors():
            self._db = sqlite3.connect(path)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found > VERSION:
                raise InputError(
                    f"{path} was written by a newer limbeck (format {found}, known: {VERSION}). "
                    "Upgrade limbeck."
                )
            if found < VERSION:
                self._upgrade(found)

    def _upgrade(self, found: int) -> None:
        """Make the table, or add what later formats brought, in one transaction."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(SCHEMA)
            for column in itertools.chain(*(ADDED[v] for v in ADDED if 0 < found < v)):
                self._db.execute(
                    f"ALTER TABLE answers ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0"
                )
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, answers: Iterable[Answer]) -> None:
        """Write the answers in one transaction: all of them or none. A known id is replaced."""
        rows = [_row(answer) for answer in answers]
        marks = ",".join("?" * COLUMNS)
        with self._named_errors(), self._db:
            self._db.executemany(f"INSERT OR REPLACE INTO answers VALUES ({marks})", rows)  # noqa: S608

    def have(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that need not be asked again: all here but those that a failure cost.

        A question that a failing service spoilt (`finish_reason` error) gets another chance.
        """
        query = "SELECT id FROM answers WHERE id IN ({}) AND finish_reason != 'error'"
        return {str(row[0]) for row in self._rows(query, ids)}

    def get(self, ids: Sequence[str]) -> list[Answer]:
        """The answers with these ids that are in the store, in the order of `ids`."""
        rows = self._rows("SELECT * FROM answers WHERE id IN ({})", ids)
        found = {row[0]: _answer(row) for row in rows}
        return [found[i] for i in ids if i in found]

    def spent(self, model: str, route: str) -> Usage:
        """All tokens that this model's answers in the store took, lost ones included."""
        query = (
            "SELECT sum(tokens_in), sum(tokens_out), sum(seconds), sum(cached), "
            "sum(reasoning_tokens), sum(lost_in), sum(lost_out) FROM answers "
            "WHERE model = ? AND route = ?"
        )
        with self._named_errors():
            row = self._db.execute(query, (model, route)).fetchone()
        return Usage(*(value or 0 for value in row))

    def _rows(self, query: str, ids: Sequence[str]) -> Iterator[tuple[object, ...]]:
        """The rows of a query whose {} stands for some of `ids`, for all of them in turn."""
        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            with self._named_errors():
                rows = self._db.execute(query.format(",".join("?" * len(some))), some).fetchall()
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


def outcomes(answers: Iterable[Answer]) -> dict[Outcome, int]:
    """How many answers ended in each outcome; all five are named."""
    counted = Counter(answer.outcome for answer in answers)
    return {outcome: counted[outcome] for outcome in OUTCOMES}


def _row(a: Answer) -> tuple[object, ...]:
    return (
        a.id, a.prompt_id, a.model, a.route, _sampling(a.sampling), a.text, a.reasoning,
        json.dumps(a.tool_calls), np.array(a.token_ids, "<i4").tobytes(),
        a.finish_reason, a.usage.tokens_in, a.usage.tokens_out, a.usage.seconds, a.outcome, a.why,
        a.usage.cached, a.usage.reasoning, a.usage.lost_in, a.usage.lost_out,
    )  # fmt: skip


@lru_cache(maxsize=16)
def _sampling(sampling: Sampling) -> str:
    return json.dumps(asdict(sampling), sort_keys=True)


def _answer(row: tuple[object, ...]) -> Answer:
    (id_, prompt_id, model, route, sampling, text, reasoning, calls, token_ids, finish, tokens_in,
     tokens_out, seconds, outcome, why, *rest) = row  # fmt: skip
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
        usage=Usage(tokens_in, tokens_out, seconds, *rest),  # pyright: ignore[reportArgumentType]
        outcome=outcome,  # pyright: ignore[reportArgumentType]
        why=str(why),
    )
