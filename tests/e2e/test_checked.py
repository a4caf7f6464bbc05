"""Answers held to a recipe's checks, as a user types it: judged anew, never asked again."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from test_service import KEY, PROBES, N, new_walk

from provider import Behaviour, Provider
from walking import Walk, complaint

CHECK = '''
def starts_low(prompt, answer):
    """Its third word is hexadecimal: below half, or why not."""
    first = answer.text.split()[2][0]
    return True if first in "01234567" else f"begins with {first}"
'''


class Grader(Provider):
    """A provider that also scores answers, by the first digit of what they say."""

    def _document(self, asked: Any, text: str, finish: str, fault: str) -> dict[str, Any]:
        if asked.prompt.startswith("Grade an answer."):
            said = asked.prompt.partition("<answer>\n")[2].split()[2]
            text = f"I see. Score: {1 + int(said[0], 16) % 10}"
        return super()._document(asked, text, finish, fault)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Grader(Behaviour(key=KEY)) as running:
        yield running


def change(walk: Walk, **sections: Any) -> None:
    told = tomllib.loads(walk.recipe.read_text())
    for name, keys in sections.items():
        if keys is None:
            told.pop(name, None)
        else:
            told[name] = keys
    walk.recipe.write_text(tomli_w.dumps(told))


def collect(walk: Walk) -> tuple[dict[str, Any], str]:
    done = walk.limbeck("collect", "recipe.toml", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["stages"]["collect"]["facts"], done.stderr


def rows(walk: Walk) -> list[dict[str, Any]]:
    done = walk.limbeck("answers", "runs/sums", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["rows"]


def test_a_changed_check_costs_no_question(provider: Provider, tmp_path: Path) -> None:
    walk = new_walk(provider, tmp_path / "walk", checks={"function": "mine.py:starts_low"})
    (walk.folder / "mine.py").write_text(CHECK)
    facts, _ = collect(walk)
    found = rows(walk)
    low = [row["text"].split()[2][0] in "01234567" for row in found]
    assert [row["outcome"] for row in found] == ["kept" if ok else "rejected" for ok in low]
    assert all(
        row["reason"].startswith("function: begins with ") or ok
        for row, ok in zip(found, low, strict=True)
    )
    assert facts["rejected by function"] == facts["rejected"] == low.count(False)
    assert facts["kept"] + facts["rejected"] == facts["answers"] == N
    (walk.folder / "mine.py").write_text(CHECK.replace("01234567", "0123456789ab"))
    facts, _ = collect(walk)
    fewer = sum(row["text"].split()[2][0] in "cdef" for row in found)
    assert (facts["rejected"], facts["asked_now"]) == (fewer, 0)
    change(walk, checks=None)
    facts, said = collect(walk)
    assert "changed in checks.function: the stored answers are judged anew" in said
    assert (facts["kept"], facts["asked_now"]) == (N, 0)
    assert provider.counts.requests == N + PROBES


def test_a_judge_selects_within_permission_and_says_whose_kin_it_is(
    provider: Provider, tmp_path: Path
) -> None:
    judge = {"model": "grader", "url": provider.url, "key": "OPENAI_API_KEY", "max_tokens": 40}
    walk = new_walk(provider, tmp_path / "walk", checks={"judge": 6}, judge=judge)
    done = walk.limbeck("collect", "recipe.toml")
    assert done.returncode == 1 and 'teacher = "grader"' in done.stderr
    assert provider.counts.requests == 0
    said = walk.folder / "permission.toml"
    said.write_text(said.read_text().replace('"teacher"', '["teacher", "grader"]'))
    facts, _ = collect(walk)
    assert facts["judge"] == "grader" and "lineage" in facts["judge_is"]
    found = rows(walk)
    scores = [1 + int(row["text"].split()[2][0], 16) % 10 for row in found]
    assert [row["outcome"] == "kept" for row in found] == [score >= 6 for score in scores]
    assert {row["reason"] for row in found if row["reason"]} == {
        f"judge: {score} of 10, below 6" for score in scores if score < 6
    }
    assert provider.counts.requests == 2 * N + PROBES
    change(walk, checks={"judge": 3})
    facts, _ = collect(walk)
    assert facts["rejected"] == facts["rejected by judge"] == sum(score < 3 for score in scores)
    assert provider.counts.requests == 2 * N + PROBES  # a score is never paid for twice


def test_planted_benchmark_rows_are_dropped_with_the_name_of_the_set(
    provider: Provider, tmp_path: Path
) -> None:
    walk = new_walk(provider, tmp_path / "walk", checks={"benchmarks": ["exam.jsonl"]})
    mine = walk.folder / "mine.jsonl"
    asked = [json.loads(line)["prompt"] for line in mine.read_text().splitlines()]
    exam = [{"q": asked[n].upper()} for n in range(0, N, 10)] + [{"q": "And what else is there?"}]
    (walk.folder / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in exam))
    facts, _ = collect(walk)
    found = rows(walk)
    planted = [row for n, row in enumerate(found) if row["prompt"] in asked[::10]]
    dropped = [row for row in found if row["outcome"] == "rejected"]
    assert dropped == [row for row in planted if row["split"] == "train"] and dropped
    assert facts["rejected by overlap with exam.jsonl"] == len(dropped)
    assert all(row["reason"].startswith("overlap: the prompt is exam.jsonl:") for row in dropped)
    assert Counter(row["outcome"] for row in found)["kept"] == N - len(dropped)


@pytest.mark.parametrize(
    ("checks", "named"),
    [
        ({"json_schema": "none.json"}, "none.json is no JSON schema"),
        ({"function": "none.py:right"}, "cannot be loaded"),
        ({"benchmarks": ["none.jsonl"]}, "none.jsonl"),
        ({"pattern": "nobody says this"}, "loosen [checks]"),
    ],
)
def test_what_is_wrong_with_checks_is_one_line(
    provider: Provider, tmp_path: Path, checks: dict[str, Any], named: str
) -> None:
    walk = new_walk(provider, tmp_path / "walk", checks=checks)
    assert named in complaint(walk.limbeck("collect", "recipe.toml"), 2)
    assert provider.counts.requests == (N + PROBES if "pattern" in checks else 0)
