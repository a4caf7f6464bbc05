"""A provider's logs → a state folder: each call checked and kept with integers for its prompt.

The folder holds `sketched/day=YYYY-MM-DD/*.parquet`, `accounts.parquet`, `templates.parquet`,
`rejects.parquet` and `ingest.json`. It appears whole or not at all, and grows by further logs.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from limbeck.errors import InputError
from limbeck.files import whole_folder, write_text
from limbeck.guard import state
from limbeck.guard.arrow import Array, Table, pa, pc, pq
from limbeck.guard.calls import REJECTS, Checked, Refusal, check, rejects
from limbeck.guard.readers.block import Block
from limbeck.guard.readers.source import Source, blocks
from limbeck.guard.schema import ACCOUNTS, CALLS, REQUIRED, SKETCHED
from limbeck.guard.sketch import sketch
from limbeck.guard.templates import Templates
from limbeck.guard.texts import buffers, utf8
from limbeck.guard.words import I64, LONGEST, hash_each
from limbeck.progress import say

VERSION: Final = 1
BLIND: Final = {
    "network": "accounts that share a network",
    "client": "accounts that share a client",
    "session": "sessions",
    "temperature": "set-ups that share a temperature",
    "max_tokens": "set-ups that share a limit on answers",
    "prompt": "templates, paraphrases, what the prompts ask for, repeated work lists",
}
BLIND_ACCOUNTS: Final = {
    "payment": "accounts that share a payment",
    "created": "sign-ups in turn",
    "organisation": "customers whose seats these are",
    "email_domain": "accounts that share a mail domain",
    "channel": "accounts that share a way of sign-up",
    "tier": "tiers",
}
"""What cannot be seen where a column of calls, or of accounts, is empty throughout."""
COUNTED: Final = ("read", "not calls", "cut", "without zone")


@dataclass(frozen=True, slots=True, eq=False)
class _Done:
    """A block that has been checked and sketched."""

    checked: Checked
    sketched: Table
    skipped: int
    cut: int


def ingest(
    source: Source,
    out: Path,
    *,
    accounts: Source | None = None,
    threads: int = 2,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Read a log, and perhaps a table of accounts, into the state folder `out`.

    What `out` holds already stays; calls that it has are refused as repeated.

    Args:
        source: The log.
        out: The state folder.
        accounts: A table of accounts; it replaces what is known of the same accounts.
        threads: Blocks sketched at a time.
        now: Times after this, and a quarter of an hour, are refused; by default, the clock's.

    Returns:
        What `ingest.json` says.

    Raises:
        InputError: The log cannot be read, or holds no call that is not refused.
    """
    if threads < 1:
        raise InputError("--threads must be at least 1")
    for one in (source, accounts):
        if one and Path(one.where).is_dir():
            refuse_inside(out, Path(one.where))
    with state.alone(out), whole_folder(out) as part:
        before = noted(out)
        state.link(out, part)
        told = _ingest(source, out, part, accounts, threads, now, before)
        write_text(part / "ingest.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    for line in told["said"]:
        say(f"{'ingest':>9}  {line}")
    return told


def refuse_inside(out: Path, folder: Path) -> None:
    """InputError where `out` lies in the folder of the log."""
    if out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{out} is inside {folder}: what is written there would be read as a log")


def noted(out: Path) -> dict[str, Any]:
    """What a state folder's `ingest.json` says; InputError for a folder of something else."""
    note = out / "ingest.json"
    if note.exists():
        told: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        if told.get("version") != VERSION:
            raise InputError(f"{out} was written by another version of guard; choose a new folder")
        return told
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds something else; name an empty folder, or a new one")
    return {"version": VERSION, "logs": []}


def _ingest(
    source: Source,
    out: Path,
    part: Path,
    accounts: Source | None,
    threads: int,
    now: datetime | None,
    before: dict[str, Any],
) -> dict[str, Any]:
    refused = state.Refused(part / "rejects.parquet", out / "rejects.parquet")
    old = state.files(part)
    first = 1 + max((int(path.stem) for path in old), default=-1)
    templates = Templates(out / "templates.parquet")
    counts = dict.fromkeys(COUNTED, 0)
    with state.Days(part / "sketched", first) as days:
        for done in _blocks(source, threads, templates, now):
            days.add(done.sketched)
            refused.add(done.checked.refused)
            counts["read"] += done.sketched.num_rows + done.checked.refused.num_rows
            counts["not calls"] += done.skipped
            counts["cut"] += done.cut
            counts["without zone"] += done.checked.naive
    state.drop_repeats(days.files, old, refused)
    reasons = refused.reasons.copy()
    known = _accounts(accounts, refused, now)
    refused.close()
    kept = state.merged_accounts(out / "accounts.parquet", known)
    if kept is not None:
        pq.write_table(kept, part / "accounts.parquet", compression="zstd")
    pq.write_table(templates.table(), part / "templates.parquet", compression="zstd")
    log = {
        "source": source.shown,
        **counts,
        "kept": sum(pq.read_metadata(path).num_rows for path in days.files if path.exists()),
        "refused": dict(reasons.most_common()),
        "accounts refused": dict((refused.reasons - reasons).most_common()),
    }
    if not log["kept"] and not before["logs"]:
        raise InputError(_nothing(source, reasons))
    return _summary(part, {**before, "logs": [*before["logs"], log]}, kept)


def _nothing(source: Source, reasons: Counter[str]) -> str:
    why = "; ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common(3))
    return f"{source.shown} holds no call that can be used" + (f": {why}" if why else "")


def _blocks(
    source: Source, threads: int, templates: Templates, now: datetime | None
) -> Iterator[_Done]:
    """The log's blocks in order, several of them being worked on at a time."""
    waiting: deque[Future[tuple[_Done, Table]]] = deque()

    def finish() -> _Done:
        done, calls = waiting.popleft().result()
        prompts = calls["prompt"].combine_chunks()
        templates.add(
            done.sketched["skeleton"].combine_chunks(), calls["account"].combine_chunks(), prompts
        )
        return done

    read = blocks(source, CALLS, REQUIRED)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(threads) as pool:
        ahead = reader.submit(next, read, None)
        while (block := ahead.result()) is not None:
            ahead = reader.submit(next, read, None)
            waiting.append(pool.submit(_one, block, now))
            if len(waiting) > threads:
                yield finish()
        while waiting:
            yield finish()


def _one(block: Block, now: datetime | None) -> tuple[_Done, Table]:
    checked = check(block, CALLS, now)
    calls, hashed, repeated = _once(checked.rows)
    refused = pa.concat_tables([checked.refused, repeated])
    prompts = calls["prompt"].combine_chunks()
    columns = {field.name: calls[field.name] for field in CALLS if field.name != "prompt"}
    micros = calls["time"].combine_chunks().cast(pa.int64()).to_numpy()
    columns["hour"] = pa.array((micros // 3_600_000_000).astype(np.int32))
    columns["call"] = pa.array(hashed)
    made = sketch(prompts)
    columns |= {name: made[name] for name in made.schema.names}
    sketched = pa.table(columns, schema=SKETCHED)
    cut = pc.sum(pc.greater(pc.binary_length(prompts), LONGEST)).as_py() or 0
    done = _Done(Checked(calls, refused, checked.naive), sketched, block.skipped, cut)
    return done, calls


def _hashes(ids: Array) -> I64:
    bounds, data = buffers(utf8(ids))
    return hash_each(data[bounds[0] : bounds[-1]], bounds - bounds[0])


def _once(rows: Table) -> tuple[Table, I64, Table]:
    """The rows without those whose id came before among them, the ids' hashes, and the others."""
    hashed = _hashes(rows["call_id"].combine_chunks())
    ordered = np.sort(hashed)
    if not (ordered[1:] == ordered[:-1]).any():
        return rows, hashed, REJECTS.empty_table()
    _, first = np.unique(hashed, return_index=True)
    again = np.ones(len(hashed), np.bool_)
    again[first] = False
    ids = rows["call_id"].filter(pa.array(again)).to_pylist()
    bad: list[Refusal] = [(None, one, state.REPEATED) for one in ids]
    return rows.filter(pa.array(~again)), hashed[~again], rejects(None, bad)


def _accounts(source: Source | None, refused: state.Refused, now: datetime | None) -> Table | None:
    if source is None:
        return None
    tables: list[Table] = []
    for block in blocks(source, ACCOUNTS, ("account",)):
        checked = check(block, ACCOUNTS, now)
        tables.append(checked.rows)
        refused.add(checked.refused)
    table = pa.concat_tables(tables) if tables else ACCOUNTS.empty_table()
    _, first = np.unique(_hashes(table["account"].combine_chunks()), return_index=True)
    if len(first) < table.num_rows:
        again = np.ones(table.num_rows, np.bool_)
        again[first] = False
        names = table["account"].filter(pa.array(again)).to_pylist()
        why = "account repeats an earlier one"
        refused.add(rejects(source.shown, [(None, name, why) for name in names]))
    return table.take(pa.array(np.sort(first)))


def _summary(part: Path, told: dict[str, Any], accounts: Table | None) -> dict[str, Any]:
    """What `ingest.json` says: of each log, and of the whole folder."""
    days: Counter[str] = Counter()
    filled: Counter[str] = Counter()
    for path in state.files(part):
        about = pq.read_metadata(path)
        days[path.parent.name.removeprefix("day=")] += about.num_rows
        for group in range(about.num_row_groups):
            for place, name in enumerate(SKETCHED.names):
                column = about.row_group(group).column(place)
                filled[name] += about.row_group(group).num_rows - column.statistics.null_count
    prompts = filled["prompt"] = filled["exact"]
    blind = [f"no {name}: {what}" for name, what in BLIND.items() if not filled[name]]
    if accounts is None:
        blind.append("no accounts: payment, sign-up, tier, organisation")
    else:
        blind += [
            f"no {name}: {what}"
            for name, what in BLIND_ACCOUNTS.items()
            if accounts[name].null_count == accounts.num_rows
        ]
    told |= {
        "mode": "full" if prompts else "metadata",
        "calls": days.total(),
        "with_prompt": prompts,
        "accounts": None if accounts is None else accounts.num_rows,
        "days": dict(sorted(days.items())),
        "cannot_see": blind,
    }
    return told | {"said": _said(told)}


def _said(told: dict[str, Any]) -> list[str]:
    """The same as a person reads it."""
    log = told["logs"][-1]
    refused = sum(log["refused"].values())
    lines = [f"{log['read']:,} rows read, {log['kept']:,} kept, {refused:,} refused"]
    lines += [f"refused {count:,}: {reason}" for reason, count in log["refused"].items()]
    lines += [f"accounts refused {n:,}: {why}" for why, n in log["accounts refused"].items()]
    if log["not calls"]:
        lines.append(f"{log['not calls']:,} spans are no calls to a model, and left out")
    if log["without zone"]:
        lines.append(f"{log['without zone']:,} times bear no zone; they are read as UTC")
    if log["cut"]:
        lines.append(f"{log['cut']:,} prompts are longer; their first {LONGEST:,} bytes are read")
    if told["mode"] == "metadata":
        lines.append("There is no prompt in the log: only metadata is judged")
    return lines + [f"Not to be seen, {blind}" for blind in told["cannot_see"]]
