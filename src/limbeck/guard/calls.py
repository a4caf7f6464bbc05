"""Blocks of a log → canonical rows, each checked, or refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from limbeck.guard.arrow import Array, Schema, Table, pa, pc
from limbeck.guard.readers.block import Block
from limbeck.guard.schema import TIME
from limbeck.guard.texts import utf8

OLDEST: Final = 1_420_070_400_000_000
"""2015 in microseconds: no model was called before."""
AHEAD: Final = 15 * 60 * 1_000_000
"""Clocks may go wrong by a quarter of an hour."""
DAY = r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
STAMP = DAY + r"[T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d([.,]\d{1,9})?)?"
ZONE = r" ?(Z|z|UTC|[+-]\d{2}(:?\d{2})?)$"
HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)

Refusal: TypeAlias = tuple[int | None, str | None, str]
REJECTS: Final[Schema] = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("call_id", pa.string()),
        pa.field("reason", pa.string()),
    ]
)
"""One refused row: `row` counts from 1 in `source`. Prompts are never repeated here."""


@dataclass(frozen=True, slots=True, eq=False)
class Checked:
    """A block's rows, of `schema` exactly, and those refused.

    Attributes:
        rows: What is kept.
        refused: As `REJECTS`.
        naive: How many of the times kept bore no zone, and were read as UTC.
    """

    rows: Table
    refused: Table
    naive: int


class _Refusals:
    """The first reason against each row."""

    def __init__(self, count: int) -> None:
        self.reasons: NDArray[np.object_] = np.full(count, None, dtype=object)
        self.any = False

    def add(self, wrong: Array, reason: str) -> None:
        """Refuse the rows at which `wrong` is true."""
        at = np.flatnonzero(pc.fill_null(wrong, False).to_numpy(zero_copy_only=False))
        if len(at):
            self.any = True
            fresh = at[self.reasons[at] == None]  # noqa: E711
            self.reasons[fresh] = reason


def check(block: Block, schema: Schema, now: datetime | None = None) -> Checked:
    """The block's rows as `schema` wants them, and why others are refused."""
    count: int = block.columns.num_rows
    refusals = _Refusals(count)
    columns: dict[str, Array] = {}
    zoned = np.ones(count, np.bool_)
    latest = int((now or datetime.now(UTC)).timestamp() * 1_000_000) + AHEAD
    for field in schema:
        if field.name not in block.columns.column_names:
            columns[field.name] = pa.nulls(count, field.type)
        else:
            raw = block.columns[field.name].combine_chunks()
            if field.type == TIME:
                made, zoned = _time(raw, field.name, latest, refusals)
            else:
                made = _CASTS[str(field.type)](raw, field.name, refusals)
            columns[field.name] = made
        if not field.nullable:
            refusals.add(pc.is_null(columns[field.name]), f"{field.name} is missing")
    rows = pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in schema]))
    keys = columns[schema.names[0]]
    bad: list[Refusal] = [(one.row, None, one.reason) for one in block.bad]
    if refusals.any:
        reasons = pa.array(refusals.reasons, pa.string())
        good = pc.is_null(reasons)
        places = block.rows.filter(pc.is_valid(reasons)).to_pylist()
        ids = keys.filter(pc.is_valid(reasons)).to_pylist()
        bad += list(zip(places, ids, reasons.drop_null().to_pylist(), strict=True))
        rows = rows.filter(good)
        zoned = zoned[good.to_numpy(zero_copy_only=False)]
    return Checked(rows.cast(schema), rejects(block.source, bad), int((~zoned).sum()))


def rejects(source: str | None, bad: list[Refusal]) -> Table:
    """A table of refused rows: place, id and reason of each."""
    places, ids, reasons = zip(*bad, strict=True) if bad else ((), (), ())
    columns = [[source] * len(bad), list(places), list(ids), list(reasons)]
    return pa.table(dict(zip(REJECTS.names, columns, strict=True)), schema=REJECTS)


def _plain(raw: Array) -> Array:
    """Texts, and UUIDs, as valid strings, and all else as it is."""
    if pa.types.is_dictionary(raw.type):
        raw = raw.dictionary_decode()
    if isinstance(raw.type, pa.BaseExtensionType):
        raw = raw.storage
    if raw.type == pa.binary(16):
        return _uuids(raw)
    return utf8(raw) if any(kind(raw.type) for kind in TEXTS) else raw


def _uuids(raw: Array) -> Array:
    """UUIDs of 16 bytes as they are written: 8-4-4-4-12 hex digits."""
    data = np.frombuffer(raw.fill_null(bytes(16)).cast(pa.binary()).buffers()[2], np.uint8)
    nibbles = np.stack([data >> 4, data & 15], axis=-1).reshape(len(raw), 32)
    text = np.full((len(raw), 36), ord("-"), np.uint8)
    text[:, [at for at in range(36) if at not in (8, 13, 18, 23)]] = HEX[nibbles]
    null = raw.is_null().to_numpy(zero_copy_only=False)
    return pa.array(text.view("S36").ravel(), mask=null).cast(pa.large_string())


def text_column(raw: Array) -> Array:
    """A column of whatever type as valid strings; an empty text is null."""
    if pa.types.is_dictionary(raw.type):
        return text_column(raw.dictionary).take(raw.indices)
    text = _plain(raw).cast(pa.string())
    empty = pc.equal(text, "")
    return pc.if_else(empty, pa.scalar(None, pa.string()), text) if pc.any(empty).as_py() else text


def _is_text(raw: Array) -> bool:
    return pa.types.is_large_string(raw.type)


def _string(raw: Array, name: str, refusals: _Refusals) -> Array:
    try:
        return text_column(raw)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        refusals.add(pc.is_valid(raw), f"{name} is no text")
        return pa.nulls(len(raw), pa.string())


def _number(raw: Array, name: str, refusals: _Refusals) -> Array:
    """As float64; what is no number is refused."""
    raw = _plain(raw)
    if _is_text(raw):
        raw = pc.utf8_trim_whitespace(raw)
        good = pc.match_substring_regex(raw, r"^[+-]?\d{1,18}(\.\d*)?([eE][+-]?\d{1,2})?$")
        raw = pc.if_else(pc.equal(raw, ""), pa.scalar(None, raw.type), raw)
        refusals.add(pc.and_(pc.is_valid(raw), pc.invert(good)), f"{name} is no number")
        raw = pc.if_else(good, raw, pa.scalar(None, raw.type))
    try:
        return raw.cast(pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        refusals.add(pc.is_valid(raw), f"{name} is no number")
        return pa.nulls(len(raw), pa.float64())


def _int32(raw: Array, name: str, refusals: _Refusals) -> Array:
    if raw.type == pa.int32() and raw.null_count == 0:
        whole = raw
    else:
        number = _number(raw, name, refusals)
        good = pc.and_(pc.equal(pc.floor(number), number), pc.less(pc.abs(number), 2.0**31))
        refusals.add(pc.and_(pc.is_valid(number), pc.invert(good)), f"{name} is no count")
        whole = pc.if_else(good, number, None).cast(pa.int32())
    wrong = pc.less(whole, 0)
    refusals.add(wrong, f"{name} is negative")
    return whole


def _float32(raw: Array, name: str, refusals: _Refusals) -> Array:
    number = _number(raw, name, refusals)
    refusals.add(pc.invert(pc.is_finite(number)), f"{name} is not finite")
    return number.cast(pa.float32(), safe=False)


def _bool(raw: Array, name: str, refusals: _Refusals) -> Array:
    raw = _plain(raw)
    if pa.types.is_boolean(raw.type):
        return raw
    if _is_text(raw):
        text = pc.utf8_lower(raw)
        yes = pc.is_in(text, pa.array(["true", "t", "1", "yes"], text.type))
        no = pc.is_in(text, pa.array(["false", "f", "0", "no"], text.type))
        refusals.add(pc.and_(pc.is_valid(raw), pc.invert(pc.or_(yes, no))), f"{name} is no boolean")
        return pc.if_else(pc.is_valid(raw), yes, None)
    return pc.not_equal(_number(raw, name, refusals), 0.0)


_CASTS: dict[str, Callable[[Array, str, _Refusals], Array]] = {
    "string": _string,
    "int32": _int32,
    "float": _float32,
    "bool": _bool,
}


def _time(
    raw: Array, name: str, latest: int, refusals: _Refusals
) -> tuple[Array, NDArray[np.bool_]]:
    """Microseconds of UTC, and which of them bore a zone."""
    raw = _plain(raw)
    kind = raw.type
    zoned = np.ones(len(raw), np.bool_)
    if pa.types.is_timestamp(kind):
        zoned[:] = kind.tz is not None
        made = raw.cast(pa.timestamp(kind.unit)).cast(pa.timestamp("us"), safe=False)
        micros = made.cast(pa.int64())
    elif _is_text(raw):
        micros, zoned = _parsed(pc.utf8_trim_whitespace(raw), name, refusals)
    else:
        micros = _epoch(_number(raw, name, refusals), raw)
    if name == "time":  # an account may be older than any model
        refusals.add(pc.less(micros, OLDEST), f"{name} is before 2015")
    refusals.add(pc.greater(micros, latest), f"{name} is in the future")
    return micros.cast(TIME), zoned


def _epoch(number: Array, raw: Array) -> Array:
    """Seconds, milliseconds, microseconds or nanoseconds since 1970, by their size."""
    values = number.fill_null(0.0).to_numpy(zero_copy_only=False)
    values = np.where(np.isfinite(values), values, 0.0)
    if pa.types.is_integer(raw.type):
        whole = raw.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    else:
        whole = values.clip(-9e18, 9e18).astype(np.int64)
    micros = np.select(
        [np.abs(values) < 1e11, np.abs(values) < 1e14, np.abs(values) < 1e17],
        [np.round(values * 1e6), np.round(values * 1e3), whole],
        whole // 1000,
    )
    return pa.array(micros.astype(np.int64), mask=number.is_null().to_numpy(zero_copy_only=False))


def _parsed(text: Array, name: str, refusals: _Refusals) -> tuple[Array, NDArray[np.bool_]]:
    """Texts as microseconds: ISO 8601, or a number since 1970."""
    plain = pc.match_substring_regex(text, STAMP + "$")
    zone = pc.match_substring_regex(text, STAMP + ZONE)
    digits = pc.match_substring_regex(text, r"^\d{9,19}(\.\d+)?$")
    known = pc.or_(pc.or_(plain, zone), digits)
    refusals.add(pc.and_(pc.is_valid(text), pc.invert(known)), f"{name} is no ISO 8601 time")
    micros = np.zeros(len(text), np.int64)
    valid = np.zeros(len(text), np.bool_)
    for which, read in ((plain, _naive), (zone, _with_zone), (digits, _digits)):
        chosen = np.flatnonzero(pc.fill_null(which, False).to_numpy(zero_copy_only=False))
        if len(chosen):
            made = read(text.take(pa.array(chosen)))
            micros[chosen] = made.fill_null(0).to_numpy(zero_copy_only=False)
            valid[chosen] = made.is_valid().to_numpy(zero_copy_only=False)
    impossible = pa.array(~valid) if len(text) else pa.array([], pa.bool_())
    refusals.add(pc.and_(pc.fill_null(known, False), impossible), f"{name} is on no calendar")
    unzoned = pc.fill_null(plain, False).to_numpy(zero_copy_only=False)
    return pa.array(micros, mask=~valid), ~unzoned


def _naive(text: Array) -> Array:
    return _stamps(text, pa.timestamp("ns"))


def _with_zone(text: Array) -> Array:
    text = pc.replace_substring_regex(text, r" ?(Z|z|UTC)$", "+00:00")
    text = pc.replace_substring_regex(text, r" ?([+-]\d{2}):?(\d{2})?$", r"\1:\2")
    text = pc.replace_substring_regex(text, r":$", ":00")
    return _stamps(text, pa.timestamp("ns", "UTC"))


def _stamps(text: Array, kind: Any) -> Array:
    text = pc.replace_substring(text, ",", ".")
    try:
        stamps = text.cast(kind)
        return stamps.cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.int64())
    except pa.ArrowInvalid:
        return pa.array([_stamp(one) for one in text.to_pylist()], pa.int64())


def _stamp(text: str) -> int | None:
    """One by one, where a whole column has some day that is on no calendar."""
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        return None
    return round(read.replace(tzinfo=read.tzinfo or UTC).timestamp() * 1e6)


def _digits(text: Array) -> Array:
    number = text.cast(pa.float64())
    fits = pc.less(number, 2.0**63)
    number = pc.if_else(fits, number, None)
    if pc.any(pc.match_substring(text, ".")).as_py():
        return _epoch(number, number)
    return _epoch(number, pc.if_else(fits, text, pa.scalar("0", text.type)).cast(pa.int64()))
