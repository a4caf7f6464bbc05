"""A recorded permission: somebody's word, kept in a file, that a teacher may be learnt from."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError

from limbeck.errors import InputError
from limbeck.permit.register import Table, Text, complaints
from limbeck.records import Purpose


def _calendar_day(value: object) -> object:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    if isinstance(value, str):
        return date.fromisoformat(value.strip())
    raise ValueError("must be a date, as 2027-06-30")


class Word(Table):
    """What the file says: who allows which teachers, for what, until when."""

    teacher: Annotated[
        tuple[Text, ...],
        Field(min_length=1),
        BeforeValidator(lambda said: (said,) if isinstance(said, str) else said),
    ]
    allowed_by: Text
    until: Annotated[date, BeforeValidator(_calendar_day)]
    purpose: Purpose
    note: str = ""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded permission as it was read: its word, its file and the hash of its bytes."""

    word: Word
    path: Path
    sha256: str


def read_recorded(path: Path, expected: str | None = None) -> Recorded:
    """Read a recorded permission (TOML: teacher, allowed_by, until, purpose, and note if wanted).

    Args:
        path: The file; its bytes are hashed as they are read.
        expected: The SHA-256 that they must have, where a recipe pins one.

    Raises:
        InputError: For a file that is unreadable or malformed, or has another hash.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read as a recorded permission: {error}") from None
    found = sha256(data).hexdigest()
    if expected and found != expected.casefold():
        raise InputError(
            f"{path} has SHA-256 {found}, and permit.permission_sha256 expects {expected}: "
            "it is not the permission that was agreed on. Get that one, or look at what changed "
            "and correct the hash."
        )
    try:
        word = Word.model_validate(tomllib.loads(data.decode("utf-8")))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    except ValidationError as error:
        raise InputError(f"{path}: {complaints(error, Word, {})}") from None
    return Recorded(word, path, found)
