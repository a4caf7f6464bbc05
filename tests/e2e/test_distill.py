from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.records import OUTCOMES
from tiny import sums as known_sums
from walking import SECRETS, STAGES, Done, Walk, hashes, imported, parts

Finished = tuple[Walk, Done]
HEAVY = ("torch", "transformers")


def strict(text: str) -> Any:
    """JSON without NaN and infinity."""

    def refuse(what: str) -> None:
        raise AssertionError(f"{what} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_ends_as_the_verdict_says(finished: Finished):
    walk, done = finished
    verdict = strict((walk.run / "verdict.json").read_text())
    assert done.returncode == (0 if verdict["passed"] else 1)
    gates = [row["passed"] for row in verdict["rows"] if row["gate"]]
    assert gates and verdict["passed"] == all(gates)


@pytest.mark.parametrize("command", ["distill", "validate"])
@pytest.mark.parametrize("json_", [[], ["--json"]])
def test_exit_code_follows_the_verdict(copied: Walk, command: str, json_: list[str]):
    path = copied.run / "verdict.json"
    verdict = strict(path.read_text())
    for passed in (True, False):
        for row in verdict["rows"]:
            row["passed"] = passed if row["gate"] else None
        path.write_text(json.dumps(verdict | {"passed": passed}))
        done = copied.limbeck(command, copied.run, *json_)
        assert done.returncode == int(not passed), done.stderr
        assert ("rouge_l against control" in done.stderr) is not passed
        if json_:
            assert strict(done.stdout)["passed"] is passed


def test_json_is_one_document_and_nothing_else(finished: Finished):
    walk, done = finished
    told = strict(done.stdout)
    assert told["rows"] == strict((walk.run / "verdict.json").read_text())["rows"]
    assert set(told["stages"]) == set(STAGES)
    for stage in STAGES:
        assert re.search(rf"^ *{stage}  ", done.stderr, re.MULTILINE), stage


def test_leaves_what_is_promised(finished: Finished):
    run = finished[0].run
    for name in (
        "recipe.toml", "manifest.json", "answers.sqlite", "targets/index.jsonl", "checkpoints",
        "student/model.safetensors", "metrics.jsonl", "verdict.json", "report.html",
    ):  # fmt: skip
        assert (run / name).exists(), name
    assert not parts(run)
    verdict = strict((run / "verdict.json").read_text())
    assert {"rows", "teacher", "student", "cost", "outcomes", "permission"} <= set(verdict)
    for line in (run / "metrics.jsonl").read_text().splitlines():
        strict(line)


def test_every_prompt_has_one_outcome(finished: Finished):
    walk, _ = finished
    counts = strict((walk.run / "verdict.json").read_text())["outcomes"]
    facts = walk.manifest()["stages"]["collect"]["facts"]
    assert list(counts) == list(OUTCOMES)
    assert sum(counts.values()) == len(known_sums())
    assert counts == {outcome: facts[outcome] for outcome in OUTCOMES}
    assert facts["answers"] == facts["asked_now"] == len(known_sums())


def test_student_answers_as_its_card_says(finished: Finished, capsys: pytest.CaptureFixture[str]):
    """The code in the card runs, on the folder alone, and the student has learnt its sums."""
    student = finished[0].run / "student"
    code = re.findall(r"```python\n(.*?)```", (student / "README.md").read_text(), re.DOTALL)
    exec(code[0].replace('"sums"', repr(str(student))), {})
    asked, _, answer = capsys.readouterr().out.partition("<|im_start|>assistant")
    question = re.search(r"What is \w+ plus \w+\?", asked)
    assert question
    assert dict(known_sums())[question[0]] in answer


def test_card_names_teacher_and_licence(finished: Finished):
    card = (finished[0].run / "student" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "mit"
    assert front["teacher"] == "tiny"
    assert front["library_name"] == "transformers"


def test_student_tells_nothing_of_the_machine(finished: Finished, tiny: Path, sums: Path):
    walk, _ = finished
    private = [str(p).encode() for p in (walk.folder, tiny.parent, sums.parent, Path.cwd())]
    for path in (walk.run / "student").iterdir():
        found = [text for text in private if text in path.read_bytes()]
        assert not found, path.name


def test_no_secret_is_written(finished: Finished):
    walk, done = finished
    for secret in SECRETS.values():
        assert secret not in done.stdout + done.stderr
        for path in walk.folder.rglob("*"):
            assert path.is_dir() or secret.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("target", ["recipe.toml", "runs/sums"])
def test_second_walk_does_nothing(finished: Finished, target: str):
    walk, first = finished
    before = hashes(walk.folder)
    done = walk.limbeck("distill", target, python=("-X", "importtime"))
    assert done.returncode == first.returncode
    for stage in STAGES[1:]:
        assert f"{stage:>9}  already there\n" in done.stderr
    assert hashes(walk.folder) == before
    packages = imported(done.stderr)
    assert "limbeck" in packages
    assert not packages.intersection(HEAVY)


@pytest.mark.slow
def test_stages_stop_where_they_should_and_repeat_the_student(
    walk: Callable[..., Walk], finished: Finished
):
    """One stage's command after the other, in another folder: the same student byte for byte."""
    there, run = walk(), "runs/sums"
    ends = {
        "collect": ("recipe.toml", "targets", ["targets/index.jsonl"]),
        "train": (run, "control", ["checkpoints/control/final/config.json", "metrics.jsonl"]),
        "validate": (run, "validate", ["verdict.json"]),
        "export": (run, "export", ["student/README.md"]),
        "report": ("recipe.toml", "report", ["report.html"]),
    }
    for number, (command, (target, last, made)) in enumerate(ends.items()):
        done = there.limbeck(command, target, "--json")
        told = strict(done.stdout)
        assert list(told["stages"]) == list(STAGES[: STAGES.index(last) + 1])
        assert done.returncode == (0 if number < 2 else finished[1].returncode)
        assert ("rows" in told) is (number >= 2)
        for name in made:
            assert (there.run / name).exists()
        for _, _, later in list(ends.values())[number + 1 :]:
            assert not (there.run / later[0]).exists()
    assert hashes(there.run / "student") == hashes(finished[0].run / "student")


@pytest.mark.slow
def test_more_prompts_ask_only_for_themselves(copied: Walk):
    new = [f"What is {a} plus {b}?" for a in ("eight", "nine") for b in ("zero", "one", "two")]
    more = copied.folder / "prompts.jsonl"
    asked = [*(p for p, _ in known_sums()), *new]
    more.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in asked))
    copied.change(prompts={"source": str(more)})
    splits = prompt_splits(copied)
    student = hashes(copied.run / "student")
    before = copied.manifest()["stages"]

    done = copied.limbeck("distill", copied.run, "--json")

    assert done.returncode in (0, 1), done.stderr
    assert splits.items() < prompt_splits(copied).items()
    after = copied.manifest()["stages"]
    assert after["collect"]["facts"]["asked_now"] == len(new)
    assert after["collect"]["facts"]["answers"] == len(asked)
    assert after["targets"]["facts"]["answers"] == after["collect"]["facts"]["kept"]
    verdict = strict(done.stdout)
    assert sum(verdict["outcomes"].values()) == len(asked)
    for stage in STAGES[1:]:
        assert after[stage]["key"] != before[stage]["key"], stage
        assert "finished" in after[stage]
    assert hashes(copied.run / "student") != student
    assert f"{len(asked)} prompts" in (copied.run / "student" / "README.md").read_text()


def prompt_splits(walk: Walk) -> dict[str, str]:
    rows = map(json.loads, (walk.run / "prompts.jsonl").read_text().splitlines())
    return {row["id"]: row["split"] for row in rows}


@pytest.mark.parametrize("beside", [[], ["--beside"]])
def test_chat_answers_once(finished: Finished, beside: list[str]):
    question, answer = known_sums()[9]
    walk, _ = finished
    done = walk.limbeck(
        "chat", "runs/sums", "--prompt", question, "--max-tokens", 16, "--json", *beside
    )
    assert done.returncode == 0, done.stderr
    (turn,) = strict(done.stdout)["turns"]
    assert turn.pop("prompt") == question
    assert set(turn) == ({"student", "teacher"} if beside else {"student"})
    for said in turn.values():
        assert said["text"].startswith("It is ")
        assert said["tokens_per_s"] > 0
    if beside:
        assert turn["teacher"]["text"] == answer


def test_chat_goes_on_until_an_empty_line(finished: Finished):
    """Lines typed are turns, of which the later ones see the earlier; :100: stays as typed."""
    first, second = "What is two plus three?", "Say :100: and [bold]more[/bold]."
    walk, _ = finished
    typed = f"{first}\n{second}\n\nWhat is one plus one?\n"
    done = walk.limbeck("chat", "runs/sums", "--max-tokens", 8, "--json", typed=typed)
    assert done.returncode == 0, done.stderr
    turns = strict(done.stdout)["turns"]
    assert [turn["prompt"] for turn in turns] == [first, second]
    assert all(turn["student"]["text"] for turn in turns)
