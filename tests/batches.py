"""A provider of ours with a batch queue, in OpenAI's and in Anthropic's way, and its faults."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from dialects import Asked, Behaviour, error_response, read
from provider import Provider, answer_to


@dataclass
class Queueing:
    """How the queue behaves; each list is of what happens to the first batches, one after another.

    `ends` are states in which batches end: "" is well, "expired" leaves `left` of the questions
    unanswered, "failed" and "full" answer none. `created` is what happens to a hand-over: "" or
    "reset" (heard, but never told), "deaf" (not heard), 500 or 429.
    """

    looks: int = 1  # until a batch has ended
    ends: list[str] = field(default_factory=list)
    left: float = 0.5
    created: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)  # of fetches: "", "reset", "no json"
    rows: dict[str, str] = field(default_factory=dict)  # by prompt: "400", "500", "broken" once


@dataclass
class _Batch:
    id: str
    lines: list[dict[str, Any]]
    made: float
    metadata: dict[str, str]
    end: str
    looks: int = 0
    output: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)


class BatchProvider(Provider):
    """The provider, with a queue; `billed` counts the answers that it made for each prompt."""

    def __init__(self, behaviour: Behaviour | None = None, queue: Queueing | None = None) -> None:
        super().__init__(behaviour)
        self.queueing = queue or Queueing()
        self.files: dict[str, list[dict[str, Any]]] = {}
        self.batches: dict[str, _Batch] = {}
        self.billed: Counter[str] = Counter()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.removeprefix("/v1")
        parts = path.strip("/").split("/")
        if parts[0] == "messages":
            parts = parts[1:]
        if not parts or parts[0] not in ("files", "batches"):
            return await super()._handle(request)
        if self.behaviour.key and self.behaviour.key not in (
            request.headers.get("x-api-key"),
            request.headers.get("Authorization", "").removeprefix("Bearer "),
        ):
            return error_response("openai", 401, "Incorrect API key provided")
        anthropic = path.startswith("/messages")
        match (request.method, *parts):
            case ("POST", "files"):
                return await self._upload(request)
            case ("POST", "batches"):
                return await self._create(request, anthropic)
            case ("GET", "batches"):
                made = [self._told(b, anthropic) for b in reversed(self.batches.values())]
                return web.json_response({"object": "list", "data": made})
            case ("GET", "batches", id_):
                return self._look(self.batches[id_], anthropic)
            case ("GET", "files", id_, "content"):
                kind, _, batch = id_.partition("-")
                found = self.batches[batch]
                return await self._lines(request, found.output if kind == "out" else found.errors)
            case ("GET", "batches", id_, "results"):
                found = self.batches[id_]
                return await self._lines(request, found.output + found.errors)
            case _:
                return web.Response(status=404)

    async def _upload(self, request: web.BaseRequest) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        file: Any = form["file"]
        name = f"file{len(self.files)}"
        self.files[name] = [json.loads(line) for line in file.file.read().splitlines()]
        return web.json_response({"id": name, "object": "file"})

    async def _create(self, request: web.BaseRequest, anthropic: bool) -> web.StreamResponse:
        body = json.loads(await request.read())
        how = self.queueing.created.pop(0) if self.queueing.created else ""
        if how == "deaf":
            return await _reset(request)
        if how in ("429", "500"):
            return error_response("openai", int(how), "Not now", {"Retry-After": "0"})
        lines = body["requests"] if anthropic else self.files[body["input_file_id"]]
        ids = [line["custom_id"] for line in lines]
        assert len(set(ids)) == len(ids) and all(len(id_) <= 64 for id_ in ids)
        end = self.queueing.ends.pop(0) if self.queueing.ends else ""
        batch = _Batch(
            f"batch{len(self.batches)}", lines, time.time(), body.get("metadata") or {}, end
        )
        self.batches[batch.id] = batch
        if how == "reset":
            return await _reset(request)
        return web.json_response(self._told(batch, anthropic))

    def _look(self, batch: _Batch, anthropic: bool) -> web.Response:
        batch.looks += 1
        if batch.looks == self.queueing.looks:
            self._work(batch, anthropic)
        return web.json_response(self._told(batch, anthropic))

    def _work(self, batch: _Batch, anthropic: bool) -> None:
        """Answer the questions, last first: results come in any order."""
        if batch.end in ("failed", "full"):
            return
        undone = int(self.queueing.left * len(batch.lines)) if batch.end == "expired" else 0
        for n, line in enumerate(reversed(batch.lines)):
            kept = batch.output
            if n < undone:
                kept, told = batch.errors, self._expired(anthropic)
            else:
                told, good = self._row(line, anthropic)
                kept = batch.output if good else batch.errors
            kept.append({"custom_id": line["custom_id"], **told})

    def _expired(self, anthropic: bool) -> dict[str, Any]:
        if anthropic:
            return {"result": {"type": "expired"}}
        error = {"code": "batch_expired", "message": "could not be executed in time"}
        return {"response": None, "error": error}

    def _row(self, line: dict[str, Any], anthropic: bool) -> tuple[dict[str, Any], bool]:
        body = line["params" if anthropic else "body"]
        asked = read("/v1/messages" if anthropic else "/v1/chat/completions", body)
        fault = self.queueing.rows.pop(asked.prompt, "")
        if fault in ("400", "500"):
            kind = "invalid_request_error" if fault == "400" else "api_error"
            error = {"type": kind, "message": "This prompt is not to our taste"}
            if anthropic:
                told = {"type": "errored", "error": {"type": "error", "error": error}}
                return {"result": told}, False
            response = {"status_code": int(fault), "request_id": "r", "body": {"error": error}}
            return {"response": response, "error": None}, False
        document = self._said(asked, "empty choices" if fault == "broken" else "")
        self.billed[asked.prompt] += 1
        if anthropic:
            return {"result": {"type": "succeeded", "message": document}}, True
        response = {"status_code": 200, "request_id": "r", "body": document}
        return {"response": response, "error": None}, True

    def _said(self, asked: Asked, fault: str) -> dict[str, Any]:
        words = answer_to(asked.prompt, self.behaviour.words).split()
        cut = len(words) > asked.cap
        self.counts.tokens_out += min(len(words), asked.cap)
        return self._document(
            asked, " ".join(words[: asked.cap]), "length" if cut else "stop", fault
        )

    def _told(self, batch: _Batch, anthropic: bool) -> dict[str, Any]:
        ended = batch.looks >= self.queueing.looks
        if anthropic:
            counts = {"processing": 0 if ended else len(batch.lines),
                      "succeeded": len(batch.output), "errored": 0, "canceled": 0,
                      "expired": len(batch.errors)}  # fmt: skip
            if ended and batch.end in ("failed", "full"):
                counts["errored"] = len(batch.lines)
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(batch.made))
            return {"id": batch.id, "processing_status": "ended" if ended else "in_progress",
                    "request_counts": counts, "created_at": stamp, "results_url": None}  # fmt: skip
        states = {"": "completed", "full": "failed"}
        told: dict[str, Any] = {"id": batch.id, "metadata": batch.metadata, "errors": None}
        told["status"] = states.get(batch.end, batch.end) if ended else "in_progress"
        told["output_file_id"] = f"out-{batch.id}" if batch.output else None
        told["error_file_id"] = f"err-{batch.id}" if batch.errors else None
        if ended and told["status"] == "failed":
            code = "token_limit_exceeded" if batch.end == "full" else "invalid_json_line"
            told["errors"] = {"data": [{"code": code, "message": "Enqueued token limit reached."}]}
        return told

    async def _lines(
        self, request: web.BaseRequest, rows: list[dict[str, Any]]
    ) -> web.StreamResponse:
        how = self.queueing.results.pop(0) if self.queueing.results else ""
        raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
        if how == "no json":
            raw = b"<html>" + raw
        if how != "reset":
            return web.Response(body=raw, content_type="application/octet-stream")
        response = web.StreamResponse(headers={"Content-Length": str(len(raw))})
        await response.prepare(request)
        await response.write(raw[: len(raw) // 2])
        await asyncio.sleep(0.05)
        return await _reset(request)


async def _reset(request: web.BaseRequest) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
