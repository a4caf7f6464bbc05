"""`limbeck guard …`: what a provider types, and nothing of how it is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

app = App(
    name="guard",
    help="Find, in your own logs, the campaign that distils your model.",
    help_format="plaintext",
)

AsJson = Annotated[
    bool, Parameter(name="--json", negative="", help="Print one JSON document on standard output.")
]


@app.command
def ingest(
    calls: Annotated[str, Parameter(help="File, folder, pattern, or postgres://…?table=calls.")],
    *,
    out: Annotated[Path, Parameter(help="The state folder; it is made, or grows.")],
    accounts: Annotated[str | None, Parameter(help="A table of accounts.")] = None,
    format_: Annotated[
        Literal["auto", "parquet", "csv", "jsonl", "otel", "litellm"],
        Parameter(name="--format", help="What the log is; by default, as it looks."),
    ] = "auto",
    account_from: Annotated[
        str | None,
        Parameter(help="LiteLLM column or OpenTelemetry attribute that names the account."),
    ] = None,
    threads: Annotated[int, Parameter(help="Blocks worked on at a time.")] = 2,
    json_: AsJson = False,
) -> None:
    """Read a log into a state folder: prompts become integers, bad rows are set aside.

    Example: limbeck guard ingest logs/ --accounts accounts.csv --out state
    """
    from limbeck.guard.logs import ingest as read
    from limbeck.guard.readers.source import Source

    about = Source(accounts) if accounts else None
    told = read(Source(calls, format_, account_from), out, accounts=about, threads=threads)
    _tell(json_, told, f"{told['calls']:,} calls of {len(told['days'])} days are in {out}")


@app.command
def pseudonymise(
    file: Annotated[Path, Parameter(help="Parquet, CSV or JSON Lines.")],
    *,
    columns: Annotated[str, Parameter(help="Which to hash, as payment,email_domain.")],
    out: Annotated[Path, Parameter(help="The Parquet file to write.")],
    json_: AsJson = False,
) -> None:
    """Hash names with the secret in LIMBECK_SALT, so that equal ones stay equal and unreadable.

    Example: limbeck guard pseudonymise accounts.csv --columns payment --out accounts.parquet
    """
    from limbeck.guard import pseudonyms

    names = [name.strip() for name in columns.split(",") if name.strip()]
    counts = pseudonyms.pseudonymise(file, names, out, pseudonyms.salt())
    what = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
    _tell(json_, {"out": str(out), "hashed": counts}, f"Hashed {what}, in {out}")


def _tell(as_json: bool, document: dict[str, Any], line: str) -> None:
    from limbeck.progress import say

    if as_json:
        print(json.dumps(document, ensure_ascii=False))  # noqa: T201
    else:
        say(line)
