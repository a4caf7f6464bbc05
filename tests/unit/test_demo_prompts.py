from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from limbeck.collect.duplicates import normalise
from limbeck.collect.prompts import read_prompts
from limbeck.recipe import PromptsSection

RECIPES = Path(__file__).parents[2] / "recipes"
COMMITTED = RECIPES / "demo-prompts.jsonl"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in COMMITTED.read_text(encoding="utf-8").splitlines()]


def test_the_committed_file_is_what_the_script_makes(tmp_path):
    out = tmp_path / "prompts.jsonl"
    command = [sys.executable, "-I", str(RECIPES / "demo_prompts.py"), "--out", str(out)]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert out.read_bytes() == COMMITTED.read_bytes()


def test_the_tasks_have_as_many_prompts_each_and_come_in_turn(rows):
    assert 900 <= len(rows) <= 1000
    counts = Counter(row["task"] for row in rows)
    assert len(set(counts.values())) == 1
    assert 15 <= len(counts) <= 25
    for start in range(0, len(rows), len(counts)):
        assert {row["task"] for row in rows[start : start + len(counts)]} == counts.keys()


def test_prompts_are_short_and_whole(rows):
    lengths = [len(row["prompt"].split()) for row in rows]
    assert max(lengths) <= 30
    assert sum(lengths) / len(lengths) <= 20
    for row in rows:
        assert row.keys() == {"prompt", "task"}
        assert row["prompt"] == row["prompt"].strip()
        assert not re.search(r"[{}|~#]|\s\s", row["prompt"])


def test_no_request_repeats_another(rows):
    assert len({normalise(row["prompt"]) for row in rows}) == len(rows)
    openings = Counter(" ".join(row["prompt"].split()[:3]) for row in rows)
    assert max(openings.values()) < len(rows) / 15


def test_nearly_all_stay_as_the_demo_reads_them(rows):
    found = read_prompts(PromptsSection(source=str(COMMITTED), near_duplicates=0.9, held_out=0.2))
    assert found.read == len(rows)
    assert len(found.prompts) >= 850
    for prompts, share in ((found.train, 0.8), (found.held_out, 0.2)):
        deviation = (len(rows) * 0.2 * 0.8) ** 0.5
        assert abs(len(prompts) - len(rows) * share) < 4 * deviation
        assert {prompt.tags for prompt in prompts} == {(row["task"],) for row in rows}
