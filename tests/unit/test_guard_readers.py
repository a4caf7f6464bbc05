"""Logs of other houses: OpenTelemetry, LiteLLM, Postgres; and pseudonyms before any of them."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.errors import InputError, ServiceError
from limbeck.guard import pseudonyms
from limbeck.guard.logs import ingest
from limbeck.guard.readers import postgres, source
from limbeck.guard.readers.block import Block, text_of
from limbeck.guard.readers.source import Source
from limbeck.guard.sketch import sketch
from limbeck.guard.state import files

NOW = datetime(2026, 3, 1, tzinfo=UTC)
KEY = b"a secret of more than sixteen bytes"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": [{"type": "text", "text": "And 3?"}, {"type": "image_url"}]},
]
ASKED = "Be brief.\nWhat is 2 + 2?\nAnd 3?"


def read(out: Path) -> list[dict[str, Any]]:
    tables = [pq.ParquetFile(path).read() for path in files(out)]
    return pa.concat_tables(tables).sort_by("call_id").to_pylist()


def exact(text: str) -> int:
    return sketch(pa.array([text])).to_pylist()[0]["exact"]


def attribute(key: str, value: Any) -> dict[str, Any]:
    kinds = {bool: "boolValue", int: "intValue", float: "doubleValue", str: "stringValue"}
    said = str(value) if type(value) is int else value  # whole numbers are text in OTLP JSON
    return {"key": key, "value": {kinds[type(value)]: said}}


def span(number: int, **attributes: Any) -> dict[str, Any]:
    told = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "large",
        "gen_ai.usage.input_tokens": 17,
        "gen_ai.usage.output_tokens": 5,
        "user.id": "u1",
    } | {name.replace("__", "."): value for name, value in attributes.items()}
    return {
        "traceId": f"{number:032x}",
        "spanId": f"{number:016x}",
        "name": "chat large",
        "startTimeUnixNano": str(1_770_000_000_123_456_789 + number),
        "attributes": [attribute(key, value) for key, value in told.items() if value is not None],
    }


def otlp(*spans: dict[str, Any]) -> dict[str, Any]:
    resource = {"attributes": [attribute("enduser.id", "tenant"), attribute("service.name", "api")]}
    scopes = [{"scope": {"name": "x"}, "spans": list(spans)}]
    return {"resourceSpans": [{"resource": resource, "scopeSpans": scopes}]}


def spans() -> list[dict[str, Any]]:
    parts = [{"role": "user", "parts": [{"type": "text", "content": ASKED}]}]
    return [
        span(
            1,
            gen_ai__input__messages=json.dumps(parts),
            gen_ai__request__temperature=0.25,
            gen_ai__request__max_tokens=99,
            gen_ai__request__stream=True,
            gen_ai__conversation__id="s",
            client__address="192.0.2.1",
            user_agent__original="curl",
        ),
        span(2, user__id=None, gen_ai__prompt=ASKED),
        span(3, gen_ai__operation__name="execute_tool"),
        {"traceId": "0", "spanId": "1", "name": "GET /", "startTimeUnixNano": "1"},
        span(4, gen_ai__usage__input_tokens=None),
    ]


@pytest.mark.parametrize("form", ["lines", "document", "indented"])
def test_spans_of_opentelemetry(tmp_path: Path, form: str):
    lines = [otlp(*spans()[:2]), otlp(*spans()[2:])]
    path = tmp_path / ("spans.jsonl" if form == "lines" else "spans.json")
    documents = lines if form == "lines" else [otlp(*spans())]
    indent = 1 if form == "indented" else None
    path.write_text("\n".join(json.dumps(one, indent=indent) for one in documents))
    told = ingest(Source(str(path)), tmp_path / "state", now=NOW)
    log = told["logs"][0]
    assert (log["read"], log["kept"], log["not calls"]) == (3, 2, 2)
    assert log["refused"] == {"tokens_in is missing": 1}
    one, two = read(tmp_path / "state")
    assert one["call_id"] == f"{1:032x}:{1:016x}" and one["account"] == "u1"
    assert two["account"] == "tenant" and two["exact"] == one["exact"] == exact(ASKED)
    assert one["time"] == datetime(2026, 2, 2, 2, 40, 0, 123456, tzinfo=UTC)
    assert (one["tokens_in"], one["tokens_out"], one["max_tokens"]) == (17, 5, 99)
    assert (one["temperature"], one["stream"], one["session"]) == (0.25, True, "s")
    assert (one["network"], one["client"]) == ("192.0.2.1", "curl")


def test_an_attribute_of_the_users_names_the_account(tmp_path: Path):
    path = tmp_path / "spans.jsonl"
    path.write_text(json.dumps(otlp(span(1, key__hash="k"))))
    ingest(Source(str(path), account="key.hash"), tmp_path / "state", now=NOW)
    assert read(tmp_path / "state")[0]["account"] == "k"


def test_spans_that_are_broken(tmp_path: Path):
    path = tmp_path / "spans.json"
    path.write_text('{"resourceSpans": [')
    with pytest.raises(InputError, match="neither one JSON document"):
        ingest(Source(str(path)), tmp_path / "state", now=NOW)
    odd: list[Any] = [
        otlp(span(1)),
        3,
        {"resourceSpans": [7, {"scopeSpans": [{"spans": [None, {}]}]}]},
    ]
    path = tmp_path / "odd.jsonl"
    path.write_text("\n".join(map(json.dumps, odd)))
    told = ingest(Source(str(path)), tmp_path / "two", now=NOW)
    assert told["calls"] == 1 and told["logs"][0]["refused"] == {"no JSON object": 1}


def test_a_line_that_holds_no_spans_is_refused(tmp_path: Path):
    lines = [json.dumps(otlp(span(1)))[9:], json.dumps(otlp(span(2))), '{"call_id": "c"}']
    path = tmp_path / "spans.jsonl"
    path.write_text("\n".join(lines))
    told = ingest(Source(str(path)), tmp_path / "state", now=NOW)
    refused = told["logs"][0]["refused"]
    assert told["calls"] == 1 and refused["no resourceSpans"] == 1 and len(refused) == 2
    rejected = pq.read_table(tmp_path / "state" / "rejects.parquet")["row"].to_pylist()
    assert rejected == [1, 3]


def test_an_operation_of_another_type_is_no_call(tmp_path: Path):
    odd = span(1)
    value = {"arrayValue": {"values": [{"stringValue": "chat"}]}}
    odd["attributes"][0] = {"key": "gen_ai.operation.name", "value": value}
    path = tmp_path / "spans.json"
    path.write_text(json.dumps(otlp(odd, span(2))))
    told = ingest(Source(str(path)), tmp_path / "state", now=NOW)
    assert told["calls"] == told["logs"][0]["not calls"] == 1


def test_json_that_holds_no_spans(tmp_path: Path):
    rows = [
        {"call_id": f"c{n}", "time": "2026-02-01T00:00:00Z", "account": "a", "model": "m"}
        | {"tokens_in": 1, "tokens_out": 2}
        for n in range(100)
    ]
    path = tmp_path / "calls.json"
    path.write_text("\n".join(map(json.dumps, rows)))
    told = ingest(Source(str(path)), tmp_path / "state", now=NOW)
    assert told["logs"][0]["read"] == told["calls"] == 100
    path.write_text(json.dumps(rows))
    with pytest.raises(InputError, match="no resourceSpans"):
        ingest(Source(str(path)), tmp_path / "two", now=NOW)


def spend(number: int, **other: Any) -> dict[str, Any]:
    return {
        "request_id": f"r{number}",
        "api_key": "hash1",
        "user": "u",
        "startTime": "2026-02-03T04:05:06.789000",
        "endTime": "2026-02-03T04:05:08",
        "model": "provider/large",
        "model_group": "large",
        "prompt_tokens": 7,
        "completion_tokens": 8,
        "requester_ip_address": "192.0.2.1",
        "session_id": "",
        "messages": {},
        "proxy_server_request": {},
    } | other


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_spend_logs_of_litellm(tmp_path: Path, form: str):
    request = {"temperature": 0.5, "max_tokens": 64, "stream": True, "messages": MESSAGES}
    rows = [
        spend(1, messages=MESSAGES),
        spend(2, api_key="", proxy_server_request=request),
        spend(3, model_group=""),
    ]
    path = tmp_path / f"spend.{form}"
    if form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        flat = [
            {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
            for row in rows
        ]
        if form == "parquet":
            pq.write_table(pa.Table.from_pylist(flat), path)
        else:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(flat[0]))
                writer.writeheader()
                writer.writerows(flat)
    told = ingest(Source(str(path)), tmp_path / "state", now=NOW)
    assert told["with_prompt"] == 2 and told["logs"][0]["without zone"] == 3
    one, two, three = read(tmp_path / "state")
    assert one["exact"] == two["exact"] == exact(ASKED) and three["exact"] is None
    assert [row["account"] for row in (one, two, three)] == ["hash1", "u", "hash1"]
    assert [row["model"] for row in (one, two, three)] == ["large", "large", "provider/large"]
    assert (two["temperature"], two["max_tokens"], two["stream"]) == (0.5, 64, True)
    assert one["session"] is None and one["network"] == "192.0.2.1" and one["temperature"] is None
    by_user = Source(str(path), account="user")
    ingest(by_user, tmp_path / "users", now=NOW)
    assert {row["account"] for row in read(tmp_path / "users")} == {"u"}
    with pytest.raises(InputError, match="no column 'team'"):
        ingest(Source(str(path), account="team"), tmp_path / "teams", now=NOW)


@pytest.mark.parametrize("user", [None, 7, {"id": 7}])
def test_a_user_of_whatever_type(tmp_path: Path, user: Any):
    rows = [spend(1, user=user, api_key=""), spend(2, user=user), spend(3, end_user="e")]
    jsonl = tmp_path / "spend.jsonl"
    jsonl.write_text("\n".join(map(json.dumps, rows)))
    flat = [{k: None if v in ({}, []) else v for k, v in row.items()} for row in rows]
    pq.write_table(pa.Table.from_pylist(flat[:2]), tmp_path / "spend.parquet")
    for path in (jsonl, tmp_path / "spend.parquet"):
        told = ingest(Source(str(path)), tmp_path / path.suffix[1:], now=NOW)
        assert told["calls"] >= 1 + (user is not None)
        assert "hash1" in {row["account"] for row in read(tmp_path / path.suffix[1:])}


def test_an_account_column_where_none_can_be_named(tmp_path: Path):
    path = tmp_path / "calls.csv"
    path.write_text("call_id,time,account,model,tokens_in,tokens_out\nc,2026-02-01,a,m,1,2\n")
    with pytest.raises(InputError, match="--account-from"):
        ingest(Source(str(path), account="team"), tmp_path / "state", now=NOW)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (MESSAGES, ASKED),
        (json.dumps(MESSAGES), ASKED),
        ("[not json", "[not json"),
        ("{}", None),
        ("", None),
        (None, None),
        ([], None),
        (7, None),
        (["a", {"content": None}, {"role": "user", "parts": ["b", 3]}], "a\nb"),
    ],
)
def test_text_of_messages(messages: Any, text: str | None):
    assert text_of(messages) == text


def test_a_postgres_address():
    address, names = postgres.parts("postgres://me:pw'@host:5433/db?sslmode=require&table=a.b\"c")
    assert address == "postgres://me:pw'@host:5433/db?sslmode=require"
    assert names == ["a", 'b"c']
    assert postgres.parts("postgresql://host/db?table=calls")[1] == ["public", "calls"]
    assert postgres.parts("Postgres+psycopg://host/db?table=c")[0] == "postgres://host/db"
    with pytest.raises(InputError, match="table=calls"):
        postgres.parts("postgres://host/db")


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        ("postgres://me:secret@host:5433/db?table=c", "postgres://host/db?table=c"),
        ("PostgreSQL+psycopg://me:a/secret@host/db?table=c&x=y", "postgres://host/db?table=c"),
        ("postgres://me:a@secret@[::1]:5432/db?table=c", "postgres://[::1]:5432/db?table=c"),
        ("postgres://me:a?secret@host/db?table=c", "postgres://…"),
        ("postgres://host/db?table=c&password=a@secret", "postgres://…"),
        ("postgres://host/db?table=c&password=secret", "postgres://host/db?table=c"),
        ("postgres://me:secret@[::1/db?table=c", "postgres://[::1/db?table=c"),
        ("mysql://me:secret@host/db", "mysql://host/db"),
        ("logs/a@b.jsonl", "logs/a@b.jsonl"),
    ],
)
def test_what_is_shown_of_a_source(tmp_path: Path, where: str, shown: str):
    assert Source(where).shown == shown
    if any(part in where for part in ("psycopg", "[::1/", "mysql", "a?s", "=a@")):
        with pytest.raises(InputError) as caught:
            ingest(Source(where), tmp_path / "state", now=NOW)
        assert "secret" not in str(caught.value)


def test_a_postgres_address_is_written_nowhere_with_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Table:
        """Stands for a connection; its table repeats an account."""

        def __init__(self, source: str) -> None:
            self.shown = postgres.shown(source)

        def names(self) -> list[str]:
            return ["account", "call_id", "time", "model", "tokens_in", "tokens_out"]

        def read(self, wanted: list[str]):
            row = {"account": "a", "call_id": "c", "time": 1770000000, "model": "m"}
            rows = [row | {"tokens_in": 1, "tokens_out": 2}] * 2
            yield Block(self.shown, pa.array([1, 2]), pa.Table.from_pylist(rows).select(wanted))

    monkeypatch.setattr(source, "Postgres", Table)
    where = Source("postgres://me:hunter2@host/db?table=c")
    ingest(where, tmp_path / "state", accounts=where, now=NOW)
    for name in ("ingest.json", "rejects.parquet"):
        assert b"hunter2" not in (tmp_path / "state" / name).read_bytes()
    rejects = pq.read_table(tmp_path / "state" / "rejects.parquet")["source"].to_pylist()
    assert rejects == [None, "postgres://host/db?table=c"]


def test_a_postgres_that_fails_while_it_is_read():
    table = postgres.Postgres.__new__(postgres.Postgres)
    table.shown = "postgres://host/db?table=c"
    setattr(table, "_table", '"gone"')  # noqa: B010
    setattr(table, "_connection", duckdb.connect())  # noqa: B010
    with pytest.raises(ServiceError, match="could not be read beyond row 0"):
        list(table.read(["a"]))


def test_quoted_names_are_names():
    odd = 'a"; DROP TABLE t; --'
    connection = duckdb.connect()
    connection.execute(f"CREATE TABLE t ({postgres.quoted(odd)} INTEGER)")
    assert connection.sql("SELECT * FROM t").columns == [odd]


def test_a_postgres_that_cannot_be_reached_is_named_without_its_password(tmp_path: Path):
    source = "postgres://me:hunter2@127.0.0.1:1/db?table=calls"
    with pytest.raises(ServiceError) as caught:
        ingest(Source(source), tmp_path / "state", now=NOW)
    assert "hunter2" not in str(caught.value) and "ostgres" in str(caught.value)


def test_pseudonyms(tmp_path: Path):
    rows = [
        {"account": f"a{n}", "payment": p, "mail": p}
        for n, p in enumerate(["Card 1", " card 1", "card 2", None])
    ]
    path = tmp_path / "accounts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    counts = pseudonyms.pseudonymise(path, ["payment", "mail"], tmp_path / "out.parquet", KEY)
    told = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert counts == {"payment": 3, "mail": 3} and told["account"] == ["a0", "a1", "a2", "a3"]
    one, two, three, none = told["payment"]
    assert one == two != three and none is None and len(one) == 32
    assert told["mail"][0] != one
    pseudonyms.pseudonymise(path, ["payment"], tmp_path / "other.parquet", KEY + b"!")
    other = pq.read_table(tmp_path / "other.parquet").to_pydict()
    assert other["payment"][0] != one and other["mail"] == ["Card 1", " card 1", "card 2", None]


def test_pseudonyms_of_columns_that_come_late(tmp_path: Path):
    path = tmp_path / "accounts.jsonl"
    rows = [{"account": f"a{n}"} for n in range(1000)] + [{"account": "b", "payment": "Card 1"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out.parquet"
    assert pseudonyms.pseudonymise(path, ["payment"], out, KEY) == {"payment": 1}


def test_pseudonyms_need_a_secret_and_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(pseudonyms.SALT, raising=False)
    with pytest.raises(InputError, match=pseudonyms.SALT):
        pseudonyms.salt()
    monkeypatch.setenv(pseudonyms.SALT, "short")
    with pytest.raises(InputError) as caught:
        pseudonyms.salt()
    assert "short" not in str(caught.value)
    path = tmp_path / "a.csv"
    path.write_text("account,payment\na,b\nc\n")
    with pytest.raises(InputError, match="no column card"):
        pseudonyms.pseudonymise(path, ["card"], tmp_path / "o.parquet", KEY)
    with pytest.raises(InputError, match="row 2"):
        pseudonyms.pseudonymise(path, ["payment"], tmp_path / "o.parquet", KEY)
    assert not (tmp_path / "o.parquet").exists()


def test_pseudonyms_overwrite_nothing_and_hash_texts_alone(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"payment": ["b"], "card": [{"number": 1}]}), path)
    before = path.read_bytes()
    (tmp_path / "inner").mkdir()
    for columns, out, said in [
        (["payment"], "a.parquet", "is what is read"),
        (["payment"], "inner/../a.parquet", "is what is read"),
        (["payment"], "o.csv", "will be Parquet"),
        ([], "o.parquet", "Name the columns"),
        (["card"], "o.parquet", "column card: a struct<number: int64> is no text"),
    ]:
        with pytest.raises(InputError, match=said):
            pseudonyms.pseudonymise(path, columns, tmp_path / out, KEY)
    assert path.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.parquet", "inner"]
