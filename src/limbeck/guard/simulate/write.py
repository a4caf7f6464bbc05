"""A simulation on disk: calls a day, accounts, and the truth beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import numpy as np

from limbeck.errors import InputError
from limbeck.files import whole_file, whole_folder
from limbeck.guard.arrow import Array, Table, pa, pq
from limbeck.guard.simulate.draw import CALLS, Clock, draw
from limbeck.guard.simulate.keys import Ints, spelt
from limbeck.guard.simulate.plan import Plan
from limbeck.guard.simulate.population import Crowd, accounts_table, population
from limbeck.progress import Meter, stage_bar

BLOCK = 2_048  # accounts in one stream of random numbers: part of what a seed means


@dataclass(slots=True)
class Summary:
    """What was written."""

    honest_accounts: int = 0
    hostile_accounts: int = 0
    honest_calls: int = 0
    cover_calls: int = 0  # honest ones of hostile accounts
    hostile_calls: int = 0
    campaigns: dict[str, int] = field(default_factory=dict[str, int])  # hostile calls of each


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Calls of one block on one day, their crowd and places in it; `hostile` all or none."""

    calls: Table
    crowd: int
    at: Ints
    hostile: bool


def batches(plan: Plan, crowds: list[Crowd], day: int) -> Iterator[_Batch]:
    """All calls of a day, block by block; each block is drawn on its own, whatever the order."""
    clock = Clock(_micros(plan), plan.release_day)
    for number, crowd in enumerate(crowds):
        name = crowd.campaign or crowd.kind
        for hostile, habits in ((False, crowd.habits), (True, crowd.work)):
            for block in range(0, 0 if habits is None else len(habits), BLOCK):
                assert habits is not None
                unit = (plan.seed, name, crowd.kind, hostile, block)
                rows = habits.rows(slice(block, block + BLOCK))
                calls, at = draw(rows, day, clock, unit, plan.prompts)
                if calls.num_rows:
                    yield _Batch(calls, number, at + block, hostile)


def simulate(plan: Plan, out: Path) -> Summary:
    """Write `plan` to the folder `out`, which must be new or empty.

    `calls/day=YYYY-MM-DD/*.parquet`, `accounts.parquet` and `truth.parquet` (account, kind,
    campaign, hostile calls); with `truth_calls` also `truth_calls.parquet` (call_id, hostile).
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already and not empty; name a new folder")
    crowds = population(plan)
    hostile = [np.zeros(len(crowd.habits), dtype=np.int64) for crowd in crowds]
    summary = Summary()
    with whole_folder(out) as part, stage_bar("simulate", plan.days, "days") as bar:
        truths = _Truths(part / "truth_calls.parquet") if plan.truth_calls else None
        for day in range(plan.days):
            folder = part / "calls" / f"day={plan.start + timedelta(day)}"
            folder.mkdir(parents=True)
            _write_day(plan, crowds, day, folder, hostile, summary, truths, bar)
            bar.advance(1)
        if truths:
            truths.close()
        _write_accounts(plan, crowds, hostile, part, summary)
    return summary


def _write_day(
    plan: Plan, crowds: list[Crowd], day: int, folder: Path, hostile: list[Ints],
    summary: Summary, truths: _Truths | None, bar: Meter,
) -> None:  # fmt: skip
    held: list[Table] = []
    files, rows = 0, 0
    for batch in batches(plan, crowds, day):
        if batch.hostile:
            hostile[batch.crowd] += np.bincount(batch.at, minlength=len(hostile[batch.crowd]))
            summary.hostile_calls += batch.calls.num_rows
        elif crowds[batch.crowd].campaign:
            summary.cover_calls += batch.calls.num_rows
        else:
            summary.honest_calls += batch.calls.num_rows
        if truths:
            truths.add(batch.calls["call_id"], batch.hostile)
        held.append(batch.calls)
        rows += batch.calls.num_rows
        told = summary.honest_calls + summary.cover_calls + summary.hostile_calls
        bar.advance(note=f"{told:,} calls, {told / bar.seconds:,.0f}/s")
        if rows >= plan.rows_per_file:
            _write_calls(held, folder / f"part-{files:05}.parquet")
            files, rows = files + 1, 0
            held.clear()
    if held or not files:
        _write_calls(held, folder / f"part-{files:05}.parquet")


def _write_calls(held: list[Table], path: Path) -> None:
    calls = pa.concat_tables(held).combine_chunks() if held else CALLS.empty_table()
    order = np.argsort(calls["time"].cast(pa.int64()).to_numpy(), kind="stable")
    plain = ["call_id", "session", "prompt", "time", "tokens_in"]
    pq.write_table(
        calls.take(pa.array(order)),
        path,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in CALLS.names if name not in plain],  # pyright: ignore[reportArgumentType]
    )


class _Truths:
    """Which calls are hostile, written as they come."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(
            path, pa.schema([("call_id", pa.string()), ("hostile", pa.bool_())])
        )

    def add(self, ids: Array, hostile: bool) -> None:
        """All of these are, or none."""
        flags = pa.array(np.full(len(ids), hostile))
        self._writer.write_table(pa.table({"call_id": ids, "hostile": flags}))

    def close(self) -> None:
        """End the file."""
        self._writer.close()


def _write_accounts(
    plan: Plan, crowds: list[Crowd], hostile: list[Ints], out: Path, summary: Summary
) -> None:
    """Accounts in the order of their ids, which says nothing about them, and the truth."""
    accounts = pa.concat_tables([accounts_table(c.habits, _micros(plan)) for c in crowds])
    truth = pa.concat_tables([_truth(c, h) for c, h in zip(crowds, hostile, strict=True)])
    for name, table in (("accounts", accounts), ("truth", truth)):
        with whole_file(out / f"{name}.parquet") as part:
            pq.write_table(table.sort_by("account"), part, compression="zstd")
    for crowd, calls in zip(crowds, hostile, strict=True):
        if crowd.campaign is None:
            summary.honest_accounts += len(crowd.habits)
        else:
            summary.hostile_accounts += len(crowd.habits)
            summary.campaigns[crowd.campaign] = int(calls.sum())


def _truth(crowd: Crowd, hostile: Ints) -> Table:
    n = len(crowd.habits)
    return pa.table(
        {
            "account": spelt(crowd.habits.who, "acc-"),
            "kind": pa.array([crowd.kind] * n, pa.string()),
            "campaign": pa.array([crowd.campaign] * n, pa.string()),
            "hostile_calls": pa.array(hostile),
        }
    )


def _micros(plan: Plan) -> int:
    return int(datetime.combine(plan.start, time(), UTC).timestamp()) * 1_000_000
