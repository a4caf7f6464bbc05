"""DuckDB and Spark: the same SQL, the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.errors import ServiceError
from limbeck.guard.engine import Engine, Kind
from limbeck.guard.schema import SKETCH
from limbeck.guard.sketch import sketch

pytest.importorskip("pyspark")
pytestmark = pytest.mark.slow

PROMPTS = [
    "Solve step by step: 1 + 2",
    None,
    "Translate: 'hi'",
    "x'; DROP TABLE calls; --",
    "",
] * 20


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Kind, Engine]]:
    work = tmp_path_factory.mktemp("it's 100 %")
    calls = pa.table(
        {
            "call_id": [f"c{number}" for number in range(100)],
            "account": [f"a{number % 7}'" for number in range(100)],
            "time": pa.array([1_760_000_000_000_000 + n * 977_777_777 for n in range(100)]).cast(
                pa.timestamp("us", "UTC")
            ),
            "prompt": PROMPTS,
        }
    )
    file = work / "in; it's" / "calls.parquet"
    file.parent.mkdir()
    pq.write_table(calls, file)
    kinds: tuple[Kind, ...] = ("duckdb", "spark")
    opened: dict[Kind, Engine] = {
        kind: Engine.open(work / kind, kind=kind, memory="1GB", threads=2) for kind in kinds
    }
    for engine in opened.values():
        engine.read("calls", [file])
    yield opened
    for engine in opened.values():
        engine.close()


def both(engines: dict[Kind, Engine], sql: Any, **parameters: Any) -> list[dict[str, Any]]:
    told = [engine.fetch(sql(engine), **parameters).to_pylist() for engine in engines.values()]
    assert told[0] == told[1]
    return told[0]


def test_functions_that_differ_in_name_agree(engines: dict[Kind, Engine]):
    found = both(
        engines,
        lambda engine: (
            f"""
        SELECT account, count(*) AS calls, {engine.median(engine.epoch_us("time"))} AS middle,
               min({engine.div(engine.epoch_us("time"), "3600000000")}) AS hour,
               min({engine.div("-7", "2")}) AS below
        FROM calls GROUP BY account ORDER BY account"""
        ),
    )
    assert len(found) == 7 and found[0]["below"] == -4


def test_steps_and_parameters(engines: dict[Kind, Engine]):
    for engine in engines.values():
        sql = "SELECT account, count(*) AS n FROM calls WHERE account <> $account GROUP BY account"
        engine.table("counts", sql, account="a3'")
    found = both(engines, lambda _: "SELECT * FROM counts ORDER BY account")
    assert [row["account"] for row in found] == ["a0'", "a1'", "a2'", "a4'", "a5'", "a6'"]
    assert both(
        engines, lambda _: "SELECT count(*) AS n FROM calls WHERE prompt = $p", p=PROMPTS[3]
    ) == [{"n": 20}]


def test_sketches_are_the_same_in_spark(engines: dict[Kind, Engine]):
    pytest.importorskip("pandas")  # which pyspark wants for mapInArrow
    from limbeck.guard import spark

    engine = engines["spark"]
    assert isinstance(engine, spark.Spark)
    frame = engine._session.table("calls").repartition(3)  # pyright: ignore[reportPrivateUsage]
    there = spark.sketched(frame).toArrow().sort_by("time")
    here = sketch(pa.array(PROMPTS))
    assert [field.name for field in SKETCH] == there.column_names[-len(SKETCH) :]
    for name in SKETCH.names:
        assert there[name].to_pylist() == here[name].to_pylist(), name


def test_a_session_that_died_is_named(engines: dict[Kind, Engine]):
    engine = engines["spark"]
    engine.close()
    with pytest.raises(ServiceError, match="Spark session has died"):
        engine.fetch("SELECT count(*) AS n FROM calls")
