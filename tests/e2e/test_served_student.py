"""`limbeck distill` from a teacher behind a service: from its text, or from what it tells."""

from __future__ import annotations

import json
import shutil
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from limbeck.ground import Ground
from limbeck.recipe import read_recipe
from limbeck.run import Run
from provider import Behaviour, Provider
from small import network, save
from tiny import sums
from walking import SECRETS, Done, Walk, complaint, parts

KEY = SECRETS["OPENAI_API_KEY"]
STEPS = 20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model, which the student starts from."""
    folder = tmp_path_factory.mktemp("base") / "base"
    save(network(vocab_size=360, initializer_range=0.05), folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# base\n")
    return folder


def new_walk(provider: Provider, folder: Path, base: Path, **train: Any) -> Walk:
    made = Walk(folder)
    made.folder.mkdir()
    rows = [{"prompt": prompt} for prompt, _ in sums()]
    (made.folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    until = date.today() + timedelta(days=30)
    (made.folder / "permission.toml").write_text(
        f'teacher = "teacher"\nallowed_by = "us"\nuntil = {until}\npurpose = "product"\n'
    )
    made.write(
        teacher={
            "model": "teacher", "url": provider.url, "key": "OPENAI_API_KEY", "max_tokens": 40,
            "batch_size": 64,
        },
        prompts={"source": "mine.jsonl", "held_out": 0.25, "near_duplicates": 1.0},
        permit={"permission": "permission.toml"},
        train={"steps": STEPS, "learning_rate": 3e-3, **train},
    )  # fmt: skip
    text = made.recipe.read_text().replace("layers = 3", f'base = "{base}"')
    made.recipe.write_text(text)
    return made


def distilled(walk: Walk) -> tuple[Done, dict[str, Any]]:
    done = walk.limbeck("distill", "recipe.toml", "--json")
    assert done.returncode in (0, 1), done.stderr
    return done, json.loads((walk.run / "verdict.json").read_text())


def rows(verdict: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["metric"]: row for row in verdict["rows"]}


def test_from_text_alone(base: Path, tmp_path: Path):
    with Provider(Behaviour(key=KEY)) as provider:
        walk = new_walk(provider, tmp_path / "walk", base)
        done, verdict = distilled(walk)
        asked = provider.counts.requests
        again = walk.limbeck("distill", "recipe.toml")
        assert provider.counts.requests == asked
    assert "plan  text alone: the service tells no log-probabilities" in done.stderr
    stages = json.loads(done.stdout)["stages"]
    assert stages["targets"]["facts"] == {"way": "text alone", "told": 0}
    assert again.returncode == done.returncode
    assert again.stderr.count("already there") == 9, again.stderr
    told = rows(verdict)
    assert set(told) == {"text_nll", "rouge_l"}
    assert told["text_nll"]["passed"] and told["text_nll"]["delta"] < -0.3
    assert verdict["control"]["fingerprint"] != verdict["student"]["fingerprint"]
    assert verdict["teacher"]["name"] == "teacher" and verdict["teacher"]["parameters"] is None
    assert verdict["cost"]["dollars"] is None  # a server at a URL has no price that we know
    learnt = [json.loads(line) for line in (walk.run / "metrics.jsonl").read_text().splitlines()]
    held_out = [row["held_out_loss"] for row in learnt if "held_out_loss" in row]
    assert held_out[-1] < held_out[0]
    card = (walk.run / "student" / "README.md").read_text()
    assert "trained on the text of the teacher's answers" in card
    assert "where the student started, untrained" in card
    assert "targets" not in json.loads((walk.run / "student" / "bom.cdx.json").read_text())
    page = (walk.run / "report.html").read_text()
    assert "where the student started, untrained" in page
    assert not parts(walk.run)
    for path in walk.run.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("reasoning", [False, True])
def test_calls_and_reasoning_are_learnt_as_the_template_writes_them(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reasoning: bool
):
    callers = Path(shutil.copytree(base, tmp_path / "callers"))
    (callers / "chat_template.jinja").write_text(
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name }}{% endfor %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    with Provider(Behaviour(key=KEY, calls="good", reasoning="Hm.")) as provider:
        walk = new_walk(provider, tmp_path / "walk", callers, reasoning=reasoning)
        rows = (walk.folder / "mine.jsonl").read_text().splitlines()
        armed = [json.loads(row) | {"tools": [{"name": "add"}]} for row in rows[::2]]
        lines = [*map(json.dumps, armed), *rows[1::2]]
        (walk.folder / "mine.jsonl").write_text("\n".join(lines) + "\n")
        assert walk.limbeck("collect", "recipe.toml").returncode == 0
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ground = Ground(Run(walk.run, read_recipe(walk.run / "recipe.toml")))
    thought = "<think>\nHm.\n</think>\n\n" if reasoning else ""
    for prompt, answer in ground.asked("train"):
        said = "<call>add" if prompt.tools else answer.text
        assert ground.pupil.inner.decode(answer.token_ids) == f"{thought}{said}<|im_end|>"


def test_from_what_it_tells_by_bytes(base: Path, tmp_path: Path):
    with Provider(Behaviour(key=KEY, logprobs="real", most_logprobs=5)) as provider:
        walk = new_walk(provider, tmp_path / "walk", base)
        done, verdict = distilled(walk)
    assert "plan  by bytes" in done.stderr
    stages = json.loads(done.stdout)["stages"]
    facts = stages["targets"]["facts"]
    assert facts["way"] == "by bytes" and facts["told"] == len(sums())
    assert 0 < facts["known"] <= facts["tokens"]
    assert stages["control"]["facts"]["steps"] == STEPS
    told = rows(verdict)
    assert set(told) == {"told_kl", "text_nll", "rouge_l"}
    assert told["told_kl"]["gate"] and not told["text_nll"]["gate"]
    # In twenty steps from nothing neither is ahead; both have come closer than a uniform guess is.
    assert 0 < told["told_kl"]["student"] < 5 and 0 < told["told_kl"]["control"] < 5
    card = (walk.run / "student" / "README.md").read_text()
    assert "their distributions" in card and "targets" in card
    lineage = json.loads(walk.limbeck("lineage", "runs/sums", "--json").stdout)
    assert all(row["shard"] for row in lineage["rows"])


@pytest.mark.parametrize(
    ("train", "start", "named"),
    [
        ({"divergence": "reverse_kl"}, None, "use forward_kl"),
        ({"temperature": 2.0}, None, "train.temperature"),
        ({"teacher": "live"}, None, "live"),
        ({}, Path("teacher"), "student.base"),
    ],
)
def test_what_a_service_cannot_give_is_one_line(
    base: Path, tmp_path: Path, train: dict[str, Any], start: Path | None, named: str
):
    with Provider(Behaviour(key=KEY, logprobs="real")) as provider:
        walk = new_walk(provider, tmp_path / "walk", start or base, **train)
        if start:
            walk.recipe.write_text(
                walk.recipe.read_text().replace("[student]", "[student]\nlayers=3")
            )
        told = complaint(walk.limbeck("distill", "recipe.toml"), 2)
        assert named in told
        if train:
            assert provider.counts.requests <= 2  # nothing was paid for but the probe
