"""What came back for one question, and what it means: answer, refusal, trouble, or the end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import aiohttp
from pydantic_core import from_json

from limbeck.errors import InputError, LimbeckError, ServiceError, first_line
from limbeck.models.dialects.base import BrokenError, Reply
from limbeck.models.routes import Route
from limbeck.models.tools import unsound
from limbeck.progress import duration
from limbeck.records import Prompt

Kind: TypeAlias = Literal["good", "denied", "strained", "broken", "prompt"]
_QUOTA = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "enforced_spend_limit_reached",
        "billing_hard_limit_reached",
        "quota_exceeded",
    }
)
_FILTERED = re.compile(r"content[_ ](?:filter|policy|management)|safety|moderation", re.IGNORECASE)
_KEYISH = re.compile(r"\b(?:sk|pk|xai|gsk|key|AIza)[-_\w]*[-_*][\w*.-]{6,}|AIza[\w-]{10,}")
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
WORDS = 240
SILENCE = 600.0  # seconds without a byte


@dataclass(frozen=True, slots=True)
class Result:
    """One try's result.

    good: `reply` is the answer. denied: too many questions. strained: the service failed.
    broken: it answered, and probably billed, what is no answer. prompt: it takes all questions but
    this one; `refused` says that it would rather not answer it. `paid` is whether it may be billed.
    """

    kind: Kind
    why: str = ""
    reply: Reply | None = None
    paid: bool = False
    refused: bool = False


def judge(route: Route, key: str, status: int, headers: Mapping[str, str], raw: bytes) -> Result:
    """What a response means.

    Raises InputError or ServiceError for what no further question would change: a wrong key, an
    unknown model, no money left, a redirect.
    """
    if status == 200:
        return _read(route, key, headers, raw)
    document = _document(raw)
    told = f"{status}{_colon(redact(_words(document, raw), key))}"
    code = _code(document)
    if 300 <= status < 400:
        raise ServiceError(
            f"{route.name} redirects to {headers.get('Location', 'nowhere')}: a key is not sent "
            "there. Give that address as teacher.url if it is right."
        )
    if code & _QUOTA or status == 402:
        raise ServiceError(
            f"{route.teacher}: no credit or quota is left ({told}). What was answered is kept: "
            "top up, or raise the limit with the provider, and run the same command again."
        )
    if status in (401, 403):
        raise _no_entry(route, told)
    if status in (404, 405):
        raise InputError(
            f"{route.name} knows no model {route.model!r}, or nothing is at {route.url} ({told}). "
            "Correct teacher.model, or teacher.url."
        )
    if status == 429:
        return Result("denied", told)
    if status >= 500 or status in (408, 409, 425):
        return Result("strained", told)
    return Result("prompt", told, refused=bool(_FILTERED.search(told)))


def unfit(reply: Reply, prompt: Prompt) -> str:
    """Why a whole answer is of no use although nothing went wrong on its way; "" if it is."""
    if reply.finish != "stop":
        return ""
    if why := unsound(reply.calls, prompt.tools):
        return why
    if prompt.schema is not None and not reply.calls:
        try:
            from_json(reply.text)
        except ValueError:
            return "no JSON, though a schema was asked for"
    return ""


def broken_off(route: Route, key: str, error: Exception) -> Result:
    """What a connection that failed means; whether it was billed shows nowhere.

    Raises ServiceError for a certificate that cannot be trusted.
    """
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        raise ServiceError(
            f"{route.name} shows a certificate that cannot be trusted: "
            f"{first_line(error.certificate_error)}. Name its authority in SSL_CERT_FILE, or "
            "correct the address."
        ) from None
    name = type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Result("strained", f"no connection: {redact(first_line(error), key)}")
    if isinstance(error, TimeoutError):
        return Result("strained", f"no byte for {duration(SILENCE)}", paid=True)
    return Result("strained", f"broken off: {redact(first_line(error), key) or name}", paid=True)


def redact(text: str, key: str) -> str:
    """The text without the key, or anything that looks like one."""
    if key:
        text = text.replace(key, "[key]")
    return _KEYISH.sub("[key]", text)


def _read(route: Route, key: str, headers: Mapping[str, str], raw: bytes) -> Result:
    """A body that claims to be an answer, whatever its content type."""
    try:
        document: Any = from_json(raw)
    except ValueError:
        start = raw.lstrip()[:1]
        if start == b"<":
            return Result("broken", f"an HTML page, no JSON{_colon(_title(raw))}", paid=True)
        return Result("broken", "JSON that is cut short or damaged", paid=True)
    if not isinstance(document, dict):
        return Result("broken", "JSON that is no object", paid=True)
    if document.get("error"):
        code = document["error"].get("code") if isinstance(document["error"], dict) else None
        if isinstance(code, int) and 400 <= code < 600:
            return judge(route, key, code, headers, raw)
        return Result("strained", f"200{_colon(redact(_words(document, raw), key))}")
    try:
        reply = route.dialect.read(document)
    except BrokenError as error:
        return Result("broken", str(error), paid=True)
    except (AttributeError, KeyError, TypeError, IndexError):
        return Result("broken", "JSON of another shape than an answer's", paid=True)
    try:
        told = tuple(route.dialect.read_logprobs(document))
    except (AttributeError, KeyError, TypeError, IndexError, ValueError):
        told = ()  # the answer is good without, and is counted as learnt from its text
    return Result("good", reply=replace(reply, logprobs=told) if told else reply, paid=True)


def _no_entry(route: Route, told: str) -> LimbeckError:
    if route.keys:
        return InputError(
            f"{route.name} does not accept the key in {' or '.join(route.keys)} ({told}). Set the "
            "right one, or ask the provider what it may be used for."
        )
    return InputError(
        f"{route.name} wants a key ({told}). Put it into an environment variable, and that "
        "variable's name into teacher.key."
    )


def _document(raw: bytes) -> Any:
    try:
        return from_json(raw)
    except ValueError:
        return None


def _words(document: Any, raw: bytes) -> str:
    """The service's own words about an error, on one line."""
    found: Any = document
    if isinstance(found, list) and found:
        found = found[0]
    for name in ("error", "message", "detail", "msg"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    if isinstance(found, list) and found:
        found = found[0]
    if isinstance(found, dict):
        found = found.get("message") or found.get("msg") or str(found)
    text = str(found) if found is not None else _title(raw) or raw.decode("utf-8", "replace")
    return _plain(text)[:WORDS]


def _code(document: Any) -> set[str]:
    """Every code and type in an error."""
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return set()
    details = error.get("details")
    tables = [error, *([details] if isinstance(details, dict) else [])]
    names = ("code", "type", "error_code", "status")
    return {t[name] for t in tables for name in names if isinstance(t.get(name), str)}


def _title(raw: bytes) -> str:
    found = _TITLE.search(raw[:4096].decode("utf-8", "replace"))
    return _plain(found[1])[:80] if found else ""


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _colon(text: str) -> str:
    return f": {text}" if text else ""
