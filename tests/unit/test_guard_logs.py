"""Logs → state folder: every row is kept or refused, whatever it holds."""

from __future__ import annotations

import csv
import gzip
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guard_logs import NOW, call, jsonl, read, refusals, take
from limbeck.errors import InputError
from limbeck.guard import commands, state
from limbeck.guard.commands import app
from limbeck.guard.logs import ingest
from limbeck.guard.readers.source import Source
from limbeck.guard.schema import ACCOUNTS, CALLS, SKETCHED
from limbeck.guard.sketch import sketch

BAD = "x'); DROP TABLE calls; --\" ${a}"


def test_every_format_gives_the_same_calls(tmp_path: Path):
    rows = [
        call(number, temperature=0.5, stream=number % 2 == 0, asn=number) for number in range(60)
    ]
    rows[7]["prompt"] = None
    jsonl(tmp_path / "calls.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "calls.parquet", row_group_size=7)
    with (tmp_path / "calls.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    packed = tmp_path / "calls.csv.gz"
    packed.write_bytes(gzip.compress((tmp_path / "calls.csv").read_bytes()))
    told: list[list[dict[str, Any]]] = []
    for number, name in enumerate(("calls.jsonl", "calls.parquet", "calls.csv", "calls.csv.gz")):
        out = tmp_path / f"state{number}"
        assert take(tmp_path / name, out)["mode"] == "full"
        told.append(read(out))
    assert all(one == told[0] for one in told) and len(told[0]) == 60
    first = told[0][0]
    assert first["time"] == datetime(2026, 2, 1, 3, 4, 5, tzinfo=UTC)
    assert first["hour"] == int(first["time"].timestamp()) // 3600
    assert first["asn"] == "0" and first["stream"] is True and first["temperature"] == 0.5
    made = sketch(pa.array([rows[0]["prompt"]])).to_pylist()[0]
    assert {name: first[name] for name in made} == made
    assert [row["call_id"] for row in told[0] if row["exact"] is None] == ["c7"]


def test_a_folder_a_pattern_and_hive_partitions(tmp_path: Path):
    for model in ("large", "it's 1"):
        rows = [call(n + len(model) * 100) for n in range(3)]
        table = pa.Table.from_pylist(rows).drop_columns(["model"])
        path = tmp_path / "logs" / f"model={model}" / "0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table, path)
    take(tmp_path / "logs", tmp_path / "one")
    take(str(tmp_path / "logs" / "*" / "*.parquet"), tmp_path / "two")
    assert read(tmp_path / "one") == read(tmp_path / "two")
    assert {row["model"] for row in read(tmp_path / "one")} == {"large", "it's 1"}


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("account", None, "account is missing"),
        ("account", "", "account is missing"),
        ("call_id", None, "call_id is missing"),
        ("time", "yesterday", "time is no ISO 8601 time"),
        ("time", "2026-02-30T00:00:00Z", "time is on no calendar"),
        ("time", "2014-12-31T23:59:59Z", "time is before 2015"),
        ("time", "2026-03-01T00:15:01Z", "time is in the future"),
        ("tokens_in", -1, "tokens_in is negative"),
        ("tokens_in", 1.5, "tokens_in is no count"),
        ("tokens_out", "many", "tokens_out is no number"),
        ("tokens_out", 10**30, "tokens_out is no number"),
        ("tokens_out", None, "tokens_out is missing"),
        ("temperature", "hot", "temperature is no number"),
        ("stream", "maybe", "stream is no boolean"),
    ],
)
def test_a_bad_row_is_refused_with_its_reason(tmp_path: Path, field: str, value: Any, reason: str):
    rows = [call(1), call(2, **{field: value}), call(3)]
    told = take(jsonl(tmp_path / "calls.jsonl", rows), tmp_path / "state")
    assert told["logs"][0]["refused"] == {reason: 1}
    row = pq.read_table(tmp_path / "state" / "rejects.parquet").to_pylist()[0]
    assert row["row"] == 2 and row["source"].endswith("calls.jsonl")
    assert [one["call_id"] for one in read(tmp_path / "state")] == ["c1", "c3"]


def test_lines_that_are_no_rows(tmp_path: Path):
    rows = [call(1), "{", "[1, 2]", "", '{"a": ' * 100_000, '"text"', call(2)]
    told = take(jsonl(tmp_path / "calls.jsonl", rows), tmp_path / "state")
    assert told["calls"] == 2 and sum(told["logs"][0]["refused"].values()) == 4
    places = pq.read_table(tmp_path / "state" / "rejects.parquet")["row"].to_pylist()
    assert places == [2, 3, 5, 6]


def test_rows_of_csv_with_fields_too_many(tmp_path: Path):
    path = tmp_path / "calls.csv"
    names = "call_id,time,account,model,tokens_in,tokens_out,prompt"
    good = '{},2026-02-01 00:00:00,a,large,1,2,"a, ""b""\nc"'
    path.write_text(
        "\n".join(
            [names, good.format("c1"), "c2,too,few", good.format("c3"), good.format("c4") + ",more"]
        )
    )
    told = take(path, tmp_path / "state")
    assert told["logs"][0]["refused"] == {
        "3 fields, but the header has 7": 1,
        "8 fields, but the header has 7": 1,
    }
    assert told["logs"][0]["without zone"] == 2
    assert read(tmp_path / "state")[0]["chars"] == len('a, "b"\nc')


def test_one_time_in_all_its_forms(tmp_path: Path):
    moment = datetime(2026, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)
    seconds = moment.timestamp()
    forms: list[Any] = [
        "2026-02-03T04:05:06.789Z",
        "2026-02-03 04:05:06.789000000+00:00",
        "2026-02-03T05:35:06.789+0130",
        "2026-02-03T01:05:06,789 -03",
        "2026-02-03 04:05:06.789",
        "2026-02-03 04:05:06.789 UTC",
        seconds,
        round(seconds * 1e3),
        round(seconds * 1e6),
        str(round(seconds * 1e9)),
    ]
    for number, form in enumerate(forms):
        out = tmp_path / str(number)
        take(jsonl(tmp_path / f"{number}.jsonl", [call(1, time=form)]), out)
        assert abs(read(out)[0]["time"] - moment) <= timedelta(microseconds=1), form
    path = jsonl(tmp_path / "all.jsonl", [call(n, time=form) for n, form in enumerate(forms)])
    take(path, tmp_path / "state")
    assert len({row["time"].replace(microsecond=0) for row in read(tmp_path / "state")}) == 1


def test_ids_that_repeat_are_kept_once(tmp_path: Path):
    rows = [call(n % 50, tokens_out=n) for n in range(120)]
    told = take(jsonl(tmp_path / "calls.jsonl", rows), tmp_path / "state")
    assert told["logs"][0]["refused"] == {state.REPEATED: 70}
    assert sorted(row["tokens_out"] for row in read(tmp_path / "state")) == list(range(50))


def test_ids_that_repeat_across_blocks_and_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from limbeck.guard.readers import jsonl as reader

    monkeypatch.setattr(reader, "ROWS", 16)
    monkeypatch.setattr(state, "DAY_ROWS", 4)
    monkeypatch.setattr(state, "AT_ONCE", 30)
    rows = [call(n % 50, tokens_out=n) for n in range(120)]
    first = take(jsonl(tmp_path / "one.jsonl", rows), tmp_path / "state")
    assert first["calls"] == 50 and first["logs"][0]["refused"] == {state.REPEATED: 70}
    assert sorted(row["tokens_out"] for row in read(tmp_path / "state")) == list(range(50))
    more = [call(n, tokens_out=1000) for n in range(40, 70)]
    second = take(jsonl(tmp_path / "two.jsonl", more), tmp_path / "state")
    assert second["calls"] == 70 and second["logs"][1]["refused"] == {state.REPEATED: 10}
    assert sum(row["tokens_out"] == 1000 for row in read(tmp_path / "state")) == 20
    assert pq.read_metadata(tmp_path / "state" / "rejects.parquet").num_rows == 80
    again = take(jsonl(tmp_path / "two.jsonl", more), tmp_path / "state")
    assert again["calls"] == 70 and again["logs"][2]["kept"] == 0


def test_days_in_turn_give_what_one_log_gives(tmp_path: Path):
    rows = [call(number) for number in range(200)]
    for day, part in enumerate((rows[:90], rows[90:])):
        take(jsonl(tmp_path / f"{day}.jsonl", part), tmp_path / "grown")
    take(jsonl(tmp_path / "all.jsonl", rows), tmp_path / "once")
    assert read(tmp_path / "grown") == read(tmp_path / "once")


def test_nothing_is_left_of_a_log_that_fails(tmp_path: Path):
    take(jsonl(tmp_path / "good.jsonl", [call(1)]), tmp_path / "state")
    before = {path: path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()}
    (tmp_path / "logs").mkdir()
    jsonl(tmp_path / "logs" / "0.jsonl", [call(2)])
    (tmp_path / "logs" / "1.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match=r"1\.parquet"):
        take(tmp_path / "logs", tmp_path / "state")
    assert before == {p: p.read_bytes() for p in (tmp_path / "state").rglob("*") if p.is_file()}
    with pytest.raises(InputError):
        take(tmp_path / "logs", tmp_path / "new")
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))


def test_a_folder_of_something_else_is_not_written_over(tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="something else"):
        take(jsonl(tmp_path / "a.jsonl", [call(1)]), tmp_path / "home")
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_metadata_alone_is_said(tmp_path: Path):
    rows = [call(n) for n in range(5)]
    for row in rows:
        del row["prompt"]
    told = take(jsonl(tmp_path / "calls.jsonl", rows), tmp_path / "state")
    assert told["mode"] == "metadata" and told["with_prompt"] == 0
    assert any("prompt" in line for line in told["cannot_see"])


def test_sql_and_patterns_in_values_and_names(tmp_path: Path):
    rows = [call(n, account=BAD, prompt=BAD, model=BAD, network=BAD) for n in range(3)]
    path = tmp_path / "x'; DROP TABLE calls; -- [0-9]* ?.jsonl"
    out = tmp_path / "it's -- a state"
    take(jsonl(path, rows), out)
    assert {row["account"] for row in read(out)} == {row["network"] for row in read(out)} == {BAD}


def test_bytes_that_are_no_utf8_and_surrogates(tmp_path: Path):
    path = tmp_path / "calls.jsonl"
    line = json.dumps(call(1, prompt="@", account="#"))
    path.write_bytes(
        line.replace("@", "caf\\ud800").replace("#", "x").encode()
        + b"\n"
        + line.replace("c1", "c2").encode().replace(b"@", b"caf\xe9").replace(b"#", b"\xff")
    )
    take(path, tmp_path / "state")
    assert [row["chars"] for row in read(tmp_path / "state")] == [4, 4]
    csv_path = tmp_path / "calls.csv"
    head = b"call_id,time,account,model,tokens_in,tokens_out,prompt\n"
    csv_path.write_bytes(
        head + b"c1,2026-02-01,a\xff,m,1,2,\xfe\nc2,2026-02-01T00:00,a\xff,m,1,2,\xfe\n"
    )
    told = take(csv_path, tmp_path / "csv")
    assert told["logs"][0]["refused"] == {"time is no ISO 8601 time": 1}
    assert read(tmp_path / "csv")[0]["account"] == "a\ufffd"


def test_a_prompt_of_ten_megabytes(tmp_path: Path):
    rows = [call(1, prompt="x " * 5_000_000), call(2)]
    told = take(jsonl(tmp_path / "calls.jsonl", rows), tmp_path / "state")
    assert told["logs"][0]["cut"] == 1
    assert read(tmp_path / "state")[0]["chars"] == 10_000_000


def test_a_missing_column_and_a_missing_log_are_named(tmp_path: Path):
    path = jsonl(tmp_path / "calls.jsonl", [{"call_id": "1", "when": 3}])
    with pytest.raises(InputError, match="lacks the column time, account, model"):
        take(path, tmp_path / "state")
    with pytest.raises(InputError, match="no log"):
        take(tmp_path / "none.csv", tmp_path / "state")
    (tmp_path / "log.txt").write_text("?")
    with pytest.raises(InputError, match="--format"):
        take(tmp_path / "log.txt", tmp_path / "state")
    with pytest.raises(InputError, match="no call that can be used: account is missing"):
        take(jsonl(tmp_path / "c.jsonl", [call(1, account=None)]), tmp_path / "state")


def test_accounts_are_kept_and_replaced(tmp_path: Path):
    calls = jsonl(tmp_path / "calls.jsonl", [call(1)])
    first = jsonl(
        tmp_path / "a.jsonl",
        [{"account": "a", "payment": "p"}, {"account": "b"}, {"account": "a"}, {"tier": "x"}],
    )
    ingest(Source(str(calls)), tmp_path / "state", accounts=Source(str(first)), now=NOW)
    second = jsonl(
        tmp_path / "b.jsonl", [{"account": "a", "payment": "q", "created": "2026-01-01T00:00:00Z"}]
    )
    told = ingest(Source(str(calls)), tmp_path / "state", accounts=Source(str(second)), now=NOW)
    table = pq.read_table(tmp_path / "state" / "accounts.parquet").sort_by("account")
    assert table.schema.equals(ACCOUNTS) and told["accounts"] == 2
    assert table["payment"].to_pylist() == ["q", None]
    assert refusals(tmp_path / "state")["a"] == "account repeats an earlier one"
    assert "account is missing" in refusals(tmp_path / "state").values()


def test_templates_that_three_accounts_share_are_sampled(tmp_path: Path):
    shared = [call(n, prompt=f"Solve step by step: secret{n}") for n in range(20)]
    alone = [
        call(100 + n, account="lonely", prompt="Rate my private text from 1 to 5: me")
        for n in range(9)
    ]
    take(jsonl(tmp_path / "calls.jsonl", shared + alone), tmp_path / "state")
    table = pq.read_table(tmp_path / "state" / "templates.parquet").to_pylist()
    assert [(row["text"], row["calls"]) for row in table] == [("solve step by step …", 20)]
    assert table[0]["skeleton"] in {row["skeleton"] for row in read(tmp_path / "state")}


def test_the_canonical_schemas_agree():
    assert set(SKETCHED.names) > set(CALLS.names) - {"prompt"} and "prompt" not in SKETCHED.names


def test_the_command_prints_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = jsonl(tmp_path / "calls.jsonl", [call(1), call(2, account="")])
    words = ["ingest", str(path), "--out", str(tmp_path / "state"), "--json"]
    app(words, result_action="return_none")
    told = json.loads(capsys.readouterr().out)
    assert told["calls"] == 1 and told["logs"][0]["refused"] == {"account is missing": 1}


def test_help_and_readme_name_every_column():
    readme = Path(__file__).parents[2] / "README.md"
    for text in (commands.ingest.__doc__ or "", readme.read_text(encoding="utf-8")):
        named = set(re.findall(r"[a-z_]+", text))
        assert {*CALLS.names, *ACCOUNTS.names} <= named
