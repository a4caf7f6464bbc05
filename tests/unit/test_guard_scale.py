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
from limbeck.guard.engine import Engine

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
        found = engine.fetch("SELECT call, template FROM templated").to_pylist()
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
    calls, _ = world(9, 3000, [Campaign(300, cover=0.7)], calls=50.0)
    write(calls, tmp_path / "sketched")
    del calls
    least = 24  # MB
    assert _bytes(tmp_path / "sketched") > least * 1_000_000
    found = {}
    for memory in ("2GB", f"{least}MB"):
        with Engine.open(tmp_path / memory, memory=memory, threads=1) as engine:
            engine.read("sketched", [tmp_path / "sketched"])
            scan.keep(engine, "accounts", _no_accounts())
            found[memory] = scan.find(engine)
    plenty, little = found.values()
    assert plenty.keys == little.keys and plenty.keys
    np.testing.assert_array_equal(plenty.campaign, little.campaign)
    np.testing.assert_allclose(plenty.p_value, little.p_value, rtol=1e-9)


def _bytes(folder: Path) -> int:
    return sum(pq.read_metadata(file).row_group(0).total_byte_size for file in folder.rglob("*.parquet"))


def _no_accounts() -> Any:
    from limbeck.guard.schema import ACCOUNTS

    return ACCOUNTS.empty_table()


def test_days_one_by_one_name_the_same_campaign(tmp_path: Path) -> None:
    """Through the commands, with a campaign to find."""
    simulated = ["guard", "simulate", "--out", str(tmp_path / "sim"), "--accounts", "500"]
    simulated += ["--days", "3", "--attacks", "one-template", "--attack-accounts", "60"]
    assert run([*simulated, "--per-day", "30", "--cover", "0.2"]) == 0
    days = sorted((tmp_path / "sim" / "calls").glob("day=*"))
    assert len(days) == 3
    found = [_scan(day, tmp_path / "grown") for day in days][-1]
    whole = _scan(tmp_path / "sim" / "calls", tmp_path / "whole")
    assert whole["campaigns"] and whole["calls"] == found["calls"]
    for name in ("campaigns.json", "accounts.parquet"):
        assert (tmp_path / "grown" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _scan(calls: Path, out: Path) -> dict[str, Any]:
    assert run(["guard", "scan", str(calls), "--out", str(out), "--threads", "1"]) in (0, 1)
    return json.loads((out / "campaigns.json").read_text())
