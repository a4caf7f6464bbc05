"""The store of answers: SQLite in WAL mode, keyed by content, durable before an answer counts."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from limbeck.errors import InputError
from limbeck.files import disk_full
from limbeck.records import OUTCOMES, Answer, Outcome, Sampling, Usage

VERSION = 1
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
    why TEXT NOT NULL
) WITHOUT ROWID;
"""


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
            self._db.executescript(SCHEMA)
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, answers: Iterable[Answer]) -> None:
        """Write the answers in one transaction: all of them or none. A known id is replaced."""
        rows = [_row(answer) for answer in answers]
        marks = ",".join("?" * 15)
        with self._named_errors(), self._db:
            self._db.executemany(f"INSERT OR REPLACE INTO answers VALUES ({marks})", rows)  # noqa: S608

    def have(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that are in the store."""
        return {answer.id for answer in self.get(ids)}

    def get(self, ids: Sequence[str]) -> list[Answer]:
        """The answers with these ids that are in the store, in the order of `ids`."""
        found: dict[str, Answer] = {}
        with self._named_errors():
            for start in range(0, len(ids), 500):
                some = ids[start : start + 500]
                marks = ",".join("?" * len(some))
                query = f"SELECT * FROM answers WHERE id IN ({marks})"  # noqa: S608
                found |= {row[0]: _answer(row) for row in self._db.execute(query, some)}
        return [found[i] for i in ids if i in found]

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
