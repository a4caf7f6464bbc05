"""Where the SQL of guard runs: DuckDB in this process, or a Spark session.

A step is a function that returns SQL. `Engine.table` runs it and keeps the result as Parquet, so
that no step recomputes another and Spark's lineage stays short; later steps read it by name.
Values reach SQL as named parameters (`$name`), never as text. Where the two dialects differ, a
step asks the engine: `engine.div(a, b)` and its like.
"""

from __future__ import annotations

import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import duckdb

from limbeck.errors import InputError, ServiceError, extra, first_line
from limbeck.files import disk_full
from limbeck.guard.arrow import Table, pq

Kind: TypeAlias = Literal["duckdb", "spark"]
Value: TypeAlias = str | int | float | bool | None
NAME = re.compile(r"[a-z_][a-z0-9_]*\Z")
GLOB = re.compile(r"[*?\[\]{}]")


class Engine(ABC):
    """SQL over named tables, each kept as Parquet below `work`; SQL sees integers and strings.

    What is worked out beside SQL may use as many `threads`.
    """

    kind: Kind

    def __init__(self, work: Path, threads: int) -> None:
        _plain(work)
        self.threads = threads
        work.mkdir(parents=True, exist_ok=True)
        self.work = work.absolute()

    @staticmethod
    def open(
        work: Path,
        *,
        kind: Kind = "duckdb",
        memory: str = "4GB",
        threads: int = 2,
        session: Any = None,
    ) -> Engine:
        """An engine that keeps its tables and its spilled memory below `work`.

        Args:
            work: A folder of its own; made if it is not there.
            kind: DuckDB, or Spark (the extra `spark`).
            memory: What DuckDB, or a local Spark's driver, may take, as "4GB".
            threads: How many it may use, where no session is handed in.
            session: A SparkSession to use; it is left running. Otherwise a local one is started.
        """
        if kind == "duckdb":
            return DuckDB(work, memory, threads)
        with extra("spark"):
            from limbeck.guard.spark import Spark
        return Spark(work, memory, threads, session)

    def table(self, name: str, sql: str, **parameters: Value) -> Path:
        """Run `sql`, keep its rows as Parquet under `work`, and make them readable as `name`."""
        path = self.work / _checked(name)
        part = self.work / f".{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        self._write(part, sql, parameters)
        shutil.rmtree(path, ignore_errors=True)
        part.replace(path)
        self.read(name, [path])
        return path

    def keep(self, name: str, rows: Table) -> None:
        """Make a small table that was not made by SQL readable as `name`."""
        path = self.work / f"{_checked(name)}.parquet"
        pq.write_table(rows, path)
        self.read(name, [path])

    def read(self, name: str, paths: Sequence[Path]) -> None:
        """Make Parquet files, or folders of them, readable as `name`.

        What a folder's name says, as `day=2026-11-22`, is not made a column.
        """
        files = [_plain(file) for path in paths for file in _parquet(path)]
        if not files:
            raise InputError(f"No Parquet file in {', '.join(map(str, paths))}")
        self._view(_checked(name), files)

    @abstractmethod
    def fetch(self, sql: str, **parameters: Value) -> Table:
        """Run `sql` and give its rows."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the engine holds; its Parquet stays."""

    @abstractmethod
    def div(self, a: str, b: str) -> str:
        """SQL for ⌊a/b⌋ of integers, b positive."""

    @abstractmethod
    def median(self, a: str) -> str:
        """SQL for the median (an aggregate), interpolated."""

    @abstractmethod
    def epoch_us(self, time: str) -> str:
        """SQL for microseconds since 1970, of a timestamp."""

    @abstractmethod
    def hash(self, columns: Sequence[str]) -> str:
        """SQL for 64 bits that stand for the values of some columns, none of them null."""

    @abstractmethod
    def _write(self, path: Path, sql: str, parameters: dict[str, Value]) -> None: ...

    @abstractmethod
    def _view(self, name: str, files: list[Path]) -> None: ...

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DuckDB(Engine):
    """The embedded default; larger tables than memory spill below `work`."""

    kind: Kind = "duckdb"

    def __init__(self, work: Path, memory: str, threads: int) -> None:
        super().__init__(work, threads)
        settings: dict[str, Any] = {
            "memory_limit": memory,
            "threads": str(threads),
            "temp_directory": str(self.work / ".spill"),
            "preserve_insertion_order": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        try:
            self._connection = duckdb.connect(config=settings)
            self._connection.execute("SET TimeZone = 'UTC'")
        except duckdb.Error as error:
            raise InputError(f"DuckDB does not start: {first_line(error)}") from None

    def fetch(self, sql: str, **parameters: Value) -> Table:
        """Run `sql` and give its rows."""
        with _named():
            return self._connection.sql(sql, params=parameters or None).to_arrow_table()

    def close(self) -> None:
        """Close the database and remove what it spilled."""
        self._connection.close()
        shutil.rmtree(self.work / ".spill", ignore_errors=True)

    def div(self, a: str, b: str) -> str:
        """SQL for ⌊a/b⌋ of integers, b positive."""
        return f"cast(floor(({a}) / cast({b} as double)) as bigint)"

    def median(self, a: str) -> str:
        """SQL for the median (an aggregate), interpolated."""
        return f"quantile_cont(cast({a} as double), 0.5)"

    def epoch_us(self, time: str) -> str:
        """SQL for microseconds since 1970, of a timestamp."""
        return f"epoch_us({time})"

    def hash(self, columns: Sequence[str]) -> str:
        """SQL for 64 bits that stand for the values of some columns, none of them null."""
        return f"hash({', '.join(columns)})"

    def _write(self, path: Path, sql: str, parameters: dict[str, Value]) -> None:
        path.mkdir()
        file = str(path / "0.parquet").replace("'", "''")
        with _named():
            copy = f"COPY ({sql}) TO '{file}' (FORMAT parquet, COMPRESSION snappy)"
            self._connection.execute(copy, parameters or None)

    def _view(self, name: str, files: list[Path]) -> None:
        with _named():
            relation = self._connection.read_parquet(
                [str(file) for file in files], hive_partitioning=False
            )
            relation.create_view(name, replace=True)


def _parquet(path: Path) -> list[Path]:
    return sorted(path.rglob("*.parquet")) if path.is_dir() else [path]


def _plain(path: Path) -> Path:
    """Both engines take some signs in a name for a pattern, and quote them in different ways."""
    if GLOB.search(str(path.absolute())):
        raise InputError(f"{path} has one of * ? [ ] {{ }} in its name; choose another")
    return path


def _checked(name: str) -> str:
    if not NAME.match(name):
        raise ValueError(f"{name!r} is no name for a table: lower-case letters, digits and _")
    return name


@contextmanager
def _named() -> Generator[None]:
    """Full disks and spent memory in our own words; a mistake in SQL stays what it is: a bug.

    Ctrl-C stays Ctrl-C: DuckDB makes an error of its own, or a bare RuntimeError, of it.
    """
    try:
        yield
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except duckdb.OutOfMemoryException as error:
        raise ServiceError(
            f"DuckDB needs more memory than it was given: {first_line(error)}"
        ) from None
    except duckdb.IOException as error:
        if "no space left" in str(error).lower():
            raise disk_full(None) from None
        raise ServiceError(f"DuckDB: {first_line(error)}") from None
    except RuntimeError as error:
        if "interrupted" in str(error).lower():
            raise KeyboardInterrupt from None
        raise
