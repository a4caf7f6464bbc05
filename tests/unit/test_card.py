from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from limbeck.distill import Walk
from limbeck.errors import GateError, InputError
from limbeck.export.card import HUB_LICENCES, model_card, notice
from limbeck.export.duties import check, duties_of, student_licence
from limbeck.export.weights import export_student
from limbeck.recipe import Recipe, parse_recipe
from limbeck.run import Run, open_run
from papers import LLAMA, MIT, Made, make_weights, renamed


def recipe(called: str = "support-replies", **export: str) -> Recipe:
    return parse_recipe(
        {
            "name": called,
            "teacher": {"model": "meta-llama/Llama-3.1-8B-Instruct"},
            "prompts": {"source": "prompts.jsonl"},
            "student": {"layers": 3},
            "train": {"steps": 20},
            "export": export,
        }
    )


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def named(made: Made, **export: str) -> Made:
    made.change(export=export)
    return made


# -- duties ------------------------------------------------------------------------------------


def test_duties_are_sorted_by_form_and_the_rest_is_left_to_people() -> None:
    found = duties_of([LLAMA, MIT, LLAMA])
    assert found.name == ("Llama",) and found.licence == ("llama3.1",)
    assert found.display == ("Built with Llama",)
    assert found.notice == ("Llama 3.1 is licensed under the Llama 3.1 Community License.",)
    assert found.policy == ("https://llama.meta.com/llama3_1/use-policy",)
    assert found.others == ("ask the owner above 700 million monthly users", *MIT.duties)


def test_a_name_that_the_terms_bar_is_refused_with_the_clause() -> None:
    for name in ("support-replies", "my-Llama-replies", "llama-replies"):
        with pytest.raises(GateError) as caught:
            check(recipe(name), [LLAMA], "llama3.1")
        for text in (name, "'Llama'", LLAMA.clause, "llama3_1/license", "export.name"):
            assert text in str(caught.value)
    check(recipe("support-replies", name="Llama-replies"), [LLAMA], "llama3.1")
    check(recipe("Llama-replies"), [LLAMA], "llama3.1")


@pytest.mark.parametrize("base", ["apache-2.0", "llama3.1", None])
def test_a_licence_that_the_terms_bar_is_refused_with_the_clause(base: str | None) -> None:
    """As models trained on Llama's answers stand on the hub today, tagged apache-2.0."""
    with pytest.raises(GateError) as caught:
        check(recipe("Llama-x", licence="apache-2.0"), [LLAMA], base)
    for text in ("apache-2.0", "'llama3.1'", LLAMA.clause, "export.licence"):
        assert text in str(caught.value)
    for right in (recipe("Llama-x"), recipe("Llama-x", licence="Llama3.1")):
        check(right, [LLAMA], base)
        assert student_licence(right, [LLAMA], base) == "llama3.1"


def test_terms_that_want_two_licences_cannot_both_be_kept() -> None:
    gemma = renamed(LLAMA, route="weights:gemma-3 under gemma", duties=("licence: gemma",))
    with pytest.raises(GateError, match="gemma"):
        check(recipe("Llama-x"), [LLAMA, gemma], None)


@pytest.mark.parametrize(
    ("base", "chosen", "allowed"),
    [
        ("apache-2.0", "mit", True),
        ("MIT", "apache-2.0", True),
        ("cc-by-nc-4.0", "apache-2.0", False),
        ("gpl-3.0", "mit", False),
        ("gpl-3.0", "GPL-3.0", True),
        ("other", "mit", True),
        (None, "mit", True),
    ],
)
def test_the_licence_of_the_weights_stays_unless_it_is_a_free_one(
    base: str | None, chosen: str, allowed: bool
) -> None:
    if allowed:
        check(recipe(licence=chosen), [MIT], base)
    else:
        with pytest.raises(GateError, match=f"{base}.*export.licence"):
            check(recipe(licence=chosen), [MIT], base)


def test_terms_are_held_to_before_the_first_answer(made: Made) -> None:
    walk = Walk(Run(made.folder, made.recipe))
    vars(walk).update(weights=made.teacher, permission=LLAMA)
    before = walk.run.manifest["stages"]["permit"]
    with pytest.raises(GateError, match="'Llama'"):
        walk.permit()
    assert walk.run.manifest["stages"]["permit"] == before


def test_a_run_may_be_renamed_and_nothing_else(made: Made) -> None:
    old = made.recipe
    table = old.model_dump(by_alias=True, exclude_none=True)
    table["export"] |= {"name": "Llama-replies", "licence": "llama3.1"}
    new = parse_recipe(table)
    (made.folder / ".lock").touch()
    with open_run(new, made.folder) as run:
        assert run.recipe == new
    assert made.recipe == new
    table["export"]["dtype"] = "float32"
    with (
        pytest.raises(InputError, match="another recipe"),
        open_run(parse_recipe(table), made.folder),
    ):
        pass
    assert Run(made.folder, new).manifest["run_id"] == new.id != old.id


# -- the card ----------------------------------------------------------------------------------


def test_the_card_reads_back_and_names_everything(finished_made: Made) -> None:
    made, p = finished_made, finished_made.gather()
    card = ModelCard(model_card(p))
    data: Any = card.data
    assert (data.license, data.teacher, data.library_name) == ("mit", "tutor", "transformers")
    assert "teacher:tutor" in data.tags and "distillation" in data.tags
    assert data.base_model is None, "a folder on this machine is no hub id"
    told = data.distillation
    assert told["teacher_fingerprint"] == made.teacher.fingerprint
    assert told["terms"][0]["route"] == MIT.route and told["terms"][0]["permission"] == MIT.id
    assert told["recipe"] == p.recipe.id
    assert told["verdict"] == "passed"
    assert set(told["data_sha256"]) == {"prompts", "answers", "targets"}
    metrics = {(r.metric_type, r.metric_value) for r in data.eval_results}
    assert ("kl", 0.518) in metrics and not any("tokens_per_s" in m for m, _ in metrics)
    for text in (MIT.route, MIT.clause, MIT.source, MIT.duties[0], *told["data_sha256"].values()):
        assert text in card.text
    assert str(made.folder) not in card.content and str(made.teacher.folder) not in card.content


def test_a_failed_verdict_is_said(finished_made: Made) -> None:
    p = finished_made.gather()
    failed = replace(p, verdict={**p.verdict, "passed": False})
    assert "verdict: **failed**" in model_card(failed)
    assert front(model_card(failed))["distillation"]["verdict"] == "failed"


def test_duties_are_carried_out(made: Made) -> None:
    p = named(made, name="Llama-replies").gather(LLAMA)
    card, text = model_card(p), notice(p)
    title, shown = re.findall(r"^# (.*)\n\n\*\*(.*)\*\*$", card, re.MULTILINE)[0]
    assert (title, shown) == ("Llama-replies", "Built with Llama")
    assert front(card)["license"] == "llama3.1"
    for duty in ("Llama 3.1 is licensed under", "https://llama.meta.com/llama3_1/use-policy"):
        assert duty in card and duty in text
    assert "Left to whoever publishes this model: ask the owner above 700" in card


def test_a_licence_that_the_hub_does_not_list_gets_a_name_and_a_link(made: Made) -> None:
    qwen = renamed(
        MIT, duties=("licence: qwen",), source="model card; https://example.org/qwen/LICENSE."
    )
    told = front(model_card(made.gather(qwen)))
    assert (told["license"], told["license_name"]) == ("other", "qwen")
    assert told["license_link"].startswith("https://example.org/qwen/LICENSE")
    assert "qwen" not in HUB_LICENCES
    own = front(model_card(named(made, licence="acme-1.0").gather()))
    assert (own["license"], own["license_name"]) == ("other", "acme-1.0")
    assert own["license_link"] == "NOTICE"
    unknown = replace(made.gather(), licence=None)
    assert front(model_card(unknown))["license"] == "unknown"


def test_the_hub_sees_where_the_weights_start_and_who_taught(made: Made, tmp_path: Path) -> None:
    made.change(teacher={"model": "owner/tutor"})
    told = front(model_card(made.gather()))
    assert (told["base_model"], told["base_model_relation"]) == ("owner/tutor", "finetune")
    made.change(student={"base": "other/start", "layers": None})
    base = make_weights(tmp_path / "start", "apache-2.0", seed=5)
    p = made.gather(MIT, renamed(MIT, route="weights:start under apache-2.0"), base=base)
    told = front(model_card(p))
    assert (told["base_model"], told["teacher"]) == ("other/start", "owner/tutor")
    assert "teacher:owner/tutor" in told["tags"] and told["license"] == "apache-2.0"
    assert len(told["distillation"]["terms"]) == 2


@pytest.mark.parametrize("name", ["two--dashes", "dots..twice", "ends-", "x" * 97])
def test_a_name_that_the_hub_does_not_take_is_refused(finished_made: Made, name: str) -> None:
    with pytest.raises(InputError, match="hub takes no card"):
        model_card(replace(finished_made.gather(), name=name))


def test_words_of_the_terms_cannot_break_the_metadata(finished_made: Made) -> None:
    nasty = 'no: "quotes", #comments\n---\nlicense: mit\nor {braces} | pipes'
    terms = (renamed(MIT, clause=nasty, duties=(nasty, "- [ ] list")),)
    p = replace(finished_made.gather(), terms=terms, duties=duties_of(terms))
    told = ModelCard(model_card(p)).data.to_dict()["distillation"]["terms"][0]
    assert told["clause"] == nasty and told["duties"] == [nasty, "- [ ] list"]


def test_the_folder_has_all_papers_and_the_terms_that_came_with_the_weights(made: Made) -> None:
    trained, into = made.folder / "checkpoints" / "student" / "final", made.folder / "again"
    told = export_student(trained, made.gather(), into)
    names = {path.name for path in into.iterdir()}
    assert {"README.md", "NOTICE", "bom.cdx.json", "bom.spdx3.json", "tutor.LICENSE"} <= names
    assert {path.name for path in trained.iterdir()} <= names
    assert (into / "tutor.LICENSE").read_text() == "The text of mit.\n"
    named = replace(made, teacher=replace(made.teacher, name="owner/tutor"))
    export_student(trained, named.gather(), made.folder / "hub")
    assert (made.folder / "hub" / "owner--tutor.LICENSE").exists()
    again = {path.name: path.read_bytes() for path in into.iterdir()}
    assert export_student(trained, made.gather(), into) == told
    assert {path.name: path.read_bytes() for path in into.iterdir()} == again
