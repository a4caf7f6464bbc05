"""From a teacher's licence and a purpose to a Permission, before the first answer is asked for."""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from functools import cache, cached_property
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, get_args

import tomli_w
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from limbeck.errors import GateError, InputError
from limbeck.records import Decision, Permission, Purpose, identity

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)

_ROUTE = "weights:"
_NOT_STATED = "no-licence-stated"
_SEPARATORS = re.compile(r"[\s,_\u2010-\u2015-]+")
_FILLER = frozenset({"", "the", "license", "licence", "version", "agreement"})
_LEAD: dict[Decision, str] = {
    "allow": "permitted",
    "conditional": "permitted only on conditions",
    "deny": "not permitted",
    "unknown": "not known to be permitted",
}

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def _calendar_day(value: object) -> object:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    if isinstance(value, str):
        return date.fromisoformat(value.strip())
    raise ValueError("must be a date, as 2027-06-30")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Table):
    """What one licence of open weights says about training on what the weights produce."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9.+-]+$")] = Field(
        description="hub tag, or SPDX id in lower case"
    )
    name: Text = Field(description="how people write it")
    also: tuple[Text, ...] = Field(default=(), description="other spellings")
    decision: Decision
    purposes: Annotated[tuple[Purpose, ...], Field(min_length=1)] = Field(
        default=PURPOSES, description="what `decision` holds for; elsewhere it is deny"
    )
    duties: tuple[Text, ...]
    clause: Text = Field(description="in our own words")
    source: Annotated[str, StringConstraints(pattern=r"^https://\S+\.\S+$")]
    date_read: Annotated[str, StringConstraints(pattern=r"^\d{4}-(0[1-9]|1[0-2])(-\d\d)?$")]

    @property
    def spellings(self) -> tuple[str, ...]:
        """Everything that the licence is called here."""
        return (self.id, self.name, *self.also)


class Register(_Table):
    """Every licence that we have read, each findable under one spelling or more."""

    licence: tuple[Entry, ...]

    @model_validator(mode="after")
    def _one_meaning_a_spelling(self) -> Register:
        if len({entry.id for entry in self.licence}) < len(self.licence):
            raise ValueError("an id stands twice")
        for entry in self.licence:
            for spelling in entry.spellings:
                other = self._by_key[_key(spelling)]
                if other is not entry:
                    raise ValueError(f"{spelling!r} stands for both {entry.id!r} and {other.id!r}")
        return self

    @cached_property
    def _by_key(self) -> dict[str, Entry]:
        return {_key(said): entry for entry in self.licence for said in entry.spellings}

    def find(self, licence: str | None) -> Entry | None:
        """The entry for a licence however it is spelt, or None where we have not read it."""
        return self._by_key.get(_key(licence or ""))


class Recorded(_Table):
    """Somebody's word, kept in a file, that a teacher may be learnt from."""

    teacher: Text
    allowed_by: Text
    until: Annotated[date, BeforeValidator(_calendar_day)]
    purpose: Purpose
    note: str = ""


@dataclass(frozen=True, slots=True)
class Licence:
    """What the weights say of themselves.

    Attributes:
        id: Hub tag, SPDX id or the licence's name, in any case; None where nothing is said.
        source: Where that was read, as "GGUF key general.license of X.gguf"; "" if nowhere.
    """

    id: str | None
    source: str


def decide(
    teacher: str,
    licence: Licence,
    purpose: Purpose,
    recorded: Path | None = None,
    today: date | None = None,
) -> Permission:
    """Say whether `teacher`, run from its own weights, may be learnt from for `purpose`.

    Args:
        teacher: The teacher's name, which a recorded permission must repeat.
        licence: What its weights say of themselves.
        purpose: What the student is for.
        recorded: A permission on file (TOML: teacher, allowed_by, until, purpose, and note if
            wanted), which turns any decision into allow and keeps the duties.
        today: The day on which the recorded permission must hold; default: the machine's.

    Raises:
        InputError: For a recorded permission that is unreadable, malformed, expired, or about
            another teacher or purpose; for a purpose that is none.
    """
    if purpose not in PURPOSES:
        raise InputError(f"purpose {purpose!r} is none of: {', '.join(PURPOSES)}")
    permission = _by_register(teacher, licence, purpose)
    if recorded is not None:
        permission = _by_word(permission, recorded, teacher, purpose, today or date.today())
    facts = ("permission", teacher, asdict(licence), purpose, asdict(permission))
    return replace(permission, id=identity(*facts))


def gate(permission: Permission) -> None:
    """Let an allowed permission through.

    Raises:
        GateError: For any other, saying why and how to record a permission.
    """
    if permission.decision == "allow":
        return
    teacher, licence = _parts(permission.route)
    purpose = _purpose(permission)
    raise GateError(
        f"The teacher {teacher} stops here, before its first answer is asked for: "
        "every answer would carry its terms into the student.\n"
        f"  licence:  {_name(licence)}{_bracketed(permission.source)}\n"
        f"  decision: {permission.decision}\n"
        f"  terms:    {permission.clause}\n"
        f"  duties:   {_list(permission.duties)}\n"
        "Read the terms. If they, or their owner, allow what you plan, write permission.toml "
        "beside the recipe with these four lines:\n"
        f"  {_toml(teacher=teacher)}\n"
        '  allowed_by = "WHO ALLOWS IT, AND WHERE THAT STANDS"\n'
        "  until = YYYY-MM-DD\n"
        f"  {_toml(purpose=purpose)}\n"
        "and name it in the recipe:\n"
        "  [permit]\n"
        '  permission = "permission.toml"\n'
        "Not legal advice."
    )


def line(permission: Permission) -> str:
    """The one line that tells a user what was decided, on what ground and under which duties."""
    teacher, licence = _parts(permission.route)
    return _plain(
        f"{_LEAD[permission.decision]}: {teacher} by its weights, {_name(licence)}"
        f"{_bracketed(permission.source)}; duties: {_list(permission.duties)}. Not legal advice."
    )


@cache
def register() -> Register:
    """The register that Limbeck ships, read once."""
    text = resources.files("limbeck.permit").joinpath("register.toml").read_text(encoding="utf-8")
    return parse_register(tomllib.loads(text), "register.toml")


def parse_register(table: dict[str, Any], name: str = "register") -> Register:
    """Check a register's table against its shape; `name` is how errors call it.

    Raises:
        InputError: Naming each entry and key that is wrong, a missing source among them.
    """
    try:
        return Register.model_validate(table)
    except ValidationError as error:
        raise InputError(f"{name}: {_complaints(error, Register)}") from None


def _by_register(teacher: str, licence: Licence, purpose: Purpose) -> Permission:
    stated = _plain(licence.id or "")
    entry = register().find(stated)
    found = _plain(licence.source)
    if entry is None:
        label = "-".join(stated.split())[:80] or _NOT_STATED
        why = (
            f"Limbeck's register has not read a licence called {stated[:80]!r}."
            if stated
            else "The weights state no licence, and without one nothing is granted."
        )
        clause = f"{why} Purpose: {purpose}."
        return Permission(f"{_ROUTE}{teacher} under {label}", "unknown", (), clause, found, "")
    inside = purpose in entry.purposes
    limit = "" if inside else f" It is for {' or '.join(entry.purposes)} only."
    return Permission(
        route=f"{_ROUTE}{teacher} under {entry.id}",
        decision=entry.decision if inside else "deny",
        duties=entry.duties,
        clause=f"{entry.clause}{limit} Purpose: {purpose}.",
        source="; ".join(filter(None, (found, entry.source))),
        date_read=entry.date_read,
    )


def _by_word(
    permission: Permission, path: Path, teacher: str, purpose: Purpose, today: date
) -> Permission:
    """The permission after a recorded one, whose bytes are hashed as they are read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read as a recorded permission: {error}") from None
    word = _parse_recorded(data, path)
    for what, theirs, ours in (
        ("teacher", word.teacher, teacher.strip()),
        ("purpose", word.purpose, purpose),
    ):
        if theirs != ours:
            raise InputError(f"{path} permits the {what} {theirs!r}, and this is {ours!r}")
    if word.until < today:
        raise InputError(
            f"{path} ran out on {word.until}, and today is {today}: have it renewed, "
            "or take permission out of [permit]"
        )
    by = f"allowed by {_plain(word.allowed_by)} until {word.until}"
    note = f" Note: {_plain(word.note).rstrip('.')}." if word.note.strip() else ""
    return replace(
        permission,
        decision="allow",
        clause=f"{permission.clause} Recorded: {by}, in {path.name}, "
        f"SHA-256 {sha256(data).hexdigest()}.{note}",
        source="; ".join(filter(None, (permission.source, by))),
    )


def _parse_recorded(data: bytes, path: Path) -> Recorded:
    try:
        return Recorded.model_validate(tomllib.loads(data.decode("utf-8")))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    except ValidationError as error:
        raise InputError(f"{path}: {_complaints(error, Recorded)}") from None


def _complaints(error: ValidationError, model: type[BaseModel]) -> str:
    said: list[str] = []
    for one in error.errors():
        where = ".".join(map(str, one["loc"]))
        if one["type"] == "extra_forbidden":
            known = model if len(one["loc"]) == 1 else Entry
            said.append(f"unknown key {where!r}; known here: {', '.join(known.model_fields)}")
        elif one["type"] == "missing":
            said.append(f"{where!r} is missing")
        else:
            what = one["msg"].removeprefix("Value error, ")
            said.append(f"{where!r}: {what}" if where else what)
    return "; ".join(said)


def _key(spelling: str) -> str:
    """What is left of a licence's name without case, separators and words that tell nothing."""
    words = _SEPARATORS.split(spelling.casefold())
    words = [re.sub(r"^v(?=\d)", "", word) for word in words if word not in _FILLER]
    return "".join(words)


def _plain(text: str) -> str:
    """`text` on one line, fit for a terminal: weights may carry any bytes in their metadata."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _parts(route: str) -> tuple[str, str]:
    """Teacher and licence of a route; the licence holds no space, so the last " under " parts."""
    match = re.fullmatch(r"(?:weights:)?(.*?)(?: under (\S+))?", route, re.DOTALL)
    return (match[1], match[2] or _NOT_STATED) if match else (route, _NOT_STATED)


def _purpose(permission: Permission) -> str:
    said = permission.clause.rpartition("Purpose: ")[2].rstrip(".")
    return said if said in PURPOSES else " | ".join(PURPOSES)


def _name(licence: str) -> str:
    if licence == _NOT_STATED:
        return "no licence stated"
    entry = register().find(licence)
    return entry.name if entry else licence


def _bracketed(source: str) -> str:
    return f" ({source})" if source else ""


def _list(duties: tuple[str, ...]) -> str:
    return "; ".join(duties) or "none"


def _toml(**pair: str) -> str:
    return tomli_w.dumps(pair).strip()
