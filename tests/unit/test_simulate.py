"""Simulated traffic: the same from the same seed, whole, and with the truth beside it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest

from limbeck.__main__ import main
from limbeck.errors import InputError
from limbeck.guard.simulate import Attack, Plan, attacks, simulate
from limbeck.guard.simulate.draw import CALLS
from limbeck.guard.simulate.honest import kinds
from limbeck.guard.simulate.hostile import chosen
from limbeck.guard.simulate.population import population
from limbeck.guard.simulate.write import batches

pc: Any = pyarrow.compute  # makes its functions at run time
SMALL = Plan(
    accounts=900, days=3, seed=5, truth_calls=True, release=1, attacks=chosen("all", 25, {})
)


def rows(folder: Path, days: str = "day=*") -> pa.Table:
    """All calls, in the order of their ids."""
    files = sorted((folder / "calls").glob(f"{days}/*.parquet"))
    return pa.concat_tables([pq.ParquetFile(f).read() for f in files]).sort_by("call_id")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """SMALL, written once."""
    folder = tmp_path_factory.mktemp("simulated") / "out"
    return folder, simulate(SMALL, folder)


def test_the_same_plan_gives_the_same_rows_however_they_are_cut_into_files(made, tmp_path):
    folder, summary = made
    again = simulate(replace(SMALL, rows_per_file=4_000), tmp_path / "again")
    assert again == summary
    assert len(list((tmp_path / "again").rglob("part-*"))) > len(list(folder.rglob("part-*")))
    assert rows(tmp_path / "again").equals(rows(folder))
    for name in ("accounts", "truth"):
        file = f"{name}.parquet"
        assert pq.read_table(tmp_path / "again" / file).equals(pq.read_table(folder / file))


def test_blocks_drawn_in_another_order_are_the_same(made):
    folder, _ = made
    crowds = population(SMALL)
    later = [batch.calls for batch in batches(SMALL, crowds, 1)]  # day 1 before, and without, day 0
    drawn = pa.concat_tables(reversed(later)).sort_by("call_id")
    assert drawn.equals(rows(folder, "day=2026-03-03"))


def test_another_seed_shares_no_call_and_no_account(made, tmp_path):
    folder, _ = made
    simulate(replace(SMALL, seed=6), tmp_path / "other")
    for column in ("call_id", "account"):
        assert not pc.any(pc.is_in(rows(folder)[column], rows(tmp_path / "other")[column])).as_py()


def test_a_longer_simulation_begins_with_the_days_of_a_shorter_one(tmp_path):
    plan = Plan(accounts=300, days=3, release=1, attacks=(Attack("a", accounts=20),))
    simulate(plan, tmp_path / "short")
    simulate(replace(plan, rows_per_file=99), tmp_path / "long")
    day = "day=2026-03-02"
    assert rows(tmp_path / "long", day).equals(rows(tmp_path / "short", day))


def test_attacks_leave_honest_traffic_as_it_was(made, tmp_path):
    folder, summary = made
    alone = simulate(replace(SMALL, attacks=()), tmp_path / "alone")
    assert alone.honest_calls == summary.honest_calls
    assert alone.hostile_accounts == alone.hostile_calls == alone.cover_calls == 0
    honest = rows(tmp_path / "alone")
    together = rows(folder)
    assert together.filter(pc.is_in(together["account"], honest["account"])).equals(honest)


def test_counts_add_up(made):
    folder, summary = made
    calls, accounts = rows(folder), pq.read_table(folder / "accounts.parquet")
    truth, of_calls = (pq.read_table(folder / f"truth{x}.parquet") for x in ("", "_calls"))
    assert calls.num_rows == summary.honest_calls + summary.cover_calls + summary.hostile_calls
    assert len(calls["call_id"].unique()) == calls.num_rows
    assert accounts.num_rows == summary.honest_accounts + summary.hostile_accounts
    assert summary.honest_accounts == SMALL.accounts
    assert accounts["account"].equals(truth["account"])
    assert len(accounts["account"].unique()) == accounts.num_rows
    assert pc.all(pc.is_in(calls["account"], accounts["account"])).as_py()
    assert sum(truth["hostile_calls"].to_pylist()) == summary.hostile_calls
    assert sum(summary.campaigns.values()) == summary.hostile_calls
    assert pc.sum(of_calls["hostile"]).as_py() == summary.hostile_calls
    hostile = of_calls.filter(of_calls["hostile"]).join(
        calls.select(["call_id", "account"]), "call_id"
    )
    counted = hostile.group_by("account").aggregate([("call_id", "count")])
    beside = counted.join(truth, "account")
    assert beside["call_id_count"].to_pylist() == beside["hostile_calls"].to_pylist()
    honest = truth.filter(pc.is_null(truth["campaign"]))
    assert pc.max(honest["hostile_calls"]).as_py() == 0


def test_calls_keep_the_schema_and_lie_on_their_day_in_their_accounts_life(made):
    folder, _ = made
    files = list((folder / "calls").glob("day=*/*.parquet"))
    assert files
    for file in files:
        table = pq.ParquetFile(file).read()
        assert table.schema.equals(CALLS)
        assert set(pc.strftime(table["time"], "%Y-%m-%d").to_pylist()) == {file.parent.name[4:]}
        times = table["time"].cast(pa.int64()).to_numpy()
        assert (np.diff(times) >= 0).all()
    beside = rows(folder).join(pq.read_table(folder / "accounts.parquet"), "account")
    assert pc.all(pc.greater_equal(beside["time"], beside["created"])).as_py()
    limited = beside.filter(pc.is_valid(beside["max_tokens"]))
    assert pc.all(pc.less_equal(limited["tokens_out"], limited["max_tokens"])).as_py()
    assert pc.min(beside["tokens_out"]).as_py() >= 1


def test_every_kind_is_there_and_a_withheld_one_is_not(made, tmp_path):
    folder, _ = made
    truth = pq.read_table(folder / "truth.parquet")
    names = {kind.NAME for kind in kinds()}
    assert set(truth["kind"].to_pylist()) == names | {"hostile"}
    assert set(truth["campaign"].to_pylist()) == {a.name for a in SMALL.attacks} | {None}
    withheld = ("judge", "single-bot")
    few = chosen("unique", 20, {})
    plan = replace(SMALL, days=1, release=0, without=withheld, attacks=few)
    simulate(plan, tmp_path / "less")
    less = pq.read_table(tmp_path / "less" / "truth.parquet")
    assert set(less["kind"].to_pylist()) == names - set(withheld) | {"hostile"}
    assert pc.sum(pc.not_equal(less["kind"], "hostile")).as_py() == plan.accounts


def test_without_prompts_everything_else_is_the_same(made, tmp_path):
    folder, _ = made
    simulate(replace(SMALL, prompts=False), tmp_path / "bare")
    bare, full = rows(tmp_path / "bare"), rows(folder)
    assert bare["prompt"].null_count == bare.num_rows and full["prompt"].null_count == 0
    assert bare.drop_columns("prompt").equals(full.drop_columns("prompt"))


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--accounts", "0"], "accounts must lie between"),
        (["--days", "0"], "days must lie between"),
        (["--seed", "-1"], "seed must not be negative"),
        (["--cover", "1"], "below 1"),
        (["--cover", "-0.1"], "cover of the attack"),
        (["--per-day", "0"], "per_day of the attack"),
        (["--attacks", "unknown"], "no attack 'unknown'; there are: anthropic-june"),
        (["--attacks", "unique,unique"], "same name"),
        (["--without", "nobody"], "no honest kind 'nobody'; there are: apps"),
        (["--start", "2 March"], "--start 2 March is no date"),
        (["--release", "-1"], "release must be"),
        (["--days", "1", "--release", "1"], "release must be"),
        (["--without", ",".join(kind.NAME for kind in kinds())], "keep at least one"),
        (["--accounts", "5", "--attacks", "framing"], "needs 1 honest accounts"),
    ],
)
def test_a_wrong_option_is_answered_in_one_line(arguments, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["guard", "simulate", "--out", str(tmp_path / "out"), *arguments])
    told = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and says in told and "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        simulate(Plan(accounts=10, days=1), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("knob", ["strength", "stack", "residential", "sync", "pivot", "sticky"])
def test_a_share_beyond_one_is_refused(knob):
    with pytest.raises(InputError, match=knob):
        replace(Attack("a"), **{knob: 1.1})


def test_the_presets_rise_from_weak_to_strong():
    known = attacks()
    assert known["anthropic-june"].accounts == 25_000 and known["anthropic-june"].per_day == 26
    weak, strong = asdict(known["one-template"]), asdict(known["cover-95"])
    for knob in ("cover", "residential"):
        assert weak[knob] < strong[knob]
    for knob in ("payment", "sync", "stack"):
        assert weak[knob] > strong[knob]
