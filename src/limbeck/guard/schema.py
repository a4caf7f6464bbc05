"""The tables of guard: calls as logged, calls as kept (sketched), and accounts."""

from __future__ import annotations

from typing import Final

from limbeck.guard.arrow import Schema, pa

TIME: Final = pa.timestamp("us", tz="UTC")

BANDS: Final = tuple(f"band_{number}" for number in range(8))

SKETCH: Final[Schema] = pa.schema(
    [
        pa.field("exact", pa.int64()),
        pa.field("skeleton", pa.int64()),
        *(pa.field(band, pa.int64()) for band in BANDS),
        pa.field("reasoning", pa.uint8()),
        pa.field("rubric", pa.uint8()),
        pa.field("trace", pa.uint8()),
        pa.field("capability", pa.int8()),
        pa.field("topic", pa.int32()),
        pa.field("chars", pa.int32()),
    ]
)
"""What stands for a prompt. All are null where the prompt was null; skeleton, bands and topic also
where it holds no word. `docs` of each stand at `limbeck.guard.sketch.sketch`."""

CAPABILITIES: Final = (
    "other",
    "code",
    "maths",
    "tools",
    "translation",
    "summary",
    "roleplay",
    "extraction",
    "chat",
)
"""What a value of `capability` means: its place here."""

CALLS: Final[Schema] = pa.schema(
    [
        pa.field("call_id", pa.string(), nullable=False),
        pa.field("time", TIME, nullable=False),
        pa.field("account", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("network", pa.string()),
        pa.field("asn", pa.string()),
        pa.field("client", pa.string()),
        pa.field("session", pa.string()),
        pa.field("tokens_in", pa.int32(), nullable=False),
        pa.field("tokens_out", pa.int32(), nullable=False),
        pa.field("prompt", pa.string()),
        pa.field("temperature", pa.float32()),
        pa.field("max_tokens", pa.int32()),
        pa.field("logprobs", pa.bool_()),
        pa.field("stream", pa.bool_()),
    ]
)
"""The canonical call. In a log, nullable columns may be missing; `asn` may be a number."""

REQUIRED: Final[tuple[str, ...]] = tuple(field.name for field in CALLS if not field.nullable)

SKETCHED: Final[Schema] = pa.schema(
    [
        *(field for field in CALLS if field.name != "prompt"),
        pa.field("hour", pa.int32(), nullable=False),
        pa.field("call", pa.int64(), nullable=False),
        *SKETCH,
    ]
)
"""One kept call: all columns are there, null where the log had none. `hour` counts from 1970 in
UTC, so that SQL need not touch a timestamp; `call` is a hash of `call_id`. Files are
`sketched/day=YYYY-MM-DD/*.parquet`."""

ACCOUNTS: Final[Schema] = pa.schema(
    [
        pa.field("account", pa.string(), nullable=False),
        pa.field("created", TIME),
        pa.field("payment", pa.string()),
        pa.field("email_domain", pa.string()),
        pa.field("channel", pa.string()),
        pa.field("tier", pa.string()),
        pa.field("organisation", pa.string()),
    ]
)
"""The canonical account; all but `account` may be missing in a file, and are null when kept."""
