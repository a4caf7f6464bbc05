"""The seam between guard's SQL and what runs it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.errors import InputError
from limbeck.guard.engine import Engine

BAD = "x'; DROP TABLE calls; --"


@pytest.fixture
def engine(tmp_path: Path):
    with Engine.open(tmp_path / "it's", memory="64MB", threads=1) as opened:
        yield opened


def test_a_step_is_kept_as_parquet_and_read_by_name(engine: Engine):
    path = engine.table("numbers", "SELECT range AS n FROM range(10)")
    engine.table("even", "SELECT n FROM numbers WHERE n % 2 = $rest", rest=0)
    assert sum(pq.read_table(f)["n"].length() for f in path.glob("*.parquet")) == 10
    assert sorted(engine.fetch("SELECT n FROM even")["n"].to_pylist()) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    "error", [RuntimeError("Query interrupted"), duckdb.InterruptException("INTERRUPT Error")]
)
def test_ctrl_c_within_a_query_is_ctrl_c(engine: Engine, error: Exception):
    """What DuckDB makes of it: which of the two depends on where it is cut."""

    def cut(*_: object, **__: object) -> None:
        raise error

    engine._connection = SimpleNamespace(sql=cut, execute=cut, close=lambda: None)  # pyright: ignore
    with pytest.raises(KeyboardInterrupt):
        engine.fetch("SELECT 1")
    with pytest.raises(KeyboardInterrupt):
        engine.table("one", "SELECT 1")


def test_values_and_file_names_are_never_sql(engine: Engine, tmp_path: Path):
    file = tmp_path / f"{BAD}.parquet"
    pq.write_table(pa.table({"account": [BAD, "b"]}), file)
    engine.read("calls", [file])
    engine.table("found", "SELECT * FROM calls WHERE account = $account", account=BAD)
    assert engine.fetch("SELECT * FROM found")["account"].to_pylist() == [BAD]
    assert engine.fetch("SELECT count(*) AS n FROM calls")["n"].to_pylist() == [2]
    with pytest.raises(ValueError, match="no name"):
        engine.table(BAD, "SELECT 1")


def test_more_than_memory_spills(engine: Engine):
    sql = "SELECT range AS n, hash(range) AS h, md5(cast(range AS varchar)) AS m FROM range(400000)"
    engine.table("big", sql)
    engine.table("sorted", "SELECT m, min(n) AS n FROM big GROUP BY m")
    assert engine.fetch("SELECT sum(n) AS s FROM sorted")["s"].to_pylist() == [399999 * 200000]


def test_a_folder_without_parquet_is_named(engine: Engine, tmp_path: Path):
    with pytest.raises(InputError, match="No Parquet file"):
        engine.read("calls", [tmp_path])


def test_division_rounds_down(engine: Engine):
    sql = f"SELECT {engine.div('-7', '2')} AS a, {engine.div('7', '2')} AS b"
    assert engine.fetch(sql).to_pylist() == [{"a": -4, "b": 3}]


def test_a_name_that_would_be_a_pattern_is_refused(engine: Engine, tmp_path: Path):
    file = tmp_path / "calls[0-9].parquet"
    pq.write_table(pa.table({"a": [1]}), file)
    with pytest.raises(InputError, match="choose another"):
        engine.read("calls", [file])
    with pytest.raises(InputError, match="choose another"):
        Engine.open(tmp_path / "*")
