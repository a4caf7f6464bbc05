"""Logs → state folder: odd files, folders and values that a provider has."""

from __future__ import annotations

import gzip
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guard_logs import NOW, call, jsonl, read, take
from limbeck.errors import InputError
from limbeck.guard import state
from limbeck.guard.logs import ingest
from limbeck.guard.readers.source import Source


def test_accounts_older_than_models_and_what_of_them_is_refused(tmp_path: Path):
    calls = jsonl(tmp_path / "calls.jsonl", [call(1, temperature=0.5)])
    rows = [{"account": "a1", "created": "2012-05-01T00:00:00Z", "tier": ""}, {"tier": "x"}]
    known = Source(str(jsonl(tmp_path / "a.jsonl", rows)))
    told = ingest(Source(str(calls)), tmp_path / "state", accounts=known, now=NOW)
    log = told["logs"][0]
    assert (log["read"], log["kept"], log["refused"]) == (1, 1, {})
    assert log["accounts refused"] == {"account is missing": 1}
    assert "accounts refused 1: account is missing" in told["said"]
    assert told["accounts"] == 1
    blind = " ".join(told["cannot_see"])
    assert all(f"no {name}:" in blind for name in ("payment", "organisation", "tier", "max_tokens"))
    assert "no created:" not in blind and "no temperature:" not in blind


def test_a_log_without_rows_adds_nothing(tmp_path: Path):
    take(jsonl(tmp_path / "calls.jsonl", [call(1)]), tmp_path / "state")
    head = tmp_path / "head.csv"
    head.write_text("call_id,time,account,model,tokens_in,tokens_out\n")
    none = tmp_path / "none.parquet"
    pq.write_table(pa.Table.from_pylist([call(1)])[:0], none)
    spans = tmp_path / "none.json"
    spans.write_text('{"resourceSpans": []}')
    (tmp_path / "rotated").mkdir()
    for name in ("calls.jsonl", "calls.csv", "calls.json", "calls.csv.gz", "none.csv.gz"):
        packed = gzip.compress(b"") if name == "calls.csv.gz" else b""
        (tmp_path / "rotated" / name).write_bytes(packed)
    for path in (head, none, spans, tmp_path / "rotated"):
        told = take(path, tmp_path / "state")
        assert told["calls"] == 1 and told["logs"][-1]["read"] == told["logs"][-1]["cut"] == 0
    with pytest.raises(InputError, match="no call that can be used"):
        take(head, tmp_path / "new")


def test_columns_that_come_late(tmp_path: Path):
    rows = [call(n) for n in range(1000)] + [call(1000, network="192.0.2.1", temperature=0.5)]
    take(jsonl(tmp_path / "calls.jsonl", rows), tmp_path / "state")
    last = next(row for row in read(tmp_path / "state") if row["call_id"] == "c1000")
    assert last["network"] == "192.0.2.1" and last["temperature"] == 0.5


def test_one_odd_value_refuses_its_row(tmp_path: Path):
    path = tmp_path / "calls.csv"
    line = "{},{},a,large,1,2\n"
    path.write_text(
        "call_id,time,account,model,tokens_in,tokens_out\n"
        + line.format("c1", "9999999999999999999")
        + line.format("c2", "1770000000123456789")
    )
    told = take(path, tmp_path / "state")
    assert told["logs"][0]["refused"] == {"time is on no calendar": 1}
    assert read(tmp_path / "state")[0]["time"].microsecond == 123456


def test_a_packed_file_that_is_cut_is_named(tmp_path: Path):
    rows = "\n".join(f"c{n},2026-02-01T00:00:00Z,a{n * n},large,1,2" for n in range(3000))
    packed = gzip.compress(f"call_id,time,account,model,tokens_in,tokens_out\n{rows}".encode())
    (tmp_path / "calls.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match=r"calls\.csv\.gz cannot be read"):
        take(tmp_path / "calls.csv.gz", tmp_path / "state")


def test_uuids_and_views_of_text_in_parquet(tmp_path: Path):
    ids = sorted((uuid.UUID(int=n << 90 | n) for n in range(5)), key=str)
    raw = [one.bytes for one in ids]
    for number, kind in enumerate((pa.uuid(), pa.binary(16))):
        table = pa.Table.from_pylist([call(n) for n in range(5)])
        table = table.set_column(0, "call_id", pa.array([*raw[:4], None], kind))
        for name in ("account", "prompt", "time"):
            place = table.column_names.index(name)
            table = table.set_column(place, name, table[name].cast(pa.string_view()))
        pq.write_table(table, tmp_path / f"{number}.parquet")
        told = take(tmp_path / f"{number}.parquet", tmp_path / str(number))
        assert told["logs"][0]["refused"] == {"call_id is missing": 1}
        rows = read(tmp_path / str(number))
        assert [row["call_id"] for row in rows] == [str(one) for one in ids[:4]]
        assert rows[0]["account"] == "a0" and told["with_prompt"] == 4


def test_what_of_a_folder_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / ".logs"
    for number, name in enumerate(("a.jsonl", "b.jsonl.1", "c.log", ".in/d.jsonl", "_t/e.jsonl")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        jsonl(folder / name, [call(number)])
    assert take(folder, tmp_path / "auto")["calls"] == 1
    assert "unknown endings, as b.jsonl.1: 2" in capsys.readouterr().err
    assert take(folder, tmp_path / "asked", format="jsonl")["calls"] == 3
    (folder / "a.jsonl").unlink()
    with pytest.raises(InputError, match="--format"):
        take(folder, tmp_path / "none")


def test_a_state_inside_its_log_and_no_threads(tmp_path: Path):
    (tmp_path / "logs").mkdir()
    path = jsonl(tmp_path / "logs" / "calls.jsonl", [call(1)])
    with pytest.raises(InputError, match="is inside"):
        take(tmp_path / "logs", tmp_path / "logs" / "found" / "state")
    with pytest.raises(InputError, match="--threads"):
        ingest(Source(str(path)), tmp_path / "state", threads=0)
    assert [one.name for one in tmp_path.rglob("*")] == ["logs", "calls.jsonl"]


def test_two_logs_are_not_read_into_one_state_at_once(tmp_path: Path):
    path = jsonl(tmp_path / "calls.jsonl", [call(1)])
    with state.alone(tmp_path / "state"), pytest.raises(InputError, match="Another log"):
        take(path, tmp_path / "state")
    assert take(path, tmp_path / "state")["calls"] == 1
    assert not list(tmp_path.glob(".*"))


def test_reasons_are_counted_wherever_they_stand(tmp_path: Path):
    rows = [call(1), '{"a": 1,}', '{"longer": 1,}', '{"a": ' + "1" * 5000 + "}"]
    told = take(jsonl(tmp_path / "calls.jsonl", rows), tmp_path / "state")
    assert sorted(told["logs"][0]["refused"].values()) == [1, 2]
