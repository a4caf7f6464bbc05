"""A small world of sketched calls for guard's own tests: honest people, their habits, campaigns.

It is not `limbeck guard simulate`: it writes integers where prompts would be, in one pass, so that
a test has tens of thousands of accounts within seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limbeck.guard.arrow import Table, pa, pc, pq

DAY = 86_400
COLUMNS = ("account", "time", "skeleton", "family", "exact", "stack", "network", "capability")
PLAIN = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.uint8)


@dataclass(frozen=True)
class Campaign:
    """`templates` 0 means that every prompt is its own; `cover` is the share of honest calls.

    `through` is the first of its `stacks` client set-ups; by default, set-ups of its own.
    """

    accounts: int
    cover: float = 0.75
    templates: int = 1
    stacks: int = 1
    skill: int = 3
    calls: float = 100.0
    elicits: float = 0.8
    paraphrased: bool = False
    flat: bool = True
    through: int | None = None


def _times(rng: np.random.Generator, account: np.ndarray, zone: np.ndarray, days: int):
    """Honest people come in sessions, by day: a geometric run of calls around a session's start."""
    n = len(account)
    fresh = rng.random(n) < 0.3
    fresh[0] = True
    fresh[1:] |= account[1:] != account[:-1]
    session = np.cumsum(fresh) - 1
    starts = int(session[-1]) + 1
    hour = np.clip(rng.normal(14, 3.5, starts), 0, 24) * 3600
    day = rng.integers(0, days, starts) * DAY
    first = np.flatnonzero(fresh)
    begun = day + hour - zone[account[first]] * 3600
    within = np.arange(n) - first[session]
    return (begun[session] + within * rng.exponential(90, n)).astype(np.int64)


def honest(rng: np.random.Generator, accounts: int, days: int, calls: float) -> dict:
    """Accounts of heavy-tailed volume, each with habits of its own."""
    volume = np.maximum(1, rng.lognormal(np.log(calls) - 0.5, 1.0, accounts)).astype(int)
    account = np.repeat(np.arange(accounts), volume)
    n = len(account)
    zone = rng.choice([0, 0, -5, -8, 1, 8], accounts)
    stack_of = _zipf(rng, 400, accounts, 1.1)
    kind = rng.random(n)
    skeleton = rng.integers(1 << 40, 1 << 62, n)
    exact = rng.integers(1 << 40, 1 << 62, n)
    own = kind < 0.3
    skeleton[own] = account[own] * 7 + rng.integers(0, 3, own.sum()) + 10_000_000
    common = kind > 0.93
    skeleton[common] = _zipf(rng, 3000, common.sum(), 1.2) + 1000
    exact[common] = skeleton[common]
    skills = rng.dirichlet(np.full(8, 0.5), accounts).cumsum(1)
    capability = (rng.random(n)[:, None] > skills[account]).sum(1).clip(0, 7)
    bits = rng.beta(0.15, 4, accounts)
    flag = np.where(rng.random(n) < bits[account], rng.integers(1, 4, n), 0)
    return {
        "account": account,
        "time": _times(rng, account, zone, days),
        "skeleton": skeleton,
        "family": skeleton,
        "exact": exact,
        "stack": np.where(rng.random(n) < 0.9, stack_of[account], _zipf(rng, 400, n, 1.1)),
        "network": account + 5000,
        "capability": capability,
        "flag": flag,
    }


def habits(rng: np.random.Generator, base: dict, accounts: int, tools: int = 30) -> None:
    """Open-source tools, judges' rubrics and benchmarks: templates that honest accounts share."""
    account, n = base["account"], len(base["account"])
    for tool in range(tools):
        users = rng.choice(accounts, rng.integers(20, max(21, accounts // 40)), replace=False)
        share = np.zeros(accounts)
        share[users] = rng.beta(0.35, 1.2, len(users))
        hit = rng.random(n) < share[account]
        base["skeleton"][hit] = base["family"][hit] = 100 + tool
        base["capability"][hit] = tool % 8
        base["exact"][hit] = rng.integers(1 << 40, 1 << 62, hit.sum())
        if tool % 5 == 0:
            base["flag"][hit] = 2
    for suite in range(4):
        users = rng.choice(accounts, 25, replace=False)
        hit = np.isin(account, users) & (rng.random(n) < 0.7)
        base["skeleton"][hit] = base["family"][hit] = 500 + suite
        base["exact"][hit] = 9000 + suite * 500 + rng.integers(0, 200, hit.sum())
    seats = np.arange(40) + accounts // 2
    hit = np.isin(account, seats) & (rng.random(n) < 0.9)
    base["skeleton"][hit] = base["family"][hit] = 700
    campus = np.isin(account, np.arange(accounts // 20))
    base["network"][campus] = 7


def hostile(
    rng: np.random.Generator, base: dict, campaign: Campaign, first: int, days: int, tag: int
):
    """Accounts that look honest in their cover, and share out one work-list in the rest."""
    cover = honest(rng, campaign.accounts, days, campaign.calls * 1.2)
    volume = rng.poisson(campaign.calls, campaign.accounts).clip(1)
    keep = _head(cover["account"], rng.binomial(volume, campaign.cover))
    cover = {key: value[keep] for key, value in cover.items()}
    work = rng.binomial(volume, 1 - campaign.cover)
    account = np.repeat(np.arange(campaign.accounts), work)
    n = len(account)
    time = rng.integers(0, days * DAY, n)
    if not campaign.flat:
        time = _times(rng, account, np.zeros(campaign.accounts), days)
    base_key = 2_000_000 + tag * 100_000
    pick = rng.integers(0, max(1, campaign.templates), n) + base_key
    unique = rng.integers(1 << 40, 1 << 62, n)
    skeleton = unique if campaign.templates == 0 or campaign.paraphrased else pick
    flag = np.where(rng.random(n) < campaign.elicits, 1 + tag % 3, 0)
    calls = {
        "account": account,
        "time": time,
        "skeleton": skeleton,
        "family": unique if campaign.templates == 0 else pick,
        "exact": rng.integers(1 << 40, 1 << 62, n),
        "stack": rng.integers(0, campaign.stacks, n) + (campaign.through or 150 + 17 * tag),
        "network": account + 9_000_000 + tag * 100_000,
        "capability": np.where(rng.random(n) < 0.85, campaign.skill, rng.integers(0, 8, n)),
        "flag": flag,
    }
    both = {key: np.concatenate([calls[key], cover[key]]) for key in calls}
    own = (both["skeleton"] >= 10_000_000) & (both["skeleton"] < 1 << 40)
    both["skeleton"][own] += 7 * first
    both["account"] = both["account"] + first
    both["network"] = both["account"] + 5000
    return both


def world(seed: int, accounts: int, campaigns: list[Campaign], days: int = 7, calls: float = 60.0):
    """The calls of a world as an Arrow table, and each account's campaign (−1 where honest)."""
    rng = np.random.default_rng(seed)
    parts = [honest(rng, accounts, days, calls)]
    habits(rng, parts[0], accounts)
    truth, first = [np.full(accounts, -1)], accounts
    for tag, campaign in enumerate(campaigns):
        parts.append(hostile(rng, parts[0], campaign, first, days, tag))
        truth.append(np.full(campaign.accounts, tag))
        first += campaign.accounts
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return _table(rng, joined), np.concatenate(truth)


def _table(rng: np.random.Generator, calls: dict) -> Table:
    n = len(calls["account"])
    stack = np.random.default_rng(1).integers(0, [4, 6, 7, 2, 2], (400, 5))
    of = stack[calls["stack"] % 400]
    noise = rng.integers(1 << 20, 1 << 62, (n, 8))
    kin = np.where(rng.random((n, 8)) < 0.5, calls["family"][:, None] * 8 + np.arange(8), noise)
    same = calls["family"] == calls["skeleton"]
    bands = np.where(same[:, None], calls["skeleton"][:, None] * 8 + np.arange(8), kin)
    flags = 80 * PLAIN[calls["flag"]]
    length = np.exp(rng.normal(5, 0.7, n)) + calls["skeleton"] % 97
    columns = {
        "call_id": pa.array(np.char.add("c", rng.permutation(n).astype(str))),
        "call": pa.array(rng.integers(-(1 << 62), 1 << 62, n)),
        "hour": pa.array((calls["time"] // 3600 + 490_000).astype(np.int32)),
        "time": pa.array(calls["time"] * 1_000_000, pa.timestamp("us")),
        "account": pa.array(np.char.add("a", calls["account"].astype(str))),
        "model": pa.array(np.full(n, "m")),
        "network": pa.array(np.char.add("n", calls["network"].astype(str))),
        "asn": pa.array((calls["network"] % 50).astype(str)),
        "client": pa.array(np.char.add("client", of[:, 0].astype(str))),
        "session": pa.nulls(n, pa.string()),
        "tokens_in": pa.array(length.astype(np.int64)),
        "tokens_out": pa.array(np.exp(rng.normal(5, 0.7, n)).astype(np.int64)),
        "temperature": pa.array(of[:, 1] / 5.0),
        "max_tokens": pa.array(256 * 2 ** of[:, 2].astype(np.int64)),
        "logprobs": pa.array(of[:, 3] == 1),
        "stream": pa.array(of[:, 4] == 1),
        "exact": pa.array(calls["exact"]),
        "skeleton": pa.array(calls["skeleton"]),
    }
    columns |= {f"band_{i}": pa.array(bands[:, i]) for i in range(8)}
    columns |= {
        name: pa.array(flags[:, i]) for i, name in enumerate(("reasoning", "rubric", "trace"))
    }
    columns["capability"] = pa.array(calls["capability"].astype(np.int8))
    columns["topic"] = pa.array((calls["skeleton"] % 64).astype(np.int32))
    columns["chars"] = pa.array((4 * length).astype(np.int32))
    return pa.table(columns)


def write(table: Table, folder: Path) -> None:
    """As the state folder keeps it, a folder a day."""
    day = table["time"].cast(pa.date32())
    for one in day.unique().to_pylist():
        place = folder / f"day={one}"
        place.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.filter(pc.equal(day, pa.scalar(one))), place / "part-0.parquet")


def _zipf(rng: np.random.Generator, kinds: int, n: int, power: float) -> np.ndarray:
    weight = 1 / np.arange(1, kinds + 1) ** power
    return rng.choice(kinds, n, p=weight / weight.sum())


def _head(group: np.ndarray, take: np.ndarray) -> np.ndarray:
    """The first `take[g]` rows of each group of a sorted `group`."""
    start = np.searchsorted(group, np.arange(len(take)))
    return np.arange(len(group)) - start[group] < take[group]
