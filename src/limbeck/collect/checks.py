"""Checks that a recipe names: what an answer must be to be learnt from, and why it is not."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import traceback
from collections.abc import Callable
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from limbeck.collect.duplicates import normalise
from limbeck.errors import InputError, extra, first_line
from limbeck.files import sha256_file
from limbeck.records import Answer, Prompt, identity
from limbeck.sections import ChecksSection

Says: TypeAlias = Callable[[Prompt, Answer], Any]
"""The user's own: True or "" for right, False or the reason for wrong, or a number as a score."""

_WRAPPING = " .,;:!?\"'`*$()[]{}“”‘’"
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)])[-−])?[$€£]?(?:(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?P<part>\.\d+)?"
    r"|(?P<bare>\.\d+))(?P<power>[eE][-+]?\d{1,3}(?!\d))?(?:\s?/\s?(?P<under>\d+))?"
)
_QUOTE = 40  # characters of an answer in a reason


class Checks:
    """The checks of a recipe that one answer passes or fails, the cheapest first."""

    def __init__(self, section: ChecksSection) -> None:
        self.section = section
        self._pattern = re.compile(section.pattern) if section.pattern else None

    @property
    def any(self) -> bool:
        """Whether one answer alone can fail."""
        told = self.section
        return bool(told.equals or told.pattern or told.json_schema or told.function)

    @property
    def key(self) -> str:
        """The hash of all that decides what passes, files included."""
        told = self.section
        files = [told.json_schema, *told.benchmarks]
        if told.function:
            files.append(_code_of(told.function))
        digests = [sha256_file(Path(f)) for f in files if f and Path(f).is_file()]
        return identity("checks", told.model_dump(), digests)

    def ready(self) -> None:
        """Load schema and function; raises InputError for one that cannot be used."""
        if self.section.json_schema:
            _ = self._schema
        if self.section.function:
            _ = self._function

    def why_not(self, prompt: Prompt, answer: Answer) -> str:
        """Why an answer fails, beginning with the check's name; "" where it passes all."""
        told, text = self.section, answer.text
        if told.equals and (why := self._unequal(prompt, text)):
            return f"equals: {why}"
        if self._pattern and not self._pattern.search(text):
            return "pattern: not found"
        if told.json_schema and (why := _unfit(text, self._schema)):
            return f"json_schema: {why}"
        if told.function:
            said = self.said(prompt, answer)
            if said is False or (isinstance(said, str) and said):
                return f"function: {said or 'no'}"
        return ""

    def said(self, prompt: Prompt, answer: Answer) -> bool | str | float:
        """What the recipe's function says of an answer; True where there is none."""
        if not self.section.function:
            return True
        name = self.section.function
        try:
            said = self._function(prompt, answer)
            said = said.item() if hasattr(said, "item") else said  # numpy's
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1].lineno
            raise InputError(
                f"checks.function {name} failed on the answer to {prompt.source}, in line {line}: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from None
        if not isinstance(said, bool | str | int | float) or said != said:
            raise InputError(
                f"checks.function {name} said {said!r} of the answer to {prompt.source}; it must "
                "return True or False, a reason as text, or a number."
            )
        return said

    def final(self, text: str) -> Decimal | str | None:
        """The final answer in a text, in the form in which two are the same; None without one."""
        found = final_answer(text, self.section.after)
        if found is None:
            return None
        if self.section.equals == "number":
            return number(found, first=self.section.after is not None)
        return normalise(found).strip(_WRAPPING) or None

    def _unequal(self, prompt: Prompt, text: str) -> str:
        after, wanted = self.section.after, self.final(prompt.reference)
        if wanted is None:  # the reference may be the final answer alone
            plain = Checks(self.section.model_copy(update={"after": None}))
            wanted = plain.final(prompt.reference)
        if wanted is None:
            kind = self.section.equals
            raise InputError(
                f"{prompt.source}: its reference {_short(prompt.reference)!r} holds no {kind} to "
                "compare an answer with."
            )
        if after is not None and after not in text:
            return f"no {after!r} in the answer"
        found = self.final(text)
        if found == wanted:
            return ""
        return f"{_short(_plain(found))}, not {_short(_plain(wanted))}"

    @cached_property
    def _schema(self) -> Any:
        assert self.section.json_schema is not None
        return _validator(Path(self.section.json_schema))

    @cached_property
    def _function(self) -> Says:
        assert self.section.function is not None
        return _load(self.section.function)


def final_answer(text: str, after: str | None) -> str | None:
    """What follows the last `after` on its line; all of the text without one; None if it lacks."""
    if after is None:
        return text.strip()
    _, found, rest = text.rpartition(after)
    if not found:
        return None
    return next(iter(rest.strip().splitlines()), "").strip()


def number(text: str, *, first: bool) -> Decimal | None:
    """The first or the last number in a text: decimal, with thousands' commas, or a fraction."""
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    told = found[0 if first else -1]
    whole = (told["whole"] or "0").replace(",", "")
    value = Decimal(f"{whole}{told['part'] or told['bare'] or ''}{told['power'] or ''}")
    value = -value if told["sign"] else value
    if told["under"] is None:
        return value
    under = Decimal(told["under"])
    return value / under if under else None


def _unfit(text: str, validator: Any) -> str:
    """Why a text is no JSON that fits the schema."""
    from jsonschema.exceptions import best_match
    from referencing.exceptions import Unresolvable

    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        return "JSON that is nested too deeply"
    except ValueError as error:
        fenced = " (it stands in a code fence)" if text.lstrip().startswith("```") else ""
        return f"not JSON{fenced}: {error}"
    try:
        error = best_match(validator.iter_errors(value))
    except Unresolvable as missing:
        raise InputError(
            f"checks.json_schema refers to {missing.ref!r}, which is not in the file; references "
            "elsewhere are not followed."
        ) from None
    return f"{_short(error.message, 120)} at {error.json_path}" if error else ""


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _validator(path: Path) -> Any:
    """What holds values to the schema in a file; nothing is fetched for it."""
    with extra("checks"):
        import jsonschema
        from jsonschema.validators import validator_for
        from referencing import Registry
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        kind = validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except (OSError, ValueError, RecursionError, jsonschema.SchemaError) as error:
        reason = error.message if isinstance(error, jsonschema.SchemaError) else first_line(error)
        raise InputError(f"checks.json_schema {path} is no JSON schema: {reason}") from None
    return kind(schema, registry=Registry())


def _load(named: str) -> Says:
    """The function that `file.py:name` or `module:name` means."""
    place, _, name = named.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except Exception as error:
        raise InputError(
            f"checks.function {named} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        ) from None
    found = getattr(module, name, None)
    if not callable(found):
        raise InputError(f"checks.function {named}: {place} has no function {name}")
    try:
        inspect.signature(found).bind("prompt", "answer")
    except (TypeError, ValueError):
        raise InputError(f"checks.function {named} must take a prompt and an answer") from None
    return found


def _code_of(named: str) -> str:
    """The file that a function stands in."""
    place = named.rpartition(":")[0]
    if place.endswith(".py"):
        return place
    try:
        found = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        found = None
    return (found.origin or "") if found else ""


def _plain(value: Decimal | str | None) -> str:
    if isinstance(value, Decimal):
        return f"{value.normalize():f}" if abs(value.adjusted()) < _QUOTE else f"{value:E}"
    return "nothing" if value is None else value


def _short(text: str, width: int = _QUOTE) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= width else plain[: width - 1] + "…"
