"""OpenTelemetry spans of calls to models, as OTLP JSON: a document, or one a line.

Attributes by the GenAI semantic conventions, and by their older names. They know no user: the
account is `user.id` or `enduser.id`, of the span or of its resource. Spans that are no call to a
model (an agent, a tool, anything else) are skipped and counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, cast

from limbeck.errors import InputError, first_line
from limbeck.guard.arrow import pa
from limbeck.guard.readers import jsonl
from limbeck.guard.readers.block import BYTES, ROWS, Bad, Block, table, text_of

Row = Mapping[str, Any]
ATTRIBUTES: Final[Mapping[str, tuple[str, ...]]] = {
    "account": ("user.id", "enduser.id"),
    "model": ("gen_ai.request.model", "gen_ai.response.model"),
    "network": ("client.address", "network.peer.address"),
    "client": ("user_agent.original",),
    "session": ("gen_ai.conversation.id", "session.id"),
    "tokens_in": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
    "tokens_out": ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
    "temperature": ("gen_ai.request.temperature",),
    "max_tokens": ("gen_ai.request.max_tokens",),
    "stream": ("gen_ai.request.stream",),
}
SPANS = "resourceSpans"
PROMPTS = ("gen_ai.input.messages", "gen_ai.prompt")
CALLS = {"chat", "text_completion", "generate_content"}
DIGITS = re.compile(r"[0-9]{1,20}")
VALUES = ("stringValue", "intValue", "doubleValue", "boolValue", "bytesValue")


def by_line(path: Path) -> bool | None:
    """Whether a file holds a document of spans a line; None where its first line is no object.

    Rotation may cut the first line: then the second tells.
    """
    return _by_line([row for _, row, _ in islice(jsonl.rows(path), 2)])


def _by_line(rows: list[Row | Bad]) -> bool | None:
    if rows and not isinstance(rows[0], Bad):
        return SPANS in rows[0]
    return True if any(not isinstance(row, Bad) and SPANS in row for row in rows) else None


def read(path: Path, account: str | None) -> Iterator[Block]:
    """The calls among a file's spans; `account` is an attribute to take instead of the usual."""
    names = ["call_id", "time", *ATTRIBUTES, "prompt"]
    good: list[Row] = []
    bad: list[Bad] = []
    skipped = size = 0

    def block() -> Block:
        places = pa.array([row["row"] for row in good], pa.int64())
        made = Block(str(path), places, table(names, good), tuple(bad), skipped)
        good.clear()
        bad.clear()
        return made

    for line, document, length in _documents(path):
        size += length
        if isinstance(document, Bad) or SPANS not in document:
            bad.append(document if isinstance(document, Bad) else Bad(line, f"no {SPANS}"))
            continue
        for span, resource in _spans(document):
            attributes = {**resource, **_flat(span.get("attributes"))}
            if not _is_call(attributes):
                skipped += 1
                continue
            good.append({"row": line, **_call(span, attributes, account)})
        if size > BYTES or len(good) + len(bad) >= ROWS:
            yield block()
            skipped = size = 0
    if good or bad or skipped:
        yield block()


def _documents(path: Path) -> Iterator[tuple[int, Row | Bad, int]]:
    """A document a line; or one for the whole file, or a list of some."""
    lines = jsonl.rows(path)
    first = list(islice(lines, 2))
    if not first or _by_line([row for _, row, _ in first]) is not None:
        yield from chain(first, lines)
        return
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            text = stream.read()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None
    try:
        document: Any = json.loads(text.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is neither one JSON document nor one a line: {first_line(error)}"
        ) from None
    documents = cast(list[Any], document) if isinstance(document, list) else [document]
    if not any(isinstance(one, dict) and SPANS in one for one in documents):
        raise InputError(f"{path} holds no {SPANS}; of other JSON, --format jsonl reads one a line")
    for number, one in enumerate(documents, 1):
        yield number, one if isinstance(one, dict) else Bad(number, "no object"), len(text)


def _spans(document: Row) -> Iterator[tuple[Row, Row]]:
    """Each span, and what is said of its resource."""
    for resource in _objects(document.get(SPANS)):
        about = _flat(_object(resource.get("resource")).get("attributes"))
        for scope in _objects(resource.get("scopeSpans")):
            for span in _objects(scope.get("spans")):
                yield span, about


def _is_call(attributes: Row) -> bool:
    operation = attributes.get("gen_ai.operation.name")
    if operation is not None:
        return isinstance(operation, str) and operation in CALLS
    return any(name in attributes for name in (*ATTRIBUTES["model"], *ATTRIBUTES["tokens_in"]))


def _call(span: Row, attributes: Row, account: str | None) -> dict[str, Any]:
    call: dict[str, Any] = {
        name: _first(attributes, (account,) if name == "account" and account else options)
        for name, options in ATTRIBUTES.items()
    }
    ids = [str(span.get(name) or "") for name in ("traceId", "spanId")]
    call["call_id"] = ":".join(ids) if all(ids) else None
    start = span.get("startTimeUnixNano")
    call["time"] = _integer(start)
    prompt = _first(attributes, PROMPTS)
    for event in _objects(span.get("events")):
        prompt = prompt or _first(_flat(event.get("attributes")), PROMPTS)
    call["prompt"] = text_of(prompt)
    return call


def _integer(value: Any) -> Any:
    return int(value) if isinstance(value, str) and DIGITS.fullmatch(value) else value


def _first(attributes: Row, names: tuple[str, ...]) -> Any:
    return next((attributes[name] for name in names if attributes.get(name) is not None), None)


def _flat(attributes: Any) -> dict[str, Any]:
    return {
        str(one["key"]): _value(_object(one.get("value")))
        for one in _objects(attributes)
        if "key" in one
    }


def _value(value: Row) -> Any:
    """An OTLP `AnyValue` as Python's own; whole numbers come as text."""
    if "intValue" in value:
        return _integer(value["intValue"])
    if "arrayValue" in value:
        return [_value(one) for one in _objects(_object(value["arrayValue"]).get("values"))]
    if "kvlistValue" in value:
        return _flat(_object(value["kvlistValue"]).get("values"))
    return next((value[name] for name in VALUES if name in value), None)


def _object(value: Any) -> Row:
    return cast(Row, value) if isinstance(value, dict) else {}


def _objects(value: Any) -> list[Row]:
    return (
        [one for one in cast(list[Any], value) if isinstance(one, dict)]
        if isinstance(value, list)
        else []
    )
