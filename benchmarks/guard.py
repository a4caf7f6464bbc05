"""Guard's figures on simulated traffic, beside detectors that judge one account at a time.

Everything here is simulated (docs/decisions/0018-simulator.md). The campaigns are drawn anew for
each seed, knobs and all, and exist nowhere else, so that nothing can have been fitted to them;
every honest kind is in. Prints a line a measurement on standard error and one JSON document last
on standard output, which is also kept in benchmarks/results/guard.json.

    python benchmarks/guard.py [--accounts 60000] [--seeds 5] [--only recall_cover75,baselines]

The rows of the scale take `--calls` calls, by default 2 million of the 100 that they are named for,
and say how many they took. With `--logs FOLDER` their logs stay there, and are used again.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
from guard_peers import PEERS
from results import keep
from scipy import stats

from limbeck.guard.simulate import Attack, Plan, attacks, simulate
from limbeck.guard.simulate.population import accounts_table, population, victims

ROOT = Path(__file__).parents[1]
FPR = 1e-4
FRAMERS = (10, 25, 50, 100, 200)  # accounts that copy one honest bot
WHAT = (
    "recall_cover75", "recall_cover95", "hours_to_name", "cohort_precision", "recall_metadata",
    "baselines", "framing_cost", "scale_100m", "scale_metadata",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """A scan beside the truth: arrays over all accounts, and what the scan took."""

    p_value: np.ndarray
    campaign: np.ndarray  # of the scan, "" for none
    truth: np.ndarray  # the true campaign, "" for the honest
    seconds: float
    peak_gb: float

    @property
    def recall(self) -> float:
        """Hostile accounts found when at most a share FPR of the honest are."""
        return recall_at(-self.p_value, self.truth != "")


def recall_at(score: np.ndarray, hostile: np.ndarray) -> float:
    """The share of the hostile above a threshold that at most FPR of the honest pass."""
    honest = np.sort(score[~hostile])[::-1]
    threshold = honest[int(FPR * len(honest))]  # this one and those below it stay free
    return float((score[hostile] > threshold).mean())


def drawn_attack(name: str, seed: int, **fixed: Any) -> Attack:
    """A campaign whose other knobs are drawn from all of their range."""
    rng = np.random.default_rng([seed, *name.encode()])
    return Attack(
        name,
        **{
            "tasks": int(10 ** rng.uniform(4, 7)),
            "focus": int(rng.integers(2, 7)),
            "subject": str(rng.choice(["capability", "reasoning", "develop", "rubric"])),
            "wordings": int(rng.choice([0, 0, 5, 40, 300])),
            "strength": rng.uniform(0, 0.6),
            "context": float(rng.choice([0, 150, 600])),
            "history": rng.uniform(0, 0.5),
            "stack": rng.uniform(0.4, 1),
            "residential": rng.uniform(0.5, 1),
            "sticky": rng.uniform(0.4, 1),
            "payment": int(rng.choice([1, 1, 4])),
            "signup": rng.uniform(10, 120),
            "sync": rng.uniform(0, 0.5),
            "daylight": rng.uniform(0, 0.8),
            "wobble": rng.uniform(0.1, 0.6),
            "pivot": rng.uniform(0, 0.6),
            "customers": int(rng.choice([0, 0, 20])),
            **fixed,
        },
    )


def main() -> None:
    """Measure, print, and keep the result."""
    style = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--accounts", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default=",".join(WHAT))
    parser.add_argument("--calls", type=int, default=2_000_000)
    parser.add_argument("--logs", type=Path, default=None)
    args = parser.parse_args()
    wanted = args.only.split(",")
    rows: list[dict[str, Any]] = []
    for what, cover, prompts in (
        ("recall_cover75", 0.75, True),
        ("recall_cover95", 0.95, True),
        ("recall_metadata", 0.5, False),
    ):
        if what in wanted:
            found = [_recall(what, cover, prompts, args.accounts, s) for s in range(args.seeds)]
            rows.append(_row(what, "recall at FPR 1e-4", found, {}))
    if "cohort_precision" in wanted:
        found = [_precision(args.accounts, seed) for seed in range(args.seeds)]
        rows.append(_row("cohort_precision", "share of accounts", found, {}))
    if "hours_to_name" in wanted:
        found = [_hours(args.accounts, seed) for seed in range(args.seeds)]
        rows.append(_row("hours_to_name", "h", found, {}))
    if "baselines" in wanted:
        rows += _baselines(args.accounts, args.seeds)
    if "framing_cost" in wanted:
        framed = [_framing(args.accounts // 10, seed) for seed in range(args.seeds)]
        row = _row("framing_cost", "accounts of the attacker", [one[0] for one in framed], {})
        rows.append(row | {"tried": [tried for _, each in framed for tried in each]})
    for what, prompts in (("scale_100m", True), ("scale_metadata", False)):
        if what in wanted:
            rows.append(_scale(what, prompts, args.calls, args.logs))
    keep("guard", rows, simulated=True)


def _recall(what: str, cover: float, prompts: bool, accounts: int, seed: int) -> float:
    """Of one campaign of 1,000 accounts with about 100 calls each in a week."""
    attack = drawn_attack(f"{what}-{seed}", seed, cover=cover, accounts=1_000, per_day=100 / 7)
    plan = Plan(accounts=accounts, days=7, seed=100 + seed, attacks=(attack,), prompts=prompts)
    with Scene(plan) as scene:
        found = scene.scan()
    _note(f"{what} seed {seed}: recall {found.recall:.3f}, {found.seconds:.0f} s")
    return found.recall


def _precision(accounts: int, seed: int) -> float:
    """Of the accounts that the scan puts into campaigns, those that belong to one."""
    several = tuple(
        drawn_attack(f"several-{seed}-{i}", seed, accounts=200 + 200 * i, cover=0.2 * i)
        for i in range(5)
    )
    plan = Plan(accounts=accounts, days=7, seed=200 + seed, attacks=several)
    with Scene(plan) as scene:
        found = scene.scan()
    named = found.campaign != ""
    precision = float((found.truth[named] != "").mean()) if named.any() else float("nan")
    _note(f"cohort_precision seed {seed}: {precision:.4f} of {named.sum():,} accounts")
    return precision


def _hours(accounts: int, seed: int) -> float:
    """Hours of traffic until half of the large campaign stands under one name; inf past 48."""
    june = replace(attacks()["anthropic-june"], begins=0.0)
    plan = Plan(accounts=accounts, days=2, seed=300 + seed, attacks=(june,), release=1)
    with Scene(plan) as scene:
        for hours in (6, 12, 24, 36, 48):
            found = scene.scan(hours)
            hostile = found.truth != ""
            names, counts = np.unique(found.campaign[hostile], return_counts=True)
            best = max(counts[names != ""], default=0)
            _note(f"hours_to_name seed {seed}: {best:,} of {hostile.sum():,} after {hours} h")
            if best >= hostile.sum() / 2:
                return float(hours)
    return float("inf")


def _baselines(accounts: int, seeds: int) -> list[dict[str, Any]]:
    """Every preset, found by guard and by each peer, on the same accounts."""
    presets = tuple(
        replace(a, accounts=500) for a in attacks().values() if a.name not in ("framing",)
    )
    found: dict[str, dict[str, list[float]]] = {a.name: {} for a in presets}
    for seed in range(seeds):
        plan = Plan(accounts=accounts, days=7, seed=400 + seed, attacks=presets)
        with Scene(plan) as scene:
            ours = scene.scan()
            scores = {"ours": -ours.p_value} | scene.peers()
        for attack in presets:
            rows = (ours.truth == "") | (ours.truth == attack.name)
            for name, score in scores.items():
                recall = recall_at(score[rows], ours.truth[rows] != "")
                found[attack.name].setdefault(name, []).append(recall)
    made: list[dict[str, Any]] = []
    for name, table in found.items():
        peers = {peer: table[peer] for peer in table if peer != "ours"}
        made.append(
            _row("baselines", "recall at FPR 1e-4", table["ours"], peers) | {"attack": name}
        )
    return made


def _framing(accounts: int, seed: int) -> tuple[float, list[dict[str, Any]]]:
    """Accounts that it takes to have an honest bot flagged, inf where the most of them do not.

    First the preset, which copies the bot's prompts, set-up and hours amid a cover of its own; then
    accounts that do nothing else, at half the bot's pace, at twice it, and at its own, which an
    outsider would have to guess.
    """
    plan = Plan(accounts=accounts, days=7, seed=500 + seed)
    bot = victims(population(plan), 1)
    name = accounts_table(bot, 0)["account"][0].as_py()
    pace = float((bot.rate * (5 * bot.weekday + 2 * bot.weekend) / 7)[0])
    preset = attacks()["framing"]
    alike = replace(preset, cover=0.0, daylight=1.0)
    wrong = [preset, *(replace(alike, per_day=pace * off) for off in (0.5, 2.0))]
    rising = [replace(alike, per_day=pace, accounts=each) for each in FRAMERS]
    tried: list[dict[str, Any]] = []
    for place, attack in enumerate([*wrong, *rising]):
        with Scene(replace(plan, attacks=(attack,))) as scene:
            found = scene.scan()
        hostile, victim = found.truth != "", scene.names.index(name)
        flagged = (found.p_value <= FPR) & (found.campaign != "")
        copies = attack.per_day * (1 - attack.cover)
        tried.append(
            {
                "accounts": attack.accounts,
                "cover": attack.cover,
                "pace": round(copies / pace, 2),
                "copies": round(7 * attack.accounts * copies),
                "p_value": float(found.p_value[victim]),
                "flagged": bool(flagged[victim]),
                "attackers_flagged": int(flagged[hostile].sum()),
                "others_flagged": int(flagged[~hostile].sum() - flagged[victim]),
            }
        )
        _note(f"framing_cost seed {seed}: {tried[-1]}")
        if flagged[victim] and place >= len(wrong):
            break
    return min((float(one["accounts"]) for one in tried if one["flagged"]), default=np.inf), tried


def _scale(what: str, prompts: bool, calls: int, logs: Path | None) -> dict[str, Any]:
    """Seconds and memory of one scan, a sixth of its calls hostile."""
    june = replace(attacks()["anthropic-june"], accounts=max(calls // 2_000, 100), per_day=45)
    days, accounts = 14, max(calls // 300, 1_000)
    plan = Plan(accounts=accounts, days=days, seed=7, attacks=(june,), prompts=prompts)
    with Scene(plan, logs and logs / f"{what}-{calls}") as scene:
        found = scene.scan()
        made = scene.calls
    _note(f"{what}: {made:,} calls in {found.seconds:.0f} s, {found.peak_gb:.1f} GB")
    row = _row(what, "s", [found.seconds], {})
    named, hostile = found.campaign != "", found.truth != ""
    told = {"hostile": hostile.sum(), "named": (named & hostile).sum()}
    told |= {"honest": (~hostile).sum(), "honest_named": (named & ~hostile).sum()}
    row |= {name: int(count) for name, count in told.items()}
    return row | {"calls": made, "peak_gb": round(found.peak_gb, 2)}


class Scene:
    """A simulation on disk, removed at the end; or one that stays in `kept`."""

    def __init__(self, plan: Plan, kept: Path | None = None) -> None:
        self._plan, self._kept = plan, kept

    def __enter__(self) -> Scene:
        self._folder = Path(tempfile.mkdtemp(prefix="guard-"))
        self._sim = self._kept or self._folder / "sim"
        if not self._sim.exists():
            simulate(self._plan, self._sim)
        truth = pq.read_table(self._sim / "truth.parquet")
        self._truth = {
            row["account"]: row["campaign"] or "" for row in truth.to_pylist()
        }  # every account, also those without a call
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder)

    @property
    def calls(self) -> int:
        """How many the log has."""
        files = (self._sim / "calls").rglob("*.parquet")
        return sum(pq.read_metadata(file).num_rows for file in files)

    @property
    def names(self) -> list[str]:
        """All accounts, in the order of `Found`."""
        return list(self._truth)

    def scan(self, hours: int | None = None) -> Found:
        """Run `limbeck guard scan` on the calls of the first `hours`, or of all."""
        sim, out = self._sim, self._folder / "found"
        calls = sim / "calls" if hours is None else self._first(hours)
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "limbeck", "guard", "scan", str(calls)]
        command += ["--accounts", str(sim / "accounts.parquet"), "--out", str(out)]
        seconds, peak = _timed(command)
        rows = pq.read_table(out / "accounts.parquet").to_pylist()
        seen = {row["account"]: row for row in rows}
        blank = {"p_value": 1.0, "campaign": None}
        ordered = [seen.get(account, blank) for account in self._truth]
        return Found(
            np.array([row["p_value"] for row in ordered], dtype=float),
            np.array([str(row["campaign"] or "") for row in ordered]),
            np.array(list(self._truth.values())),
            seconds,
            peak,
        )

    def peers(self) -> dict[str, np.ndarray]:
        """Each peer's score an account; one that it cannot judge is the least suspect."""
        names = self.names
        scores: dict[str, np.ndarray] = {}
        for peer, score in PEERS.items():
            try:
                found = score(self._sim / "calls", names)
            except ImportError as error:
                _note(f"{peer} is left out: {error.name} is not installed")
                continue
            scores[peer] = np.array([found.get(name, -np.inf) for name in names])
        return scores

    def _first(self, hours: int) -> Path:
        out = self._folder / f"first-{hours}"
        for day in range((hours + 23) // 24):
            name = f"day={self._plan.start + timedelta(day)}"
            (out / name).mkdir(parents=True)
            if hours >= 24 * (day + 1):
                shutil.copytree(self._sim / "calls" / name, out / name, dirs_exist_ok=True)
                continue
            files = str(self._sim / "calls" / name / "*.parquet")
            left = f"hour(\"time\" AT TIME ZONE 'UTC') < {hours - 24 * day}"
            rows = f"SELECT * FROM read_parquet('{files}', hive_partitioning = false) WHERE {left}"  # noqa: S608
            target = out / name / "part.parquet"
            duckdb.connect().execute(f"COPY ({rows}) TO '{target}' (FORMAT parquet)")
        return out


def _timed(command: list[str]) -> tuple[float, float]:
    """Seconds of a command, and the most memory that it held, in GB, by Linux's count."""
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(command)  # noqa: S603
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        peak = max([peak, *(int(line.split()[1]) for line in status if line.startswith("VmHWM"))])
        time.sleep(0.05)
    if process.returncode not in (0, 1):  # 1: a campaign is named
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - began, peak / 2**20


def _row(
    what: str, unit: str, found: list[float], peers: Mapping[str, list[float]]
) -> dict[str, Any]:
    """The mean over seeds, with the 95 % t-interval as its spread."""
    ours = statistics.fmean(found)
    spread = [ours, ours]
    if len(found) > 1 and np.isfinite(found).all():
        half = (
            float(stats.t.ppf(0.975, len(found) - 1)) * statistics.stdev(found) / len(found) ** 0.5
        )
        spread = [ours - half, ours + half]
    means = {name: statistics.fmean(values) for name, values in peers.items()}
    best = max(means.values(), default=0.0)
    return {
        "what": what,
        "unit": unit,
        "ours": _short(ours),
        "peers": {name: _short(value) for name, value in means.items()},
        "ratio": _short(ours / best) if best else None,
        "memory_ratio": None,
        "runs": len(found),
        "each": [_short(value) for value in found],
        "spread": [_short(value) for value in spread],
    }


def _short(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def _note(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
