"""Providers' batch queues: questions handed over in a file, answers fetched a day later at most."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

import aiohttp
from pydantic_core import from_json, to_json

from limbeck.errors import InputError, ServiceError, first_line
from limbeck.models.dialects import anthropic, openai
from limbeck.models.exchange import Result, judge, redact
from limbeck.models.headers import retry_after
from limbeck.models.routes import Route
from limbeck.models.wire import proxy_for

Line: TypeAlias = tuple[str, dict[str, Any]]
"""A question's own id, and its body as it would be asked live."""
State: TypeAlias = Literal["working", "ended", "failed"]
MOST_LINES, MOST_BYTES = 10_000, 100_000_000  # of a batch; both providers take more
TRIES, LONGEST_WAIT, SILENCE = 6, 60.0, 300.0
FULL_QUEUE = "token_limit_exceeded"
_OPENAI: dict[str, State] = {
    "completed": "ended", "expired": "ended", "cancelled": "ended", "failed": "failed",
}  # fmt: skip
_GONE = Result("strained", "expired")


@dataclass(frozen=True, slots=True)
class Status:
    """How far a batch is. `files` are the addresses of its results, below the base URL."""

    id: str
    state: State
    files: tuple[str, ...] = ()
    why: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Sign:
    """What a batch that may have arrived is known by; `others` are the ids that it is not."""

    name: str
    number: int
    since: float
    others: frozenset[str]


class BatchService:
    """The batch queue of one route, spoken to in the provider's own way; a context to be entered.

    OpenAI: a file of lines, then a batch that names it, /files and /batches. Anthropic: all
    requests in one body, /messages/batches. Results come as lines, each with its question's id, in
    any order. Only addresses below the route's base URL are asked for, so that the key goes
    nowhere else.

    Raises InputError for a route that has no such queue.
    """

    def __init__(self, route: Route) -> None:
        dialects: tuple[ModuleType, ...] = (openai, anthropic)
        if route.dialect not in dialects:
            raise InputError(
                f"{route.name} has no batch queue that Limbeck speaks: take teacher.batch out."
            )
        self.route, self.key = route, route.key()
        self._anthropic = route.dialect is anthropic
        self._proxy = None if route.local else proxy_for(route.url)

    def __enter__(self) -> BatchService:
        self._runner = asyncio.Runner()
        self._session = self._runner.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._session.close())
        self._runner.close()

    async def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=60, sock_read=SILENCE),
            headers=self.route.dialect.headers(self.key),
            skip_auto_headers=("User-Agent",),
        )

    # -- what it does ------------------------------------------------------------------------

    def submit(self, lines: Iterable[Line], sign: Sign) -> str:
        """Hand a batch over; returns its id there.

        A hand-over that breaks off may have been heard: before it is tried again, the batch is
        looked for (see `find`), so that nothing is handed over twice.
        """
        with _body_of(lines, anthropic=self._anthropic) as body:
            if self._anthropic:
                make: Any = lambda: body.open("rb")  # noqa: E731
                headers = {"Content-Type": "application/json"}
                return self._create("/messages/batches", make, headers, sign)
            form = lambda: _form(body, sign.name)  # noqa: E731
            file = self._json("POST", "/files", form)["id"]
        asked = {"input_file_id": file, "endpoint": "/v1/chat/completions",
                 "completion_window": "24h", "metadata": {"limbeck": sign.name}}  # fmt: skip
        make = lambda: to_json(asked)  # noqa: E731
        headers = {"Content-Type": "application/json"}
        return self._create("/batches", make, headers, sign)

    def find(self, sign: Sign) -> str | None:
        """The id of a batch that was handed over, if it arrived.

        Anthropic's batches bear no name: there it is one of as many questions, made since then; a
        wrong one has none of our questions among its results.
        """
        if not self._anthropic:
            for one in self._json("GET", "/batches?limit=100").get("data") or []:
                if (one.get("metadata") or {}).get("limbeck") == sign.name:
                    return one["id"]
            return None
        for one in self._json("GET", "/messages/batches?limit=100").get("data") or []:
            made = datetime.fromisoformat(one["created_at"]).timestamp()
            number = sum(one["request_counts"].values())
            if made >= sign.since - 60 and number == sign.number and one["id"] not in sign.others:
                return one["id"]
        return None

    def look(self, id_: str) -> Status:
        """How far a batch is."""
        if self._anthropic:
            told = self._json("GET", f"/messages/batches/{id_}")
            ended = told["processing_status"] == "ended"
            files = (f"/messages/batches/{id_}/results",) if ended else ()
            return Status(id_, "ended" if ended else "working", files)
        told = self._json("GET", f"/batches/{id_}")
        ids = (told.get("output_file_id"), told.get("error_file_id"))
        errors: list[dict[str, Any]] = (told.get("errors") or {}).get("data") or []
        first = errors[0] if errors else {}
        return Status(
            id_,
            _OPENAI.get(told["status"], "working"),
            tuple(f"/files/{file}/content" for file in ids if file),
            redact(str(first.get("message") or told["status"]), self.key),
            str(first.get("code") or ""),
        )

    def results(self, status: Status) -> Iterator[tuple[str, Result]]:
        """What became of each question, by its id, as `exchange.judge` tells it.

        Each file is fetched whole before its first line is read. Raises what `judge` raises for
        what ends a run.
        """
        for address in status.files:
            with tempfile.TemporaryDirectory(prefix="limbeck-") as folder:
                path = Path(folder) / "results.jsonl"
                self._tried(lambda a=address, p=path: self._fetch(a, p), address)
                with path.open("rb") as lines:
                    for line in lines:
                        if line.strip():
                            yield self._read(line, status.id)

    # -- how ---------------------------------------------------------------------------------

    def _read(self, line: bytes, id_: str) -> tuple[str, Result]:
        try:
            row = from_json(line)
            name = str(row["custom_id"])
            if self._anthropic:
                return name, self._of_anthropic(row["result"])
            return name, self._of_openai(row)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ServiceError(
                f"{self.route.name}: a line in the results of {id_} is none: "
                f"{redact(line[:120].decode('utf-8', 'replace'), self.key)!r}. Nothing was taken "
                "out of the queue: run the same command again."
            ) from None

    def _of_openai(self, row: Mapping[str, Any]) -> Result:
        told = row.get("response") or {}
        if told:
            return self._judged(told["status_code"], told.get("body"))
        code = str((row.get("error") or {}).get("code") or "")
        if code in ("batch_expired", "batch_cancelled"):
            return _GONE
        return Result("strained", redact(str(row.get("error")), self.key))

    def _of_anthropic(self, result: Mapping[str, Any]) -> Result:
        match result["type"]:
            case "succeeded":
                return self._judged(200, result["message"])
            case "errored":
                told = result["error"].get("error") or result["error"]
                wrong = told.get("type") == "invalid_request_error"
                return self._judged(400 if wrong else 500, {"error": told})
            case _:
                return _GONE

    def _judged(self, status: int, body: Any) -> Result:
        return judge(self.route, self.key, status, {}, to_json(body))

    def _create(self, path: str, make: Any, headers: dict[str, str], sign: Sign) -> str:
        last: Exception | None = None
        for n in range(TRIES):
            try:
                return self._runner.run(self._call("POST", path, make(), headers))["id"]
            except _AgainError as error:
                self._runner.run(asyncio.sleep(error.wait(n)))
                if found := self.find(sign):
                    return found
                last = error
        raise ServiceError(f"{self.route.name} takes no batch: {last}. Run the same command again.")

    def _json(self, method: str, path: str, make: Any = lambda: None) -> dict[str, Any]:
        return self._tried(lambda: self._call(method, path, make(), {}), path)

    def _tried(self, call: Any, path: str) -> Any:
        """What a call brings, tried a few times; it must change nothing that matters."""
        last: Exception | None = None
        for n in range(TRIES):
            try:
                return self._runner.run(call())
            except _AgainError as error:
                last = error
                if n < TRIES - 1:
                    self._runner.run(asyncio.sleep(error.wait(n)))
        raise ServiceError(
            f"{self.route.name} failed {TRIES} times at {path.partition('?')[0]}: {last}. What was "
            "handed over is on record: run the same command again."
        )

    async def _call(self, method: str, path: str, data: Any, headers: dict[str, str]) -> Any:
        try:
            async with self._session.request(
                method, self.route.base + path, data=data, headers=headers, proxy=self._proxy,
                allow_redirects=False,
            ) as response:  # fmt: skip
                raw = await response.read()
                self._refuse(response, raw)
                found = from_json(raw)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _AgainError(redact(first_line(error), self.key)) from None
        if not isinstance(found, dict):
            raise _AgainError("JSON that is no object")
        return found

    async def _fetch(self, path: str, to: Path) -> None:
        try:
            async with self._session.get(
                self.route.base + path, proxy=self._proxy, allow_redirects=False
            ) as response:
                if response.status != 200:
                    self._refuse(response, await response.read())
                with to.open("wb") as file:
                    async for some in response.content.iter_chunked(1 << 20):
                        file.write(some)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _AgainError(redact(first_line(error), self.key)) from None

    def _refuse(self, response: aiohttp.ClientResponse, raw: bytes) -> None:
        if response.status == 200:
            return
        if response.status in (404, 405):
            raise InputError(
                f"{self.route.name} has no batch queue, or forgot this one ({response.status} at "
                f"{response.url.path}): take teacher.batch out to ask live."
            )
        result = judge(self.route, self.key, response.status, response.headers, raw)
        if result.kind == "prompt":
            raise ServiceError(f"{self.route.name} does not take the batch: {result.why}")
        raise _AgainError(result.why, retry_after(response.headers))


class _AgainError(Exception):
    """What another try may mend."""

    def __init__(self, why: str, seconds: float | None = None) -> None:
        super().__init__(why)
        self.seconds = seconds

    def wait(self, tries: int) -> float:
        return min(2.0**tries / 2 if self.seconds is None else self.seconds, LONGEST_WAIT)


def _form(body: Path, name: str) -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    form.add_field(
        "file", body.open("rb"), filename=f"{name}.jsonl", content_type="application/jsonl"
    )
    return form


@contextmanager
def _body_of(lines: Iterable[Line], *, anthropic: bool) -> Iterator[Path]:
    """A file with all questions in it, as the provider wants them, for as long as it is wanted."""
    handle, name = tempfile.mkstemp(prefix="limbeck-", suffix=".jsonl")
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(b'{"requests":[' if anthropic else b"")
            for n, (id_, body) in enumerate(lines):
                told: dict[str, Any] = {"custom_id": id_, "params": body}
                if not anthropic:
                    told = {"custom_id": id_, "method": "POST", "url": "/v1/chat/completions",
                            "body": body}  # fmt: skip
                file.write((b"," if n else b"") if anthropic else b"")
                file.write(json.dumps(told, ensure_ascii=False).encode() + b"\n")
            file.write(b"]}" if anthropic else b"")
        yield path
    finally:
        path.unlink(missing_ok=True)
