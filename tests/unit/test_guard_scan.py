"""`limbeck guard scan`, from calls to campaigns: small worlds, and logs with nothing in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guard_world import Campaign, world, write
from limbeck.__main__ import run
from limbeck.guard.arrow import pc

CAMPAIGNS = [
    Campaign(200, cover=0.75, templates=1),
    Campaign(200, cover=0.9, templates=20, flat=True),
]


def _state(folder: Path, campaigns: list[Campaign], accounts: int = 2000, seed: int = 5) -> Any:
    table, truth = world(seed, accounts, campaigns)
    write(table, folder / "sketched")
    (folder / "ingest.json").write_text('{"version": 1, "logs": []}')
    return table, truth


def _scan(state: Path, out: Path) -> tuple[int, dict[str, Any]]:
    code = run(["guard", "scan", str(state), "--out", str(out), "--threads", "1"])
    return code, json.loads((out / "campaigns.json").read_text())


def _flags(out: Path, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = pq.read_table(out / "accounts.parquet")
    number = [int(name[1:]) for name in rows["account"].to_pylist()]
    return rows["flagged"].to_numpy(zero_copy_only=False), truth[number]


def test_campaigns_are_found_and_nobody_honest_is_flagged(tmp_path: Path) -> None:
    _, truth = _state(tmp_path / "state", CAMPAIGNS)
    code, told = _scan(tmp_path / "state", tmp_path / "out")
    flagged, of = _flags(tmp_path / "out", truth)
    assert code == 1
    assert not flagged[of < 0].any()
    for campaign in range(2):
        assert flagged[of == campaign].mean() > (0.75, 0.35)[campaign]
    assert len(told["campaigns"]) == 2
    assert sum(one["accounts"] for one in told["campaigns"]) == flagged.sum() == told["flagged"]
    for one in told["campaigns"]:
        members = truth[[int(name[1:]) for name in one["members"]]]
        assert len(set(members.tolist())) == 1
        assert sum(day["calls"] for day in one["timeline"]) == one["calls"]
        assert sum(one["capabilities"]["calls"].values()) == one["calls"]
        assert one["evidence"] and one["confidence"]["p_value"] < 0.05
    assert run(["guard", "explain", str(tmp_path / "out"), told["campaigns"][0]["members"][0]]) == 0


def test_campaigns_through_one_set_up_are_told_apart(tmp_path: Path) -> None:
    several = [
        Campaign(200, cover=0.5, templates=1, through=150),
        Campaign(150, cover=0.6, templates=12, skill=5, calls=60.0, through=150),
        Campaign(120, cover=0.3, templates=4, skill=1, calls=150.0, through=150),
    ]
    _, truth = _state(tmp_path / "state", several)
    _, told = _scan(tmp_path / "state", tmp_path / "out")
    flagged, of = _flags(tmp_path / "out", truth)
    assert flagged[of < 0].sum() <= 1
    for campaign in range(3):
        assert flagged[of == campaign].mean() > 0.7
    assert len(told["campaigns"]) == 3
    for one in told["campaigns"]:
        members = truth[[int(name[1:]) for name in one["members"]]]
        assert np.unique(members, return_counts=True)[1].max() > 0.95 * len(members)
        assert one["confidence"]["p_value"] < 0.05


def test_a_public_list_that_each_runs_for_itself_is_no_campaign(tmp_path: Path) -> None:
    """As even as a dispatcher's accounts, through one set-up; but nothing is divided."""
    calls, _ = world(5, 1200, [Campaign(100, cover=0.3, templates=0, through=150)])
    work, _ = world(8, 50, [Campaign(40, cover=0.0, templates=1, calls=200.0, through=150)])
    runs = work.filter(pc.is_in(work["account"], pa.array([f"a{n}" for n in range(50, 90)])))
    exact = np.arange(runs.num_rows) % 200 + 77_000
    names = pc.replace_substring_regex(runs["account"], "^a", "bench")
    for name, column in (("exact", pa.array(exact)), ("account", names)):
        place = runs.schema.get_field_index(name)
        runs = runs.set_column(place, name, column)
    write(pa.concat_tables([calls, runs]), tmp_path / "state" / "sketched")
    (tmp_path / "state" / "ingest.json").write_text('{"version": 1, "logs": []}')
    code, told = _scan(tmp_path / "state", tmp_path / "out")
    members = {name for one in told["campaigns"] for name in one["members"]}
    assert code == 1 and len(members) > 50
    assert not any(name.startswith("bench") for name in members)


def test_honest_traffic_alone_names_nobody(tmp_path: Path) -> None:
    for seed in (6, 7):
        _state(tmp_path / f"{seed}", [], accounts=1200, seed=seed)
        code, told = _scan(tmp_path / f"{seed}", tmp_path / f"out{seed}")
        assert (code, told["flagged"], told["campaigns"]) == (0, 0, [])


def test_the_order_of_rows_and_files_changes_nothing(tmp_path: Path) -> None:
    table, _ = _state(tmp_path / "one", CAMPAIGNS[:1], accounts=1500)
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    half = shuffled.num_rows // 2
    for place, part in (("a", shuffled.slice(0, half)), ("b", shuffled.slice(half))):
        write(part, tmp_path / "two" / "sketched" / place)
    (tmp_path / "two" / "ingest.json").write_text('{"version": 1, "logs": []}')
    first, second = (_scan(tmp_path / name, tmp_path / f"o{name}")[1] for name in ("one", "two"))
    assert first == second
    assert first["flagged"] > 0


@pytest.mark.parametrize(
    ("accounts", "calls", "prompt"),
    [(1, 200, "same"), (300, 1, "own"), (50, 5, "same"), (50, 5, ""), (1, 1, "same")],
)
def test_a_log_with_little_in_it_is_a_plain_no(
    tmp_path: Path, accounts: int, calls: int, prompt: str
) -> None:
    rows = [
        {
            "call_id": f"{a}-{c}",
            "time": f"2026-03-0{1 + c % 5}T10:00:{c % 60:02d}Z",
            "account": f"o'b--{a}",
            "model": "m",
            "tokens_in": 5,
            "tokens_out": 7,
        }
        | ({"prompt": f"Tell me about {prompt} {a if prompt == 'own' else ''}"} if prompt else {})
        for a in range(accounts)
        for c in range(calls)
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(map(json.dumps, rows)))
    code, told = _scan(log, tmp_path / "out")
    assert (code, told["accounts"], told["calls"]) == (0, accounts, accounts * calls)
    assert run(["guard", "explain", str(tmp_path / "out"), "o'b--0"]) == 0


def test_a_day_more_equals_both_days_at_once(tmp_path: Path) -> None:
    rows = [
        {
            "call_id": f"{day}-{n}",
            "time": f"2026-03-0{day}T{n % 24:02d}:00:00Z",
            "account": f"a{n % 40}",
            "model": "m",
            "prompt": f"Explain step by step how to solve number {n}",
            "tokens_in": 9,
            "tokens_out": 9,
        }
        for day in (1, 2)
        for n in range(400)
    ]
    for name, part in (("one", rows[:400]), ("two", rows[400:]), ("both", rows)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    _scan(tmp_path / "one.jsonl", tmp_path / "grown")
    _scan(tmp_path / "two.jsonl", tmp_path / "grown")
    _scan(tmp_path / "both.jsonl", tmp_path / "whole")
    for name in ("campaigns.json", "accounts.parquet"):
        assert (tmp_path / "grown" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_mistakes_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["guard", "explain", str(tmp_path), "a"]) == 2
    assert "first: limbeck guard scan" in capsys.readouterr().err.replace("\n", " ")
    _state(tmp_path / "state", [], accounts=100)
    assert run(["guard", "scan", str(tmp_path / "state"), "--out", str(tmp_path / "out")]) == 0
    assert run(["guard", "explain", str(tmp_path / "out"), "' OR 1=1 --"]) == 2
