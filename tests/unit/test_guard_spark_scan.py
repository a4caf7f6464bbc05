"""A whole scan on Spark: every figure of it is DuckDB's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from guard_world import Campaign, world, write
from limbeck.guard import findings, scan
from limbeck.guard.arrow import pa
from limbeck.guard.engine import Engine, Kind
from limbeck.guard.findings import Price
from limbeck.guard.schema import ACCOUNTS
from limbeck.guard.templates import TEMPLATES

pytest.importorskip("pyspark", reason="Spark is an extra")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("java") or os.environ.get("JAVA_HOME")), reason="Spark needs Java"
    ),
]
CAMPAIGNS = [
    Campaign(120, cover=0.7, templates=1, calls=60),
    Campaign(120, cover=0.8, templates=8, calls=60),
]

KINDS: tuple[Kind, ...] = ("duckdb", "spark")
TABLES = ("events", "volumes", "templates", "banded", "families", "votes", "pairs")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Spark for the file: it starts slowly."""
    with Engine.open(tmp_path_factory.mktemp("spark"), kind="spark", memory="1GB") as engine:
        yield engine._session  # pyright: ignore


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory, session: Any) -> Iterator[dict[Kind, Any]]:
    """Of each engine: what `find` found, the engine, and the files that were written of it."""
    root = tmp_path_factory.mktemp("scans")
    calls, _ = world(5, 1000, CAMPAIGNS, calls=30.0)
    write(calls, root / "sketched")
    names = calls["account"].unique().sort()
    paid = pa.array([f"p{i // 150}" if i % 3 else None for i in range(len(names))])
    known = {field.name: pa.nulls(len(names), field.type) for field in ACCOUNTS}
    known |= {"account": names, "payment": paid}
    known["created"] = pa.array(range(len(names))).cast(pa.int64()).cast(ACCOUNTS.field(1).type)
    found: dict[Kind, Any] = {}
    for kind in KINDS:
        engine = Engine.open(root / kind, kind=kind, session=session if kind == "spark" else None)
        engine.read("sketched", [root / "sketched"])
        engine.keep("accounts", pa.table(known, schema=ACCOUNTS))
        engine.keep("texts", TEMPLATES.empty_table())
        told = scan.find(engine)
        document, _, _ = findings.write(engine, told, root / f"out-{kind}", Price(), {})
        found[kind] = (told, engine, root / f"out-{kind}", document["campaigns"])
    yield found
    found["duckdb"][1].close()


def test_every_figure_of_a_scan_is_the_same(scans: dict[Kind, Any]) -> None:
    here, there = scans["duckdb"][0], scans["spark"][0]
    assert (here.members.p_value < 1e-4).sum() > 20
    same(here, there, "scan")


def same(here: Any, there: Any, where: str) -> None:
    """Equal, whatever they are made of; floats but for the order in which SQL summed them."""
    if isinstance(here, np.ndarray) and here.dtype.kind == "f":
        np.testing.assert_allclose(here, there, rtol=1e-9, atol=0, err_msg=where)
    elif isinstance(here, np.ndarray):
        assert here.dtype == there.dtype, where
        np.testing.assert_array_equal(here, there, err_msg=where)
    elif isinstance(here, float):
        assert here == pytest.approx(there, rel=1e-9), where
    elif isinstance(here, dict):
        assert list(here) == list(there), where
        for key in here:
            same(here[key], there[key], f"{where}[{key!r}]")
    elif isinstance(here, list | tuple):
        assert len(here) == len(there), where
        for number, (one, other) in enumerate(zip(here, there, strict=True)):
            same(one, other, f"{where}[{number}]")
    elif hasattr(here, "__dataclass_fields__"):
        for name in here.__dataclass_fields__:
            same(getattr(here, name), getattr(there, name), f"{where}.{name}")
    else:
        assert here == there, where


@pytest.mark.parametrize("name", TABLES)
def test_every_table_between_is_the_same(scans: dict[Kind, Any], name: str) -> None:
    rows = [scans[kind][1].fetch(f"SELECT * FROM {name}") for kind in KINDS]
    assert rows[0].column_names == rows[1].column_names
    order = [(column, "ascending") for column in rows[0].column_names]
    here, there = (one.sort_by(order).to_pydict() for one in rows)
    assert here == there and rows[0].num_rows > 0


def test_what_is_written_is_the_same(scans: dict[Kind, Any]) -> None:
    here, there = (scans[kind][2] for kind in KINDS)
    assert scans["duckdb"][3]
    told = [json.loads((out / "campaigns.json").read_text()) for out in (here, there)]
    same(told[0], told[1], "json")
    tables = [pq.read_table(out / "accounts.parquet") for out in (here, there)]
    for name in ("account", "flagged", "campaign"):
        assert tables[0][name].equals(tables[1][name]), name
    p = [table["p_value"].to_numpy() for table in tables]
    same(p[0], p[1], "p_value")
