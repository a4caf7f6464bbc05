"""The folder in which guard keeps what it has read: sketched calls by day, and those refused."""

from __future__ import annotations

import os
import shutil
from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import InputError
from limbeck.files import locked
from limbeck.guard.arrow import Table, pa, pc, pq
from limbeck.guard.calls import REJECTS, rejects
from limbeck.guard.schema import BANDS
from limbeck.guard.words import I64

DAY_ROWS = 262_144
ALL_ROWS = 1_500_000
"""Rows of one day that make a file, and of all days that are held in memory."""
BEHIND = 2
"""Files that may wait to be written."""
AT_ONCE = 150_000_000
"""Hashes of call ids compared at a time: 1.2 GB, twice while they are sorted."""
US_PER_DAY = 86_400_000_000
ANEW = ("ingest.json", "accounts.parquet", "rejects.parquet", "templates.parquet")
REPEATED = "call_id repeats an earlier one"


class Days:
    """Sketched calls, collected until there are enough of a day for a file.

    Files are written beside the reading, one at a time; leaving its context waits for the last.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self._folder, self._number = folder, first
        self._writer = ThreadPoolExecutor(1)
        self._writing: deque[Future[None]] = deque()
        self._waiting: dict[int, list[Table]] = {}
        self._rows: Counter[int] = Counter()
        self.files: list[Path] = []

    def add(self, calls: Table) -> None:
        """Take more rows, in the order of the log."""
        days = calls["hour"].to_numpy() // 24
        order = np.argsort(days, kind="stable")
        ordered = days[order]
        cuts = np.flatnonzero(np.diff(ordered)) + 1
        for part in np.split(order, cuts):
            if len(part):
                day = int(days[part[0]])
                one = calls if len(part) == len(order) else calls.take(pa.array(part))
                self._waiting.setdefault(day, []).append(one)
                self._rows[day] += len(part)
                if self._rows[day] >= DAY_ROWS:
                    self._write(day)
        while self._rows.total() > ALL_ROWS:
            self._write(max(self._rows, key=lambda day: self._rows[day]))

    def __enter__(self) -> Days:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        """Write what is left; of a log that failed, nothing more."""
        try:
            if failed is None:
                for day in sorted(self._waiting):
                    self._write(day)
                while self._writing:
                    self._writing.popleft().result()
        finally:
            self._writer.shutdown(cancel_futures=True)

    def _write(self, day: int) -> None:
        table = pa.concat_tables(self._waiting.pop(day))
        del self._rows[day]
        name = str(np.datetime64(day, "D"))
        path = self._folder / f"day={name}" / f"{self._number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        while len(self._writing) > BEHIND:
            self._writing.popleft().result()
        self._writing.append(self._writer.submit(write, table, path))
        self._number += 1
        self.files.append(path)


def write(table: Table, path: Path) -> None:
    """One Parquet file: what is mostly different has no dictionary, integers only that."""
    different = {"exact", "call", "call_id", "time", *BANDS}
    named = [field.name for field in table.schema if field.name not in different]
    packed = {
        field.name: "zstd" if pa.types.is_string(field.type) or field.name == "time" else "none"
        for field in table.schema
    }
    pq.write_table(table.combine_chunks(), path, compression=packed, use_dictionary=named)


class Refused:
    """`rejects.parquet`, written as it grows."""

    def __init__(self, path: Path, before: Path | None) -> None:
        self.reasons: Counter[str] = Counter()
        self._writer = pq.ParquetWriter(path, REJECTS, compression="zstd")
        if before is not None and before.exists():
            with pq.ParquetFile(before) as old:
                for batch in old.iter_batches():
                    self._writer.write_batch(batch)

    def add(self, refused: Table) -> None:
        """Take more refused rows."""
        if refused.num_rows:
            self._writer.write_table(refused)
            self.reasons.update(refused["reason"].to_pylist())

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


@contextmanager
def alone(state: Path) -> Generator[None]:
    """Hold a state folder, so that no other log is read into it meanwhile and then lost.

    The lock lies beside the folder, which is swapped. It is removed under the lock itself: who
    opened it before that holds a file that is no longer there, and is turned away too.
    """
    path = state.parent / f".{state.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    busy = f"Another log is being read into {state}; try again when it is done"
    with locked(path, busy) as descriptor:
        try:
            held = os.path.samestat(os.fstat(descriptor), path.stat())
        except FileNotFoundError:
            held = False
        if not held:
            raise InputError(busy)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def files(state: Path) -> list[Path]:
    """The sketched files of a state folder, day by day."""
    return sorted((state / "sketched").rglob("*.parquet"))


def link(before: Path, part: Path) -> None:
    """What `before` holds, in the new folder too, without a copy where that can be.

    What is written anew for each log (`ingest.json` and its like) is left out.
    """
    for file in sorted(before.rglob("*")):
        path = part / file.relative_to(before)
        if file.is_dir() or path.name in ANEW:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, path)
        except OSError:
            shutil.copyfile(file, path)


def drop_repeats(new: list[Path], old: list[Path], refused: Refused) -> None:
    """Take calls whose id came before out of the `new` files: the earlier day's is kept."""
    total = sum(pq.read_metadata(path).num_rows for path in new)
    turns = max(1, -(-total // AT_ONCE))
    for turn in range(turns):
        left = sorted(path for path in new if path.exists())
        found = [_turn(one, turn, turns) for path in left for one in _hashes(path)]
        seen = np.sort(np.concatenate([np.zeros(0, np.int64), *found]))
        twice = np.unique(seen[1:][seen[1:] == seen[:-1]])
        before = [np.zeros(0, np.int64)]
        for path in old:
            for one in _hashes(path):
                here = _turn(one, turn, turns)
                before.append(here[_among(here, seen)])
        earlier = np.unique(np.concatenate(before))
        if len(twice) or len(earlier):
            _rewrite(left, twice, earlier, refused)


def _hashes(path: Path) -> Iterator[I64]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1 << 20, columns=["call"]):
            yield batch["call"].to_numpy()


def _turn(hashes: I64, turn: int, turns: int) -> I64:
    return hashes if turns == 1 else hashes[hashes % turns == turn]


def _among(values: I64, ordered: I64) -> Any:
    """Which values are in a sorted array."""
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    at = np.searchsorted(ordered, values)
    return (at < len(ordered)) & (ordered[np.minimum(at, len(ordered) - 1)] == values)


def _rewrite(new: list[Path], twice: I64, earlier: I64, refused: Refused) -> None:
    """Leave the first of each of `twice`, and none of `earlier`."""
    done = earlier
    suspects = np.union1d(twice, earlier)
    for path in new:
        calls = pq.read_table(path, columns=["call"])["call"].to_numpy()
        at = np.flatnonzero(_among(calls, suspects))
        if not len(at):
            continue
        _, firsts = np.unique(calls[at], return_index=True)
        again = np.ones(len(at), np.bool_)
        again[firsts] = False
        again |= _among(calls[at], done)
        done = np.union1d(done, calls[at])
        if again.any():
            keep = np.ones(len(calls), np.bool_)
            keep[at[again]] = False
            table = pq.ParquetFile(path).read()
            ids = table["call_id"].take(pa.array(at[again])).to_pylist()
            refused.add(rejects(None, [(None, one, REPEATED) for one in ids]))
            path.unlink()
            if keep.any():
                write(table.filter(pa.array(keep)), path)


def merged_accounts(before: Path, new: Table | None) -> Table | None:
    """The accounts known before and the new ones, which replace those of the same name."""
    old = pq.read_table(before) if before.exists() else None
    if old is None or new is None:
        return old if new is None else new
    stays = pc.invert(pc.is_in(old["account"], new["account"].combine_chunks()))
    return pa.concat_tables([old.filter(stays), new])
