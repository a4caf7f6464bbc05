"""What a scan says that a campaign took, beside calls of which the truth is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from limbeck.guard import findings, profile, scan
from limbeck.guard.arrow import Table
from limbeck.guard.engine import Engine
from limbeck.guard.logs import ingest
from limbeck.guard.readers.source import Source
from limbeck.guard.simulate import Attack, Plan, simulate

HALF = Attack("half", accounts=200, per_day=14, cover=0.75, stack=0.5, wordings=5, strength=0.2)
"""Half of its accounts work through the set-up of their cover, so no family holds their work."""


@dataclass(frozen=True)
class Scene:
    """An engine after a scan, with the truth as `truth_calls`; and what campaigns.json says."""

    engine: Engine
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
        with pytest.MonkeyPatch.context() as patch:
            kept = _learning(patch)
            found = scan.find(engine)
        scan.keep(engine, "learnt", profile.learnt(dict(enumerate(kept))))
        told, _, _ = findings.write(engine, found, folder, findings.Price(), {})
        yield Scene(engine, told, {row["account"] for row in truth if row["campaign"]})


def _learning(patch: pytest.MonkeyPatch) -> list[tuple[Table, dict[str, int]]]:
    """The weights of each campaign, in the order of their numbers."""
    kept: list[tuple[Table, dict[str, int]]] = []
    weights = profile.weights

    def noted(*given: Any) -> tuple[Table, dict[str, int]]:
        kept.append(weights(*given))
        return kept[-1]

    patch.setattr(profile, "weights", noted)
    return kept


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
