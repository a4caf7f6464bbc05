"""What is drawn follows what is asked for, and cover looks like honest traffic call by call."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from limbeck.guard.simulate import Attack, Plan, campaign, shapes, simulate
from limbeck.guard.simulate.honest import kinds
from limbeck.guard.simulate.keys import below, fraction, key_of, mix, spelt, stream
from limbeck.guard.simulate.text import grammar

TRACES = Path(os.environ.get("LIMBECK_TRACES", Path(__file__).parents[3] / "shared" / "data"))
FILES = {
    "conversation": "azure-llm-2023-conv.csv",
    "code": "azure-llm-2023-code.csv",
    "long": "mooncake-conversation.jsonl",
}


def mixture_cdf(parts, x):
    return sum(w * stats.norm.cdf(x, mu, sigma) for w, mu, sigma in parts)


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_tokens_follow_the_mixture(name):
    row = np.full(20_000, shapes.SHAPES.index(name))
    for table in (shapes.TOKENS_IN, shapes.TOKENS_OUT):
        drawn = np.log(shapes.tokens(table, row, stream("test", name)))
        assert stats.kstest(drawn, lambda x, t=table: mixture_cdf(t[name], x)).pvalue > 1e-3


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_the_mixture_follows_the_published_trace(name):
    path = TRACES / FILES[name]
    if not path.exists():
        pytest.skip(f"no {path.name}; name its folder in LIMBECK_TRACES")
    if path.suffix == ".csv":
        with path.open() as file:
            pairs = [(r["ContextTokens"], r["GeneratedTokens"]) for r in csv.DictReader(file)]
    else:
        found = map(json.loads, path.read_text().splitlines())
        pairs = [(r["input_length"], r["output_length"]) for r in found]
    for table, column in ((shapes.TOKENS_IN, 0), (shapes.TOKENS_OUT, 1)):
        x = np.log(np.maximum([float(pair[column]) for pair in pairs], 1))
        apart = stats.kstest(x, lambda v, t=table: mixture_cdf(t[name], v)).statistic
        plain = stats.kstest(x, stats.norm(x.mean(), x.std()).cdf).statistic
        assert apart < 0.2 and apart < plain  # two log-normals say more than one


@pytest.mark.parametrize("rhythm", shapes.RHYTHMS)
def test_a_day_has_its_rhythm(rhythm):
    row = np.full(24_000, shapes.RHYTHMS.index(rhythm))
    drawn = shapes.second_of_day(row, stream("test", rhythm).random(len(row)))
    weights = np.array(shapes.HOURS[rhythm], dtype=float)
    seen = np.histogram(drawn, bins=np.arange(25) * 3600)[0]
    # The table of quantiles has 1,024 cells, so hours may differ by a few cells.
    assert np.abs(seen / seen.sum() - weights / weights.sum()).max() < 0.01


def test_keys_are_those_of_a_plain_splitmix():
    def plain(key: int, salt: int) -> int:
        full = (1 << 64) - 1
        x = key ^ ((salt * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & full)
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & full
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & full
        return x ^ (x >> 31)

    keys = [0, 1, key_of("a"), (1 << 64) - 1]
    made = mix(np.array(keys, dtype=np.uint64), 12345)
    assert [int(k) for k in made] == [plain(k, 12345) for k in keys]
    assert spelt(made, "x-").to_pylist() == [f"x-{plain(k, 12345):016x}" for k in keys]
    many = mix(np.arange(60_000, dtype=np.uint64), 7)
    assert stats.kstest(fraction(many), "uniform").pvalue > 1e-3
    assert stats.chisquare(np.bincount(below(many, 10))).pvalue > 1e-3


def test_a_prompt_says_its_content_in_its_wording():
    lines = grammar()
    rng, n = stream("text"), 400
    form = rng.integers(0, len(lines.start), n)
    content, other, manner, fresh = rng.integers(0, 1 << 62, (4, n)).astype(np.uint64)
    none, all_ = np.zeros(n), np.ones(n)
    codes = lines.codes(form, content, manner, fresh, none)
    texts = lines.render(codes).to_pylist()
    phrases = lines.phrases.to_pylist()
    assert texts == ["".join(phrases[code] for code in row) for row in codes]
    assert lines.characters(codes).tolist() == [len(text) for text in texts]
    asks = lines.content[form]
    filled = lines.count[form] > 1
    moved = lines.codes(form, other, manner, fresh, none) != codes
    assert not moved[~asks].any() and moved[asks & filled].mean() > 0.8
    worded = lines.codes(form, content, manner, fresh, all_) != codes
    assert not worded[asks].any() and worded[~asks & filled].mean() > 0.8
    half = lines.codes(form, content, manner, fresh, np.full(n, 0.5)) != codes
    assert 0.35 < half[~asks & filled].mean() / worded[~asks & filled].mean() < 0.65


def calls_of(folder: Path) -> pa.Table:
    files = sorted((folder / "calls").glob("day=*/*.parquet"))
    calls = pa.concat_tables([pq.ParquetFile(f).read() for f in files])
    truth = pq.read_table(folder / "truth.parquet")
    return calls.join(truth, "account").join(
        pq.read_table(folder / "truth_calls.parquet"), "call_id"
    )


def test_knobs_come_out_as_they_were_set(tmp_path):
    attack = Attack(
        "a", accounts=400, per_day=40, cover=0.75, wobble=0.0, tasks=37, focus=1, residential=1,
        sticky=0, pivot=0.5, stack=1, payment=4, webmail=1,
    )  # fmt: skip
    plan = Plan(accounts=200, days=3, release=1, attacks=(attack,), truth_calls=True)
    summary = simulate(plan, tmp_path / "out")
    days = attack.accounts * plan.days
    work, expected = summary.hostile_calls, days * 40 * 0.25
    assert abs(work - expected) < 5 * np.sqrt(expected)
    share = summary.cover_calls / (summary.cover_calls + work)
    assert abs(share - 0.75) < 0.06  # cover keeps its own days and sessions, so it varies more
    frame = calls_of(tmp_path / "out").to_pylist()
    mine = [r for r in frame if r["campaign"] == "a" and r["hostile"]]
    assert len({r["prompt"] for r in mine}) <= 37
    tasks = Counter(r["prompt"] for r in mine)
    assert max(tasks.values()) < 3 * min(tasks.values())  # dealt out in turns, not drawn
    assert {r["temperature"] for r in mine} == {1.0} and {r["max_tokens"] for r in mine} == {4096}
    assert len({r["network"] for r in mine}) > 0.9 * len(mine)
    late = [r for r in mine if r["time"].day == 4]  # the day after the release
    moved = {r["account"] for r in late if r["model"] == "orin-2"}
    assert 0.4 < len(moved) / len({r["account"] for r in late}) < 0.85  # some covers move too
    accounts = pq.read_table(tmp_path / "out" / "accounts.parquet").to_pylist()
    hostile = {r["account"] for r in frame if r["campaign"] == "a"}
    cards = Counter(r["payment"] for r in accounts if r["account"] in hostile)
    assert set(cards.values()) <= {1, 2, 3, 4} and max(cards.values()) == 4


def test_a_long_list_of_tasks_has_next_to_no_repeats_and_every_account_a_part_of_it(tmp_path):
    attack = Attack("a", accounts=100, cover=0, wordings=0, tasks=10_000_000)
    simulate(Plan(accounts=10, days=2, attacks=(attack,), truth_calls=True), tmp_path / "out")
    prompts = [r["prompt"] for r in calls_of(tmp_path / "out").to_pylist() if r["hostile"]]
    assert len(prompts) > 4_000 and len(set(prompts)) > 0.97 * len(prompts)


def test_sync_gathers_the_work_in_waves(tmp_path):
    shares: list[float] = []
    for sync in (0.0, 1.0):
        attack = Attack("a", accounts=300, cover=0, sync=sync)
        plan = Plan(accounts=10, days=1, attacks=(attack,), truth_calls=True)
        simulate(plan, tmp_path / str(sync))
        times = [r["time"] for r in calls_of(tmp_path / str(sync)).to_pylist() if r["hostile"]]
        counts = np.bincount([t.hour * 12 + t.minute // 5 for t in times], minlength=288)
        shares.append(counts.var() / counts.mean())
    assert shares[0] < 1.6 and shares[1] > 10  # Poisson has 1


def test_churn_replaces_accounts_and_framing_copies_a_bot_that_stays_honest(tmp_path):
    churn = Attack("churn", accounts=30, cover=0, life=1.0)
    frame = Attack("frame", accounts=30, cover=0, frames=1)
    plan = Plan(accounts=400, days=3, attacks=(churn, frame), truth_calls=True)
    simulate(plan, tmp_path / "out")
    rows = calls_of(tmp_path / "out").to_pylist()
    lives: dict[str, list] = {}
    for r in rows:
        if r["campaign"] == "churn":
            lives.setdefault(r["account"], []).append(r["time"])
    assert len(lives) > 60
    assert all((max(t) - min(t)).total_seconds() <= 86_400 for t in lives.values())
    framers = [r for r in rows if r["campaign"] == "frame"]
    settings = Counter((r["temperature"], r["max_tokens"], r["client"]) for r in framers)
    said = {r["prompt"].split()[:4].__str__() for r in framers}
    bots = [r for r in rows if r["kind"] == "single-bot" and str(r["prompt"].split()[:4]) in said]
    victims = Counter(r["account"] for r in bots)
    assert victims and len(settings) <= 2
    assert not any(r["hostile"] for r in rows if r["account"] == victims.most_common(1)[0][0])


def features(row: dict) -> list[str]:
    """What one call shows by itself, in words."""
    simple = ("model", "client", "temperature", "max_tokens", "logprobs", "stream")
    return [
        *(f"{name}={row[name]}" for name in simple),
        f"in={int(2 * np.log(row['tokens_in']))}",
        f"out={int(2 * np.log(row['tokens_out']))}",
        f"hour={row['time'].hour // 3}",
        f"session={row['session'] is None}",
        f"prefix={row['network'].split('.')[1] if row['network'] else None}",
        *{f"word={word}" for word in row["prompt"].lower().split()[:60]},
    ]


def auc(ours: list[dict], theirs: list[dict]) -> float:
    """How well naive Bayes tells single calls apart, on accounts that it has not seen."""
    tables, scores = (Counter(), Counter()), ([], [])
    seen = [len({r["account"] for r in rows}) for rows in (ours, theirs)]
    assert min(seen) > 100
    for side, rows in enumerate((ours, theirs)):
        for row in rows:
            if int(row["account"][-2:], 16) % 2:
                tables[side].update(features(row))
    total = [sum(table.values()) for table in tables]
    for side, rows in enumerate((ours, theirs)):
        for row in rows:
            if int(row["account"][-2:], 16) % 2 == 0:
                odds = [
                    np.log((tables[0][f] + 1) / total[0]) - np.log((tables[1][f] + 1) / total[1])
                    for f in features(row)
                ]
                scores[side].append(float(np.mean(odds)))
    u = stats.mannwhitneyu(scores[0], scores[1]).statistic
    return float(u / (len(scores[0]) * len(scores[1])))


def test_cover_cannot_be_told_from_honest_calls_one_at_a_time_and_work_can(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "COVER", ("people",))  # so that both are of one kind
    attack = Attack("a", accounts=700, per_day=10, cover=0.6, residential=1, sticky=1, wordings=0)
    plan = Plan(accounts=2_000, days=2, attacks=(attack,), truth_calls=True, seed=3)
    others = tuple(kind.NAME for kind in kinds() if kind.NAME != "people")
    simulate(replace(plan, without=others), tmp_path / "out")
    rows = calls_of(tmp_path / "out").to_pylist()
    kept: Counter[tuple[str, bool]] = Counter()
    groups: dict[str, list[dict]] = {"honest": [], "cover": [], "work": []}
    for row in rows:
        name = "honest" if row["campaign"] is None else "work" if row["hostile"] else "cover"
        kept[row["account"], row["hostile"]] += 1
        if kept[row["account"], row["hostile"]] <= 4:  # no account speaks for many
            groups[name].append(row)
    assert abs(auc(groups["cover"], groups["honest"]) - 0.5) < 0.06
    assert auc(groups["work"], groups["honest"]) > 0.8
