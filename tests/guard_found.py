"""A scanned world whose names are an adversary's: markup in accounts, clients and templates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from guard_world import Campaign, world, write
from limbeck.__main__ import run
from limbeck.guard.schema import ACCOUNTS

EVIL = "<script>document.title='taken'</script>\"'&<img src=x onerror=\"document.title='taken'\">"
HONEST = 4000


@dataclass(frozen=True)
class Found:
    """A scan's folder, its exit code, what campaigns.json says, and who was hostile."""

    state: Path
    out: Path
    code: int
    told: dict[str, Any]
    hostile: set[str]


def name(number: int) -> str:
    """The spelling of an account."""
    return f"{EVIL}{number}"


def found(folder: Path) -> Found:
    """Write the world, scan it by the command, and give what came of it."""
    table, truth = world(11, HONEST, [Campaign(150, cover=0.6, templates=1)])
    number = np.array([int(one[1:]) for one in table["account"].to_pylist()])
    hostile = truth[number] >= 0
    campus = np.isin(number, np.arange(HONEST // 20))
    network = np.where(hostile, np.char.add("198.51.100.", (number % 4).astype(str)), "")
    carrier = campus | (number % 9 == 0) | (np.arange(len(number)) % 3 == 0)
    network = np.where(carrier, "203.0.113.0/24", network)
    network = np.where(network == "", np.char.add("home ", number.astype(str)), network)
    columns = {
        "account": pa.array([name(one) for one in number.tolist()]),
        "network": pa.array(network.tolist()),
        "asn": pa.array(np.where(hostile, "AS64500", "64496").tolist()),
        "client": pa.array([one + EVIL for one in table["client"].to_pylist()]),
    }
    for key, values in columns.items():
        table = table.set_column(table.column_names.index(key), key, values)
    state = folder / "state"
    write(table, state / "sketched")
    of = np.arange(HONEST + 150)
    accounts = {
        "account": pa.array([name(one) for one in of.tolist()]),
        "created": pa.array(1_760_000_000_000_000 + of * 3_600_000_000, pa.timestamp("us", "UTC")),
        "payment": pa.array([f"{EVIL}{one // 30}" for one in of.tolist()]),
        "email_domain": pa.array([f"{EVIL}.example"] * len(of)),
    }
    joined = [f"{EVIL} programme" if one >= HONEST else "web" for one in of.tolist()]
    accounts |= {n: pa.nulls(len(of), pa.string()) for n in ("tier", "organisation")}
    accounts |= {"channel": pa.array(joined)}
    known = pa.table(accounts).select(ACCOUNTS.names)
    pq.write_table(known.cast(ACCOUNTS), state / "accounts.parquet")
    common, calls = np.unique(table["skeleton"].to_numpy(), return_counts=True)
    often = np.argsort(-calls)[:500]
    texts = {
        "skeleton": common[often],
        "text": pa.array([f"explain … {EVIL} {k}" for k in often.tolist()]),
        "calls": calls[often],
    }
    pq.write_table(pa.table(texts), state / "templates.parquet")
    ingested = {
        "version": 1,
        "mode": "full",
        "calls": table.num_rows,
        "with_prompt": table.num_rows - 7,
        "cannot_see": [f"no session: sessions {EVIL}"],
        "logs": [
            {"source": "a", "refused": {"time is missing": 3}, "cut": 2},
            {"source": "b", "refused": {"time is missing": 1, f"{EVIL}": 1}, "cut": 0},
        ],
    }
    (state / "ingest.json").write_text(json.dumps(ingested))
    out = folder / "out"
    code = run(["guard", "scan", str(state), "--out", str(out), "--threads", "1"])
    told = json.loads((out / "campaigns.json").read_text())
    return Found(state, out, code, told, {name(i) for i in np.flatnonzero(truth >= 0).tolist()})
