"""The same SQL on Spark: a session handed in, or a local one (Java 17 or later is needed).

Each step is written as Parquet and read back, which also cuts Spark's lineage: a plan that grows
with every step outlives no large table.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from limbeck.errors import InputError, ServiceError, first_line
from limbeck.guard.arrow import Table, pa
from limbeck.guard.engine import Engine, Kind, Value
from limbeck.guard.schema import SKETCH
from limbeck.guard.sketch import sketch

# An extra, and untyped here: types are checked where it is not installed, too.
PySparkException: Any = import_module("pyspark.errors").PySparkException
SparkSession: Any = import_module("pyspark.sql").SparkSession

SIGNED = pa.schema([f.with_type(pa.int16()) if f.type == pa.uint8() else f for f in SKETCH])
"""Spark knows no unsigned bytes; it reads those in Parquet as short integers too."""
PARAMETER = re.compile(r"\$([a-z_][a-z0-9_]*)")


class Spark(Engine):
    """A SparkSession behind guard's SQL."""

    kind: Kind = "spark"

    def __init__(self, work: Path, memory: str, threads: int, session: Any = None) -> None:
        super().__init__(work, threads)
        self._own = session is None
        self._session: Any = session or _local(self.work, memory, threads)
        with _alive():
            self._session.conf.set("spark.sql.session.timeZone", "UTC")

    def fetch(self, sql: str, **parameters: Value) -> Table:
        """Run `sql` and give its rows."""
        with _alive():
            return self._sql(sql, parameters).toArrow()

    def close(self) -> None:
        """Stop the session, if it is ours."""
        if self._own:
            self._session.stop()

    def div(self, a: str, b: str) -> str:
        """SQL for ⌊a/b⌋ of integers, b positive."""
        return f"cast(floor(({a}) / cast({b} as double)) as bigint)"

    def median(self, a: str) -> str:
        """SQL for the median (an aggregate), interpolated."""
        return f"percentile(cast({a} as double), 0.5)"

    def epoch_us(self, time: str) -> str:
        """SQL for microseconds since 1970, of a timestamp."""
        return f"unix_micros({time})"

    def hash(self, columns: Sequence[str]) -> str:
        """SQL for 64 bits that stand for the values of some columns, none of them null."""
        return f"xxhash64({', '.join(columns)})"

    def _sql(self, sql: str, parameters: dict[str, Value]) -> Any:
        return self._session.sql(PARAMETER.sub(r":\1", sql), args=parameters or None)

    def _write(self, path: Path, sql: str, parameters: dict[str, Value]) -> None:
        with _alive():
            self._sql(sql, parameters).write.parquet(_uri(path))

    def _view(self, name: str, files: list[Path]) -> None:
        with _alive():
            frame = self._session.read.parquet(*map(_uri, files))
            frame.createOrReplaceTempView(name)


def sketched(calls: Any) -> Any:
    """A Spark frame of calls with `prompt` replaced by the columns of `schema.SKETCH`."""
    types: Any = import_module("pyspark.sql.pandas.types")
    kept = [name for name in calls.columns if name != "prompt"]
    fields = calls.select(kept).schema.fields + types.from_arrow_schema(SIGNED).fields
    return calls.mapInArrow(_sketch_batches, type(calls.schema)(fields))


def _sketch_batches(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        made = sketch(batch["prompt"])
        left = batch.drop_columns(["prompt"])
        columns = [made[field.name].cast(field.type) for field in SIGNED]
        yield pa.RecordBatch.from_arrays(
            [*left.columns, *columns], [*left.schema.names, *SIGNED.names]
        )


def _local(work: Path, memory: str, threads: int) -> Any:
    builder: Any = SparkSession.builder
    settings = {
        "spark.driver.memory": memory.lower().removesuffix("b"),
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.local.dir": str(work / ".spill"),
        "spark.sql.warehouse.dir": (work / ".warehouse").as_uri(),
        "spark.sql.shuffle.partitions": str(2 * threads),
    }
    for name, value in settings.items():
        builder = builder.config(name, value)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # its workers' would be another's
    try:
        session = builder.master(f"local[{threads}]").appName("limbeck guard").getOrCreate()
    except (PySparkException, RuntimeError, OSError) as error:
        raise InputError(
            f"Spark does not start (it needs Java 17 or later, and JAVA_HOME): {first_line(error)}"
        ) from None
    session.sparkContext.setLogLevel("OFF")
    return session


def _uri(path: Path) -> str:
    """Hadoop takes what follows the scheme as it stands: nothing is quoted."""
    return f"file://{path.absolute()}"


@contextmanager
def _alive() -> Generator[None]:
    """A session that died, in our own words; a mistake in SQL stays what it is: a bug."""
    try:
        yield
    except (ConnectionError, EOFError) as error:
        raise ServiceError(f"The Spark session has died: {first_line(error)}") from None
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        dead = ("Py4JNetworkError", "stopped SparkContext", "Connection refused", "NoneType")
        if any(word in told for word in dead):
            raise ServiceError(f"The Spark session has died: {first_line(error)}") from None
        raise
