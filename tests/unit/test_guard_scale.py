"""Logs larger than memory, days that come one by one, and templates as a plain reading has them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from guard_world import Campaign, world, write
from limbeck.__main__ import run
from limbeck.guard import features, scan
from limbeck.guard.arrow import pc
from limbeck.guard.engine import Engine
from limbeck.guard.schema import ACCOUNTS, CALLS

SEVERAL = 3


def test_templates_are_what_a_plain_reading_finds(tmp_path: Path) -> None:
    """Skeletons of three accounts or more; else, of the bands, that which most accounts share."""
    calls, _ = world(3, 120, [Campaign(40, templates=6, paraphrased=True)], calls=20.0)
    write(calls, tmp_path / "sketched")
    with Engine.open(tmp_path / "work", threads=2) as engine:
        engine.read("sketched", [tmp_path / "sketched"])
        scan.prepare(engine)
        numbers = {
            (row["kind"], row["raw"]): (row["template"], row["users"])
            for row in engine.fetch("SELECT * FROM templates").to_pylist()
        }
        found = engine.fetch(
            "SELECT call, template FROM events WHERE template IS NOT NULL"
        ).to_pylist()
    rows = calls.to_pylist()
    users: dict[tuple[int, int], set[str]] = defaultdict(set)
    for row in rows:
        users[0, row["skeleton"]].add(row["account"])
    skeletons = {raw for (_, raw), who in users.items() if len(who) >= SEVERAL}
    loose = [row for row in rows if row["skeleton"] not in skeletons]
    for row in loose:
        for kind, band in enumerate(features.BANDS, 1):
            users[kind, row[band]].add(row["account"])
    shared = {key: len(who) for key, who in users.items() if len(who) >= SEVERAL}
    assert {key: count for key, (_, count) in numbers.items()} == shared
    assert sorted(number for number, _ in numbers.values()) == list(range(1, len(shared) + 1))

    expected = Counter((r["call"], 0, r["skeleton"]) for r in rows if r["skeleton"] in skeletons)
    for row in loose:
        keys = [(kind, row[band]) for kind, band in enumerate(features.BANDS, 1)]
        best = max(keys, key=lambda key: shared.get(key, 0))
        if best in shared:
            expected[row["call"], *best] += 1
    names = {number: key for key, (number, _) in numbers.items()}
    assert Counter((row["call"], *names[row["template"]]) for row in found) == expected
    assert any(kind for _, kind, _ in expected) and len(loose) > len(skeletons)


def test_a_scan_needs_less_memory_than_its_log(tmp_path: Path) -> None:
    calls, _ = world(9, 1500, [Campaign(150, cover=0.7)], calls=50.0)
    again = pa.concat_tables([calls] * 8)
    ids = pa.array(np.random.default_rng(0).integers(-(1 << 62), 1 << 62, again.num_rows))
    write(again.set_column(again.column_names.index("call"), "call", ids), tmp_path / "sketched")
    assert again.nbytes > 2 * 64_000_000
    found: list[scan.Scan] = []
    for memory in ("2GB", "64MB"):
        with Engine.open(tmp_path / memory, memory=memory, threads=1) as engine:
            engine.read("sketched", [tmp_path / "sketched"])
            engine.keep("accounts", ACCOUNTS.empty_table())
            found.append(scan.find(engine))
    plenty, little = found
    for here, there in zip(plenty.layers, little.layers, strict=True):
        np.testing.assert_array_equal(here.family, there.family)
        np.testing.assert_array_equal(here.members, there.members)
        np.testing.assert_allclose(here.p, there.p, rtol=1e-9)
    assert plenty.members.families == little.members.families
    np.testing.assert_array_equal(plenty.members.campaign, little.members.campaign)
    np.testing.assert_allclose(plenty.members.p_value, little.members.p_value, rtol=1e-9)


def test_days_one_by_one_name_the_same_campaign(tmp_path: Path) -> None:
    """Through the commands: what yesterday left, and today's log, are a log of both."""
    calls, _ = world(4, 800, [Campaign(120, cover=0.5, calls=60.0)], days=3, calls=30.0)
    start = int(np.datetime64("2026-03-02", "us").astype(np.int64))
    prompts = [f"k{row['skeleton']} {row['exact']}" for row in calls.to_pylist()]
    time = pa.array(calls["time"].cast(pa.int64()).to_numpy() + start, pa.timestamp("us", "UTC"))
    log = calls.select(["call_id", *CALLS.names[2:10]])
    log = log.append_column("time", time).append_column("prompt", [prompts])
    day = log["time"].cast(pa.date32())
    (tmp_path / "log").mkdir()
    for one in sorted(day.unique().to_pylist()):
        file = tmp_path / "log" / f"{one}.parquet"
        pq.write_table(log.filter(pc.equal(day, pa.scalar(one))), file)
        _scan(file, tmp_path / "grown")
    whole = _scan(tmp_path / "log", tmp_path / "whole")
    assert whole["campaigns"] and whole["calls"] == calls.num_rows
    for name in ("campaigns.json", "accounts.parquet"):
        assert (tmp_path / "grown" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _scan(calls: Path, out: Path) -> dict[str, Any]:
    assert run(["guard", "scan", str(calls), "--out", str(out), "--threads", "1"]) in (0, 1)
    return json.loads((out / "campaigns.json").read_text())
