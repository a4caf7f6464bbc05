"""What a scan says that a campaign took, beside calls of which the truth is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from limbeck.guard import findings, members, scan, taken
from limbeck.guard.arrow import pa
from limbeck.guard.engine import Engine
from limbeck.guard.logs import ingest
from limbeck.guard.members import FLAG
from limbeck.guard.readers.source import Source
from limbeck.guard.simulate import Attack, Plan, simulate

HALF = Attack("half", accounts=200, per_day=14, cover=0.75, stack=0.5, wordings=5, strength=0.2)
"""Half of its accounts work through the set-up of their cover, so no family holds their work."""


@dataclass(frozen=True)
class Scene:
    """An engine after a scan, with the truth as `truth_calls`; and what campaigns.json says.

    `firm` has the accounts (bool) that belong to each named family beyond doubt.
    """

    engine: Engine
    found: scan.Scan
    firm: dict[tuple[str, int], np.ndarray]
    told: dict[str, Any]
    hostile: set[str]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("taken")
    sim, state = folder / "sim", folder / "state"
    simulate(Plan(accounts=1500, seed=4, attacks=(HALF,), truth_calls=True), sim)
    accounts = sim / "accounts.parquet"
    ingest(Source(str(sim / "calls")), state, accounts=Source(str(accounts)), threads=1)
    truth = pq.read_table(sim / "truth.parquet").to_pylist()
    with Engine.open(folder / "work", threads=1) as engine:
        for name, path in {
            "sketched": state / "sketched",
            "accounts": state / "accounts.parquet",
            "texts": state / "templates.parquet",
            "truth_calls": sim / "truth_calls.parquet",
        }.items():
            engine.read(name, [path])
        found = scan.find(engine)
        firm: dict[tuple[str, int], np.ndarray] = {}
        for row in engine.fetch("SELECT * FROM firm").to_pylist():
            one = firm.setdefault(
                (row["layer"], row["family"]), np.zeros_like(found.members.campaign, bool)
            )
            one[row["aid"]] = True
        told, _, _ = findings.write(engine, found, folder, findings.Price(), {})
        hostile = {row["account"] for row in truth if row["campaign"]}
        yield Scene(engine, found, firm, told, hostile)


def _calls(scene: Scene) -> dict[str, np.ndarray]:
    """Of each call of a member: whether it is hostile, is counted, and lies in no family."""
    rows = scene.engine.fetch("""SELECT t.hostile, coalesce(k.alike, -1) AS alike
        FROM events e JOIN members m ON m.aid = e.aid JOIN sketched c ON c.call = e.call
        JOIN truth_calls t ON t.call_id = c.call_id LEFT JOIN taken k ON k.call = e.call""")
    hostile, alike = (rows[name].to_numpy(zero_copy_only=False) for name in ("hostile", "alike"))
    return {"hostile": hostile.astype(bool), "taken": alike >= 0, "alike": alike == 1}


def test_most_of_what_members_took_is_counted_and_little_of_their_cover(scene: Scene) -> None:
    calls = _calls(scene)
    hostile, taken = calls["hostile"], calls["taken"]
    within = taken & ~calls["alike"]
    assert hostile.sum() > 1000
    assert taken[hostile].mean() > within[hostile].mean() + 0.1
    assert taken[hostile].mean() > 0.75
    assert hostile[taken].mean() > 0.85


def test_the_figures_are_those_of_these_calls(scene: Scene) -> None:
    calls = _calls(scene)
    campaigns = scene.told["campaigns"]
    assert sum(one["calls"] for one in campaigns) == calls["taken"].sum()
    assert sum(one["calls_alike"] for one in campaigns) == calls["alike"].sum()
    assert sum(one["calls_with_cover"] for one in campaigns) == len(calls["taken"])
    for one in campaigns:
        assert len(scene.hostile & set(one["members"])) > 0.95 * one["accounts"]
        assert sum(day["calls"] for day in one["timeline"]) == one["calls"]
        assert sum(one["capabilities"]["calls"].values()) == one["calls"]


def test_a_layer_less_leaves_the_members_that_others_hold(scene: Scene) -> None:
    found = scene.found.members
    for one, number in zip(scene.told["campaigns"], np.unique(found.campaign)[1:], strict=True):
        mine = found.campaign == number
        families = found.families[number]
        layers = {layer for layer, _ in families}
        assert one["linked_without"].keys() == one["evidence"].keys() == layers
        for layer in layers:
            seen, without = one["evidence"][layer], one["linked_without"][layer]
            firm = np.any([scene.firm[key] for key in families if key[0] == layer], axis=0)
            assert 0 < seen["firm"] == (firm & mine).sum() <= seen["members"] <= mine.sum()
            others = [key for key in families if key[0] != layer]
            left = [scene.firm[key] for key in others]
            left += [found.evidence[of] <= FLAG for of, _ in others]
            assert without["links"] == bool(left)
            assert without["share"] == round(np.any(left, axis=0)[mine].mean(), 4) if left else 0
    assert any(len(one["evidence"]) > 1 for one in scene.told["campaigns"])


def test_a_campaign_of_which_no_call_is_counted_has_totals_all_the_same(tmp_path: Path) -> None:
    calls = {"campaign": [0, 0, 1], "hour": [7, 9, 8], "tokens_in": [1, 2, 3]}
    calls |= {"tokens_out": [10, 20, 30], "alike": [0, 1, 0]}
    theirs = pa.table(calls)
    with Engine.open(tmp_path / "work") as engine:
        engine.keep("theirs", theirs)
        engine.keep("taken", theirs.slice(1, 1))
        rows = engine.fetch(taken.totals() + " ORDER BY campaign").to_pylist()
    some = {"calls": 1, "tokens_in": 2, "tokens_out": 20, "alike": 1, "first": 9, "last": 9}
    none = {"calls": 0, "tokens_in": 0, "tokens_out": 0, "alike": 0, "first": 8, "last": 8}
    assert rows == [{"campaign": 0} | some, {"campaign": 1} | none]


def test_a_scan_says_where_it_stopped_looking(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = scene.engine.fetch("SELECT calls FROM volumes ORDER BY aid")["calls"].to_numpy()
    monkeypatch.setattr(members, "MOST", len(scene.told["campaigns"]))
    cut = members.assign(scene.engine, scene.found.layers, volume, 0.05)
    told, _, _ = findings.write(
        scene.engine, replace(scene.found, members=cut), tmp_path, findings.Price(), {}
    )
    assert any("campaigns no more were looked for" in line for line in told["warnings"])
    assert not any("looked for" in line for line in scene.told["warnings"])
    assert told["campaigns"] == scene.told["campaigns"]
