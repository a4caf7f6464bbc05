"""A run whose teacher has no weights: what its stages share is found without them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck import lineage
from limbeck.distill import Walk
from limbeck.errors import GateError, InputError
from limbeck.ground import Ground
from limbeck.models import weights
from limbeck.permit.routes import route_of
from limbeck.recipe import PROVIDERS, Recipe, read_recipe
from limbeck.run import Run, open_run
from provider import Behaviour, Provider, answer_to

PERMISSION = """
teacher = "{teacher}"
allowed_by = "its owner, by letter"
until = 2999-12-31
purpose = "product"
"""
RECIPE = """
name = "replies"
seed = 3
teacher = {{ {teacher}, max_tokens = 64 }}
prompts = {{ source = "prompts.jsonl", near_duplicates = 1.0, held_out = 0.3 }}
student = {{ layers = 2 }}
train = {{ steps = 1 }}
[permit]
{permit}
"""


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("a service has no weights to look for")

    monkeypatch.setattr(weights, "find", touched)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(Behaviour()) as running:
        yield running


def recipe(folder: Path, teacher: str, allowed: str | None = "teacher") -> Recipe:
    """A recipe of a teacher, with a permission for the one that is `allowed`."""
    asked = [json.dumps({"prompt": f"What is number {i}?"}) for i in range(20)]
    (folder / "prompts.jsonl").write_text("\n".join(asked) + "\n")
    permit = ""
    if allowed:
        (folder / "permission.toml").write_text(PERMISSION.format(teacher=allowed))
        permit = 'permission = "permission.toml"'
    (folder / "recipe.toml").write_text(RECIPE.format(teacher=teacher, permit=permit))
    return read_recipe(folder / "recipe.toml")


def walk(told: Recipe, folder: Path, last: Any = "targets") -> Any:
    """What the manifest says of the collect stage."""
    with open_run(told, folder) as run:
        Walk(run).until(last)
        return run.manifest["stages"]["collect"]["facts"]


def test_a_service_is_asked_listed_and_traced_under_its_permission(
    provider: Provider, tmp_path: Path
) -> None:
    told, folder = recipe(tmp_path, f'model = "teacher", url = "{provider.url}"'), tmp_path / "run"
    facts = walk(told, folder)
    assert (facts["teacher"], facts["route"]) == ("teacher", provider.url)
    assert facts["answers"] == facts["asked_now"] == facts["kept"] == 20
    listed = list(Ground(Run(folder, told)).listed("kept", "rows"))
    assert {row["text"] for row in listed} == {answer_to(row["prompt"]) for row in listed}
    traced = lineage.trace(told, folder)
    permission = json.loads((folder / "permission.json").read_text())
    assert list(traced.permissions) == [permission["id"]]
    assert {row.permission for row in traced.rows} == {permission["id"]}
    assert len(traced.rows) == 20 and all(row.asked_at for row in traced.rows)
    requests = provider.counts.requests
    with pytest.raises(InputError, match="name the model that the student starts from"):
        walk(told, folder, "student")
    assert provider.counts.requests == requests


def test_a_dropped_source_of_a_service_is_rejected(provider: Provider, tmp_path: Path) -> None:
    told, folder = recipe(tmp_path, f'model = "teacher", url = "{provider.url}"'), tmp_path / "run"
    walk(told, folder)
    source = lineage.trace(told, folder).rows[0].source
    with open_run(told, folder) as run:
        lineage.drop(run, lineage.plan_drop(told, folder, source))
    assert walk(told, folder)["rejected"] == 1
    assert [r.outcome for r in lineage.trace(told, folder).rows].count("rejected") == 1


def test_runs_that_share_a_store_pay_once_and_drop_nothing(
    provider: Provider, tmp_path: Path
) -> None:
    teacher = f'model = "teacher", url = "{provider.url}", answers = "all.sqlite"'
    told = recipe(tmp_path, teacher)
    assert walk(told, tmp_path / "one")["asked_now"] == 20
    assert walk(told, tmp_path / "two")["asked_now"] == 0
    assert not list(tmp_path.glob("*/answers.sqlite"))
    rows = lineage.trace(told, tmp_path / "two").rows
    assert len(rows) == 20
    with pytest.raises(InputError, match="shared"):
        lineage.plan_drop(told, tmp_path / "two", rows[0].source)


def test_without_a_permission_a_service_is_not_asked(provider: Provider, tmp_path: Path) -> None:
    told = recipe(tmp_path, f'model = "teacher", url = "{provider.url}"', allowed=None)
    with pytest.raises(GateError, match="teacher"):
        walk(told, tmp_path / "run")
    assert provider.counts.requests == 0


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_register_knows_the_terms_of_every_provider(name: str) -> None:
    route = route_of(f"{name}:vendor/model-1")
    assert (route.provider, route.model) == (name, "vendor/model-1")
    assert route.kind in ("api", "resale")


@pytest.mark.parametrize(
    ("teacher", "named"),
    [
        ('model = "openai:gpt-5"', "openai:gpt-5"),
        ('model = "gpt-5", url = "https://api.openai.com/v1"', "openai:gpt-5"),
        ('model = "gpt-5", url = "https://models.example.org/v1"', "models.example.org:gpt-5"),
    ],
)
def test_the_terms_are_those_of_whoever_is_asked(tmp_path: Path, teacher: str, named: str) -> None:
    run = Run(tmp_path / "run", recipe(tmp_path, teacher, allowed=None))
    assert Ground(run).permission.decision != "allow"
    run = Run(tmp_path / "run", recipe(tmp_path, teacher, allowed=named))
    ground = Ground(run)
    assert ground.permission.decision == "allow" and ground.terms == (ground.permission,)
