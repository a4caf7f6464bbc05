"""`limbeck collect` from a teacher behind a service, as a user types it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from provider import FAULTS, Behaviour, Provider, answer_to
from walking import SECRETS, Walk, complaint, last_line, parts

N = 120
KEY = SECRETS["OPENAI_API_KEY"]
PROBES = 2


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(Behaviour(key=KEY)) as running:
        yield running


@pytest.fixture
def walk(provider: Provider, tmp_path: Path) -> Walk:
    return new_walk(provider, tmp_path / "walk")


def new_walk(provider: Provider, folder: Path, **sections: dict[str, Any]) -> Walk:
    made = Walk(folder)
    made.folder.mkdir()
    rows = [{"prompt": f"What is the square of {i}, and of {i + 7}?"} for i in range(N)]
    (made.folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    until = date.today() + timedelta(days=30)
    (made.folder / "permission.toml").write_text(
        f'teacher = "teacher"\nallowed_by = "us"\nuntil = {until}\npurpose = "product"\n'
    )
    teacher = {"model": "teacher", "url": provider.url, "key": "OPENAI_API_KEY", "max_tokens": 40}
    usual: dict[str, dict[str, Any]] = {
        "teacher": {"batch_size": 64, **teacher},
        "prompts": {"source": "mine.jsonl"},
        "permit": {"permission": "permission.toml"},
    }
    names = {*usual, *sections}
    made.write(**{name: {**usual.get(name, {}), **sections.get(name, {})} for name in names})
    return made


def export(walk: Walk) -> list[dict[str, Any]]:
    done = walk.limbeck("answers", "runs/sums", "--export", "out.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"file": "out.jsonl", "rows": N}
    return [json.loads(row) for row in (walk.folder / "out.jsonl").read_text().splitlines()]


def all_right(walk: Walk) -> bool:
    rows = export(walk)
    return all((r["outcome"], r["text"]) == ("kept", answer_to(r["prompt"])) for r in rows)


def test_it_collects_once_and_tells_what_it_did(walk: Walk, provider: Provider):
    done = walk.limbeck("collect", "recipe.toml", "--json")
    assert done.returncode == 0, done.stderr
    for line in ("probe", "plan", "estimate", "cost"):
        assert f"{line:>9}  " in done.stderr, done.stderr
    facts = json.loads(done.stdout)["stages"]["collect"]["facts"]
    assert (facts["answers"], facts["kept"], facts["asked_now"]) == (N, N, N)
    assert all_right(walk)
    again = walk.limbeck("collect", "recipe.toml")
    assert again.returncode == 0 and "collect  already there" in again.stderr
    assert provider.counts.requests == N + PROBES
    for path in walk.folder.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
    assert KEY not in done.stdout + done.stderr
    assert not parts(walk.run)


def test_killed_in_the_midst_of_faults_nothing_is_lost(walk: Walk, provider: Provider):
    """Paid twice is at most what was in flight at a kill; each prompt ends in one outcome."""
    in_flight, kills = 8, 4
    provider.change(latency=0.03, faults=dict.fromkeys(set(FAULTS) - {"429"}, 0.03))
    told = walk.recipe.read_text().replace("max_tokens = 40", "max_tokens = 40\nin_flight = 8")
    walk.recipe.write_text(told)
    for kill in range(kills):
        process = walk.start("collect", "recipe.toml")
        wanted = (kill + 1) * N // (kills + 2)
        while len(provider.counts.good) < wanted:
            assert process.poll() is None, (walk.folder / "stderr").read_text()
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert walk.limbeck("collect", "recipe.toml").returncode == 0
    assert all_right(walk)
    assert provider.counts.paid_twice <= kills * in_flight + 1  # and the probe's question


def test_a_second_process_is_refused(walk: Walk, provider: Provider):
    provider.change(latency=1.0)
    first = walk.start("collect", "recipe.toml")
    while len(provider.counts.good) < 16:
        assert first.poll() is None, (walk.folder / "stderr").read_text()
        time.sleep(0.02)
    provider.change(latency=300)  # the first is busy however slow the machine that runs this is
    told = complaint(walk.limbeck("collect", "recipe.toml"), 2)
    assert f"pid {first.pid}" in told
    listed = walk.limbeck("answers", "runs/sums", "--outcome", "kept")
    assert listed.returncode == 0 and listed.stdout.count("kept") >= 1
    first.send_signal(signal.SIGINT)
    assert first.wait() in (130, -signal.SIGINT)
    assert last_line((walk.folder / "stderr").read_text()).startswith("Interrupted")


def test_the_budget_stops_it_and_it_goes_on_when_raised(provider: Provider, tmp_path: Path):
    walk = new_walk(provider, tmp_path / "walk", budget={"tokens": 2500})
    told = complaint(walk.limbeck("collect", "recipe.toml"), 3)
    assert "of 2,500" in told
    assert provider.counts.tokens_in + provider.counts.tokens_out <= 2500
    walk.recipe.write_text(walk.recipe.read_text().replace("2500", "1000000"))
    assert walk.limbeck("collect", "recipe.toml").returncode == 0
    assert all_right(walk)
    assert provider.counts.requests == N + PROBES
    walk.recipe.write_text(walk.recipe.read_text().replace("1000000", "2000000"))
    done = walk.limbeck("collect", "recipe.toml")  # free to change, even when all is there
    assert done.returncode == 0 and "collect  already there" in done.stderr


@pytest.mark.parametrize(
    ("sections", "code", "named"),
    [
        ({"budget": {"tokens": 30}}, 2, "budget.tokens"),
        ({"budget": {"dollars": 1.0}}, 2, "budget.input"),
        ({"teacher": {"key": "NO_SUCH_VARIABLE"}}, 2, "NO_SUCH_VARIABLE"),
        ({"teacher": {"key": "HF_TOKEN"}}, 2, "HF_TOKEN"),
        ({"teacher": {"url": "http://example.com/v1"}}, 2, "in the clear"),
        ({"teacher": {"key": "sk-written-here"}}, 2, "teacher.key"),
        ({"teacher": {"max_tokens_again": 10}}, 2, "max_tokens_again"),
    ],
)
def test_what_is_wrong_is_one_line(
    provider: Provider, tmp_path: Path, sections: dict[str, Any], code: int, named: str
):
    walk = new_walk(provider, tmp_path / "walk", **sections)
    done = walk.limbeck("collect", "recipe.toml")
    assert named in complaint(done, code)
    for secret in (*SECRETS.values(), "sk-written-here"):
        assert secret not in done.stderr
    assert provider.counts.requests <= PROBES
    assert not any(provider.counts.good.values())


def test_an_hour_s_pause_is_told_and_gone_on_after(walk: Walk, provider: Provider):
    provider.change(faults={"hour": 0.02}, seed=3, latency=0.005)
    told = complaint(walk.limbeck("collect", "recipe.toml"), 3)
    assert "1 h 00 min" in told and "kept" in told
    provider.change(faults={})
    assert walk.limbeck("collect", "recipe.toml").returncode == 0
    assert all_right(walk)
    assert provider.counts.paid_twice <= 1


def test_runs_may_share_a_store(provider: Provider, tmp_path: Path):
    shared = str(tmp_path / "shared.sqlite")
    first = new_walk(provider, tmp_path / "one", teacher={"answers": shared})
    assert first.limbeck("collect", "recipe.toml").returncode == 0
    second = new_walk(provider, tmp_path / "two", teacher={"answers": shared}, train={"steps": 33})
    done = second.limbeck("collect", "recipe.toml", "--json")
    assert json.loads(done.stdout)["stages"]["collect"]["facts"]["asked_now"] == 0
    assert provider.counts.requests == N + PROBES


def test_samples_tools_and_reasoning_go_all_the_way(provider: Provider, tmp_path: Path):
    provider.change(calls="good", reasoning="Hm.")
    chosen = {"teacher": {"samples": 2}, "prompts": {"tools": "tools.json"}}
    walk = new_walk(provider, tmp_path / "walk", **chosen, train={"reasoning": True})
    (walk.folder / "tools.json").write_text(json.dumps([{"name": "square"}]))
    done = walk.limbeck("collect", "recipe.toml", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)["stages"]
    train, held_out = (facts["prompts"]["facts"][split] for split in ("train", "held_out"))
    assert facts["collect"]["facts"]["kept"] == 2 * train + held_out
    assert provider.counts.requests == 2 * train + held_out + PROBES
    listed = walk.limbeck(
        "answers", "runs/sums", "--export", "m.jsonl", "--format", "messages", "--json"
    )
    assert json.loads(listed.stdout)["rows"] == 2 * train + held_out
    row = json.loads((walk.folder / "m.jsonl").read_text().splitlines()[0])
    said = row["messages"][-1]
    assert said["tool_calls"][0]["function"]["name"] == "square"
    assert said["reasoning_content"] == "Hm." and row["tools"]


def test_no_permission_no_question(walk: Walk, provider: Provider):
    walk.recipe.write_text(walk.recipe.read_text().replace('permission = "permission.toml"', ""))
    done = walk.limbeck("collect", "recipe.toml")
    assert done.returncode == 1
    assert provider.counts.requests == 0
