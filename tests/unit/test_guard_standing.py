"""What is known of accounts: odds recovered from known shares, and what they add to a scan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.__main__ import run
from limbeck.guard import bags, standing
from limbeck.guard.engine import Engine
from limbeck.guard.simulate import Attack, Plan, simulate


def _odds(folder: Path, order: np.ndarray) -> np.ndarray:
    """Of 4,000 accounts in this order: a tenth, and half of 200 firm ones, joined by a programme.

    All calls are alike, and so are all else that is known.
    """
    n = len(order)
    aid = np.arange(n)[order]
    channel = np.where(aid % 10 == 0, "education", "web")
    channel[aid < 200] = np.where(aid[aid < 200] % 2 == 0, "education", "web")
    channel = [None if a == n - 1 else c for a, c in zip(aid, channel.tolist(), strict=True)]
    calls = pa.array(np.repeat(aid, 2))
    with Engine.open(folder, threads=1) as engine:
        engine.keep("events", pa.table({"aid": calls, "hour": pa.array(np.tile([0, 30], n))}))
        engine.keep("homes", pa.table({"aid": aid, "networks": [1] * n, "home": ["here"] * n}))
        same = {"signup": [-10] * n, "email_domain": ["post.example"] * n, "tier": ["free"] * n}
        none = {name: pa.nulls(n, pa.string()) for name in ("payment", "organisation")}
        engine.keep("known", pa.table({"aid": aid, "channel": channel, **same, **none}))
        engine.table("paces", standing.paces(engine))
        engine.table("stood", standing.stood())
        return standing.odds(engine, np.arange(n) < 200)


def test_odds_are_how_much_oftener_the_core_has_a_trait(tmp_path: Path) -> None:
    told = _odds(tmp_path, np.arange(4_000))
    # Education: 480 of 3,999 accounts, half of the core; web: the rest. Ten accounts like
    # everybody's stand beside the core's 200, and one in ten of its own may be like everybody.
    assert told[210] == pytest.approx(np.log(0.1 + 0.9 * 0.5 / 0.12), abs=0.06)
    assert told[211] == pytest.approx(np.log(0.1 + 0.9 * 0.5 / 0.88), abs=0.06)
    assert told[3_999] == pytest.approx(0, abs=1e-3)  # nothing is known, and all else is alike
    assert len(np.unique(told)) == 3


def test_an_unknown_sign_up_is_no_new_account(tmp_path: Path) -> None:
    signup = [0] * 200 + [-300] * 1_900 + [None] * 1_900  # spans of three days
    n = len(signup)
    with Engine.open(tmp_path, threads=1) as engine:
        engine.keep("events", pa.table({"aid": range(n), "hour": [0] * n}))
        engine.keep("homes", pa.table({"aid": range(n), "networks": [1] * n, "home": ["h"] * n}))
        none = {name: pa.nulls(n, pa.string()) for name in ("email_domain", "channel", "tier")}
        none |= {name: pa.nulls(n, pa.string()) for name in ("payment", "organisation")}
        engine.keep("known", pa.table({"aid": range(n), "signup": signup, **none}))
        engine.table("paces", standing.paces(engine))
        engine.table("stood", standing.stood())
        told = standing.odds(engine, np.arange(n) < 200)
    assert told[:200].min() > 1 and told[200:2_100].max() < -1
    assert np.abs(told[2_100:]).max() < 0.01


def test_what_is_told_of_long_logs_and_busy_accounts_is_plain() -> None:
    assert standing.said("days", "4000") == "calls on 4000 days"
    assert standing.said("calls", "60") == "1,048,576 to 1,321,123 calls in all"
    assert standing.said("age", "0") == "signed up 0 to 0 days before the log begins"


def test_the_order_of_accounts_changes_no_odds(tmp_path: Path) -> None:
    first = _odds(tmp_path / "one", np.arange(4_000))
    again = _odds(tmp_path / "two", np.random.default_rng(0).permutation(4_000))
    np.testing.assert_array_equal(first, again)


def test_what_is_beside_a_bag_tilts_the_scale_and_keeps_p_values_honest() -> None:
    rng = np.random.default_rng(1)
    honest, members = 6_000, 300
    sizes = rng.integers(40, 160, honest + members)
    laws = [[20, 1, 0.4], [18, 2, 1.0]]  # honest and hostile bags differ little
    law = [laws[0]] * honest + [laws[1]] * members
    held = [rng.multinomial(k, rng.dirichlet(a)) for k, a in zip(sizes, law, strict=True)]
    hostile = np.arange(honest + members) >= honest
    firm = hostile & (rng.random(honest + members) < 0.4)
    seen = rng.random(honest + members) < np.where(hostile, 0.9, 0.01)
    beside = np.where(seen, np.log(0.9 / 0.01), np.log(0.1 / 0.99))
    table = np.array(held, float)
    without = bags.belonging(table, firm, 50_000)
    told = bags.belonging(table, firm, 50_000, 1.0, None, beside)
    left = hostile & ~firm
    assert (told.p[left] <= 1e-3).mean() > (without.p[left] <= 1e-3).mean() + 0.3
    assert (told.p[~hostile] <= 1e-3).sum() <= 1.5 * 1e-3 * 50_000


def _recall(out: Path, sim: Path, calls: Path, *more: str) -> tuple[float, int]:
    """Of the campaign, and how many honest accounts are named."""
    assert run(["guard", "scan", str(calls), "--out", str(out), "--threads", "1", *more]) == 1
    truth = {
        row["account"]: row["campaign"] for row in pq.read_table(sim / "truth.parquet").to_pylist()
    }
    rows = pq.read_table(out / "accounts.parquet").to_pylist()
    hostile = [row["flagged"] for row in rows if truth[row["account"]]]
    return sum(hostile) / len(hostile), sum(row["flagged"] for row in rows) - sum(hostile)


def test_members_that_keep_their_covers_set_up_are_told_by_who_they_are(tmp_path: Path) -> None:
    campaign = Attack(
        "half", accounts=150, per_day=14, cover=0.75, stack=0.5, wordings=0, residential=0.7,
        payment=1, daylight=0.5, wobble=0.3,
    )  # fmt: skip
    sim = tmp_path / "sim"
    simulate(Plan(accounts=1500, seed=11, attacks=(campaign,)), sim)
    for part in (sim / "calls").rglob("*.parquet"):
        bare = tmp_path / "bare" / part.relative_to(sim)
        bare.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pq.ParquetFile(part).read().drop_columns(["network", "asn"]), bare)
    blank, none = _recall(tmp_path / "0", sim, tmp_path / "bare" / "calls")
    told, some = _recall(
        tmp_path / "1", sim, sim / "calls", "--accounts", str(sim / "accounts.parquet")
    )
    assert told > blank + 0.05
    assert told > 0.8
    assert max(none, some) <= 1
