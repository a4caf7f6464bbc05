"""`limbeck guard scan` from a log, or a state folder, to what was found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from limbeck.errors import InputError
from limbeck.files import put_back, write_text
from limbeck.guard import findings, logs, report, scan, stix
from limbeck.guard import state as kept
from limbeck.guard.engine import Engine, Kind
from limbeck.guard.inbox import Ledger, seen_in
from limbeck.guard.readers.source import Source
from limbeck.guard.schema import ACCOUNTS
from limbeck.guard.templates import TEMPLATES
from limbeck.progress import say

WORK = ".limbeck-work"
STEPS = {
    "link": "who uses the same templates, more than chance would have it",
    "test": "which groups share out work as people do not",
    "score": "which accounts belong to them",
}


def state_of(source: Source, out: Path, accounts: Source | None, threads: int) -> Path:
    """The state folder to scan: `source` itself where it is one, else `out`/state, which grows.

    What is read is noted, so that a watch over the same folder does not read it again.
    """
    folder = Path(source.where)
    put_back(folder)
    if (folder / "ingest.json").exists():
        if accounts is not None:
            raise InputError(f"{folder} is a state folder: give --accounts to guard ingest instead")
        return folder
    state = out / "state"
    put_back(state)
    with Ledger(out, state).taking(seen_in(source), state):
        logs.ingest(source, state, accounts=accounts, threads=threads)
    return state


def walk(
    state: Path, out: Path, price: findings.Price, *, kind: Kind, memory: str, threads: int
) -> dict[str, Any]:
    """Scan a state folder; writes into `out`, and gives what campaigns.json says."""
    files = kept.files(state)
    if not files:
        raise InputError(f"{state} holds no calls; first: limbeck guard ingest LOG --out {state}")
    told: dict[str, Any] = json.loads((state / "ingest.json").read_text(encoding="utf-8"))
    work = out / WORK
    shutil.rmtree(work, ignore_errors=True)
    try:
        with Engine.open(work, kind=kind, memory=memory, threads=threads) as engine:
            engine.read("sketched", files)
            known = state / "accounts.parquet"
            if known.exists():
                engine.read("accounts", [known])
            else:
                engine.keep("accounts", ACCOUNTS.empty_table())
            texts = state / "templates.parquet"
            if texts.exists():
                engine.read("texts", [texts])
            else:
                engine.keep("texts", TEMPLATES.empty_table())
            found = scan.find(engine, say=lambda step: say(f"{step:>9}  {STEPS[step]}"))
            document, campaigns, log = findings.write(engine, found, out, price, told)
            write_text(out / "report.html", report.page(document, campaigns, log))
            write_text(out / "campaigns.stix.json", stix.bundle(document, campaigns))
            return document
    finally:
        shutil.rmtree(work, ignore_errors=True)
