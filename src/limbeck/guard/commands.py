"""`limbeck guard …`: what a provider types, and nothing of how it is done."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from limbeck.guard.options import (
    AccountFrom,
    AccountsTable,
    AsJson,
    EngineKind,
    LogFormat,
    Memory,
    PriceIn,
    PriceOut,
    Threads,
    no_file,
)

app = App(
    name="guard",
    help="Find, in your own logs, the campaign that distils your model.",
    help_format="plaintext",
)


@app.command
def ingest(
    calls: Annotated[str, Parameter(help="File, folder, pattern, or postgres://…?table=calls.")],
    *,
    out: Annotated[
        Path, Parameter(help="The state folder; it is made, or grows.", validator=no_file)
    ],
    accounts: AccountsTable = None,
    format_: LogFormat = "auto",
    account_from: AccountFrom = None,
    threads: Threads = 2,
    json_: AsJson = False,
) -> None:
    """Read a log into a state folder: prompts become integers, bad rows are set aside.

    A log must have call_id, time, account, model, tokens_in, tokens_out, and may have prompt,
    network, asn, client, session, temperature, max_tokens, logprobs, stream. A table of accounts
    must have account, and may have created, payment, email_domain, channel, tier, organisation.

    Example: limbeck guard ingest logs/ --accounts accounts.csv --out state
    """
    from limbeck.guard.logs import ingest as read
    from limbeck.guard.readers.source import Source
    from limbeck.progress import counted

    about = Source(accounts) if accounts else None
    told = read(Source(calls, format_, account_from), out, accounts=about, threads=threads)
    calls_, days = counted(told["calls"], "call"), counted(len(told["days"]), "day")
    _tell(json_, told, f"{calls_} of {days} in {out}")


@app.command
def scan(
    calls: Annotated[str, Parameter(help="A log as for ingest, or a state folder.")],
    *,
    out: Annotated[
        Path, Parameter(help="Where to write; a log's state grows in OUT/state.", validator=no_file)
    ],
    accounts: AccountsTable = None,
    format_: LogFormat = "auto",
    account_from: AccountFrom = None,
    price_in: PriceIn = 3.0,
    price_out: PriceOut = 15.0,
    engine: EngineKind = "duckdb",
    memory: Memory = "4GB",
    threads: Threads = 2,
    json_: AsJson = False,
) -> None:
    """Find campaigns: writes OUT/accounts.parquet, campaigns.json, report.html and STIX 2.1.

    Exit codes: 0 no campaign was found, 1 at least one was, 2 the input is wrong, others as of
    limbeck. Scanning again with a later log adds it to what OUT/state holds.

    Example: limbeck guard scan logs/ --accounts accounts.csv --out found
    """
    from limbeck.guard import walk
    from limbeck.guard.findings import Price
    from limbeck.guard.readers.source import Source
    from limbeck.progress import counted

    about = Source(accounts) if accounts else None
    with _none_left_empty(out):
        state = walk.state_of(Source(calls, format_, account_from), out, about, threads)
        price = Price(price_in, price_out)
        told = walk.walk(state, out, price, kind=engine, memory=memory, threads=threads)
    lines = [
        f"{one['id']}: {one['accounts']:,} accounts took {one['calls']:,} answers, "
        f"{one['tokens_out']:,} tokens written"
        for one in told["campaigns"]
    ]
    found = counted(len(lines), "campaign") if lines else "No campaign"
    seen = f"{counted(told['calls'], 'call')} of {counted(told['accounts'], 'account')}"
    lines += [f"{found} in {seen}; see {out / 'report.html'}"]
    _tell(json_, told, "\n".join(lines))
    if told["campaigns"]:
        raise SystemExit(1)


@app.command
def watch(
    folder: Annotated[Path, Parameter(help="A folder into which logs are put, or a state folder.")],
    *,
    out: Annotated[
        Path,
        Parameter(help="Where to write, as scan does, and findings.jsonl.", validator=no_file),
    ],
    accounts: AccountsTable = None,
    format_: LogFormat = "auto",
    account_from: AccountFrom = None,
    every: Annotated[float, Parameter(help="Seconds between looks for new files.")] = 60.0,
    settle: Annotated[
        float, Parameter(help="Seconds for which a file must not change before it is read.")
    ] = 10.0,
    once: Annotated[
        bool, Parameter(negative="", help="Take what is there, look, and end.")
    ] = False,
    price_in: PriceIn = 3.0,
    price_out: PriceOut = 15.0,
    engine: EngineKind = "duckdb",
    memory: Memory = "4GB",
    threads: Threads = 2,
    json_: AsJson = False,
) -> None:
    """Scan whenever new logs have come in, and raise each finding once, in OUT/findings.jsonl.

    However long it watches, the chance that it ever raises a false finding stays below 5 %. Stopped
    or killed, the same command goes on where it was. With --once the exit code is 1 where a finding
    was raised, else 0.

    Example: limbeck guard watch logs/ --accounts accounts.csv --out found --every 600
    """
    from limbeck.guard import watch as room
    from limbeck.guard.findings import Price
    from limbeck.guard.readers.source import Source

    told = room.watch(
        Source(str(folder), format_, account_from),
        out,
        accounts=Source(accounts) if accounts else None,
        every=every,
        settle=settle,
        once=once,
        how=room.How(Price(price_in, price_out), engine, memory, threads),
    )
    count = len(told["raised"])
    _tell(json_, told, f"{count or 'No'} new finding{'s' * (count != 1)}, look {told['look']}")
    if told["raised"]:
        raise SystemExit(1)


@app.command
def explain(
    out: Annotated[Path, Parameter(help="The folder of a finished scan.")],
    account: Annotated[str, Parameter(help="The account's name, as the log has it.")],
    *,
    json_: AsJson = False,
) -> None:
    """Say why an account was flagged, or why not.

    Example: limbeck guard explain found acct_1234
    """
    from limbeck.guard import enforce, findings, report

    with _legible(out):
        told = findings.explain(out, account)
    told["decisions"] = enforce.history(out / enforce.FILE, account)
    lines = findings.lines(told)
    if told["why"] is not None:
        lines += report.lines(told["why"])
    lines += [enforce.said(one) for one in told["decisions"]]
    print(json.dumps(told, ensure_ascii=False) if json_ else "\n".join(lines))  # noqa: T201


@app.command
def decide(
    out: Annotated[Path, Parameter(help="The folder of a finished scan.")],
    *,
    campaign: Annotated[str, Parameter(help="Which, as C1.")],
    step: Annotated[
        Literal["observe", "throttle", "hide-reasoning", "mark", "verify", "suspend"],
        Parameter(
            help="How far to go. At a gateway, observe, hide-reasoning and mark let a call pass "
            "and hand the step to the app as scope['limbeck.step'], which hides or marks; throttle "
            "answers 429 beyond the campaign's calls a minute; verify and suspend answer 403."
        ),
    ],
    by: Annotated[str, Parameter(help="The person who signs.")],
    why: Annotated[str, Parameter(help="The reason, for the record.")] = "",
    until: Annotated[str | None, Parameter(help="The day on which it ends, YYYY-MM-DD.")] = None,
    lifted: Annotated[
        bool, Parameter(negative="", help="Also accounts of which an appeal was granted.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Sign what is done about a campaign's accounts: OUT/decisions.sqlite, for gateways to look up.

    Example: limbeck guard decide found --campaign C1 --step throttle --by "A. Person"
    """
    from limbeck.guard import enforce, findings
    from limbeck.progress import counted

    with _legible(out):
        accounts = findings.members(out, campaign)
    path, end = out / enforce.FILE, _end_of(until)
    put, left = enforce.decide(
        path, accounts, step=step, campaign=campaign, by=by, why=why, until=end, again=lifted
    )
    told = {"decisions": str(path), "step": step, "accounts": put, "left_out": left}
    who = f"{counted(put, 'account')} of {campaign}"
    said = f"{who} now on {step}, signed by {by.strip()}, in {path}"
    _tell(json_, told, said + (f"; {left:,} left out after an appeal" if left else ""))


@app.command
def appeal(
    out: Annotated[Path, Parameter(help="The folder of a finished scan.")],
    account: Annotated[str, Parameter(help="The account's name, as the log has it.")],
    *,
    by: Annotated[str, Parameter(help="The person who grants it.")],
    why: Annotated[str, Parameter(help="The reason, for the record.")],
    json_: AsJson = False,
) -> None:
    """Grant an account's appeal: what stands against it is lifted, and that is recorded.

    Example: limbeck guard appeal found acct_1234 --by "A. Person" --why "a class of students"
    """
    from limbeck.guard import enforce, findings

    path = out / enforce.FILE
    if path.exists() and not enforce.history(path, account):
        with _legible(out):
            findings.explain(out, account)  # says so where the scan saw no such account
    stood = enforce.lift(path, account, by=by, why=why)
    told = {"account": account, "lifted": stood.step, "campaign": stood.campaign}
    _tell(json_, told, f"{account} is no longer on {stood.step} ({stood.campaign})")


def _end_of(day: str | None) -> float | None:
    from datetime import UTC, datetime

    from limbeck.errors import InputError

    if day is None:
        return None
    try:
        end = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise InputError(f"--until {day} is no date; write it as 2026-12-31") from None
    if end <= datetime.now(UTC):
        raise InputError(f"--until {day} is over; name a day to come")
    return end.timestamp()


@app.command
def pseudonymise(
    file: Annotated[Path, Parameter(help="Parquet, CSV or JSON Lines.")],
    *,
    columns: Annotated[str, Parameter(help="Which to hash, as payment,email_domain.")],
    out: Annotated[Path, Parameter(help="The Parquet file to write, another than FILE.")],
    json_: AsJson = False,
) -> None:
    """Hash names with the secret in LIMBECK_SALT, so that equal ones stay equal and unreadable.

    Equal names get equal hashes only in columns of one name: call a column that is in two files,
    such as account, the same in both, and use one secret.

    Example: limbeck guard pseudonymise accounts.csv --columns payment --out accounts.parquet
    """
    from limbeck.guard import pseudonyms

    names = [name.strip() for name in columns.split(",") if name.strip()]
    counts = pseudonyms.pseudonymise(file, names, out, pseudonyms.salt())
    what = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
    _tell(json_, {"out": str(out), "hashed": counts}, f"Hashed {what}, in {out}")


@app.command
def simulate(
    *,
    out: Annotated[Path, Parameter(help="A new folder.")],
    accounts: Annotated[int, Parameter(help="Honest accounts.")] = 10_000,
    days: Annotated[int, Parameter(help="Days of traffic.")] = 7,
    seed: Annotated[int, Parameter(help="The same seed gives the same calls.")] = 0,
    start: Annotated[str, Parameter(help="First day, as YYYY-MM-DD, UTC.")] = "2026-03-02",
    release: Annotated[
        int | None, Parameter(help="Day of a model's release, from 0; default: the middle one.")
    ] = None,
    attacks: Annotated[
        str, Parameter(help="Campaigns, as a,b; or all, or none. An unknown name lists them.")
    ] = "all",
    attack_accounts: Annotated[
        int | None, Parameter(help="Accounts a campaign; default: a hundredth of the honest ones.")
    ] = None,
    per_day: Annotated[float | None, Parameter(help="Calls a day of a hostile account.")] = None,
    cover: Annotated[
        float | None, Parameter(help="Share of honest traffic in hostile accounts, below 1.")
    ] = None,
    without: Annotated[str, Parameter(help="Honest kinds to withhold, as a,b.")] = "",
    prompts: Annotated[bool, Parameter(help="Write prompts, or metadata only.")] = True,
    truth_calls: Annotated[
        bool, Parameter(negative="", help="Also write which calls are hostile.")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Write simulated calls, honest and hostile, to learn your false alarms and misses by.

    Example: limbeck guard simulate --out sim --accounts 20000 --days 14
    """
    from dataclasses import asdict
    from datetime import date

    from limbeck.errors import InputError
    from limbeck.guard import simulate as room
    from limbeck.guard.simulate.hostile import chosen
    from limbeck.progress import say

    try:
        first = date.fromisoformat(start)
    except ValueError:
        raise InputError(f"--start {start} is no date; write it as 2026-03-02") from None
    changes = {"accounts": attack_accounts, "per_day": per_day, "cover": cover}
    plan = room.Plan(
        accounts=accounts,
        days=days,
        seed=seed,
        attacks=chosen(attacks, max(20, accounts // 100), changes),
        without=tuple(name.strip() for name in without.split(",") if name.strip()),
        prompts=prompts,
        start=first,
        release=release,
        truth_calls=truth_calls,
    )
    summary = room.simulate(plan, out)
    if json_:
        print(json.dumps({"out": str(out)} | asdict(summary), ensure_ascii=False))  # noqa: T201
        return
    say(
        f"Wrote {out}, simulated: {summary.honest_accounts:,} honest accounts with "
        f"{summary.honest_calls:,} calls, {summary.hostile_accounts:,} hostile ones with "
        f"{summary.hostile_calls:,} hostile calls and {summary.cover_calls:,} as cover"
    )


@contextmanager
def _none_left_empty(out: Path) -> Generator[None]:
    """What fails before it wrote anything leaves no new folder behind."""
    before = out.exists()
    try:
        yield
    finally:
        if not before:
            with suppress(OSError):  # it holds something
                out.rmdir()


@contextmanager
def _legible(out: Path) -> Generator[None]:
    """What a scan wrote may since have been cut or changed: JSON and Arrow then raise these."""
    from limbeck.errors import InputError, first_line

    try:
        yield
    except (ValueError, OSError) as error:
        why = first_line(error)
        raise InputError(f"The scan in {out} cannot be read; scan again ({why})") from None


def _tell(as_json: bool, document: dict[str, Any], line: str) -> None:
    from limbeck.progress import say

    if as_json:
        print(json.dumps(document, ensure_ascii=False))  # noqa: T201
    else:
        say(line)
