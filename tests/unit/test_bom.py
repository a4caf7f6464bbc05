from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import InputError
from limbeck.export.bom import check, cyclonedx
from limbeck.export.duties import duties_of
from limbeck.export.provenance import Provenance
from limbeck.export.spdx import check as check_spdx
from limbeck.export.spdx import spdx
from limbeck.files import sha256_file
from papers import LLAMA, MIT, Made, make_weights, renamed


def bill(p: Provenance) -> dict[str, Any]:
    return json.loads(cyclonedx(p))


def properties(component: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in component.get("properties", [])}


@pytest.fixture
def two_models(made: Made, tmp_path: Path) -> Provenance:
    """A student of a hub's Llama that starts from another model."""
    made.change(
        teacher={"model": "owner/tutor"},
        student={"base": "other/start", "layers": None},
        export={"name": "Llama-replies"},
    )
    base = make_weights(tmp_path / "start", "apache-2.0", seed=5)
    return made.gather(LLAMA, renamed(MIT, route="weights:start under apache-2.0"), base=base)


# -- CycloneDX ---------------------------------------------------------------------------------


def test_the_bill_names_teacher_terms_data_recipe_and_verdict(finished_made: Made) -> None:
    made, p = finished_made, finished_made.gather()
    told = bill(p)
    assert told["specVersion"] == "1.7"
    student = told["metadata"]["component"]
    assert (student["type"], student["name"]) == ("machine-learning-model", "support-replies")
    assert student["licenses"] == [{"license": {"id": "MIT"}}]
    said = properties(student)
    assert said["limbeck:teacher"] == "tutor" and said["limbeck:verdict"] == "passed"
    assert said["limbeck:terms:0:route"] == MIT.route
    assert said["limbeck:terms:0:clause"] == MIT.clause
    assert said["limbeck:terms:0:duty"] == MIT.duties[0]
    assert said["limbeck:recipe"] == p.recipe.id
    assert student["pedigree"]["ancestors"][0]["name"] == "tutor"
    parts = {part["bom-ref"]: part for part in told["components"]}
    assert parts["prompts"]["hashes"][0]["content"] == sha256_file(made.folder / "prompts.jsonl")
    assert {"answers", "targets", "recipe"} <= set(parts)
    assert properties(parts[made.teacher.fingerprint])["limbeck:role"] == "teacher"
    assert 'divergence = "forward_kl"' in json.dumps(parts["recipe"]).replace('\\"', '"')
    metrics = student["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    kl = next(m for m in metrics if m["type"] == "kl: student − control")
    assert (kl["value"], kl["slice"].endswith("passed")) == ("-0.746", True)
    assert kl["confidenceInterval"] == {"lowerBound": "-0.803", "upperBound": "-0.691"}
    assert not any("tokens_per_s" in metric["type"] for metric in metrics)


def test_every_reference_of_the_bill_resolves(two_models: Provenance) -> None:
    told = bill(two_models)
    student = told["metadata"]["component"]
    known = {student["bom-ref"], *(part["bom-ref"] for part in told["components"])}
    named = [one["ref"] for one in student["modelCard"]["modelParameters"]["datasets"]]
    for dependency in told["dependencies"]:
        named += [dependency["ref"], *dependency["dependsOn"]]
    assert set(named) <= known and len(told["components"]) == len(known) - 1
    roles = [properties(part).get("limbeck:role") for part in told["components"]]
    assert sorted(filter(None, roles)) == ["start", "teacher"]
    on = {one["ref"]: one["dependsOn"] for one in told["dependencies"]}
    assert two_models.teacher.fingerprint in on["answers"]
    assert student["pedigree"]["ancestors"][0]["name"] == "start"


def test_weights_are_listed_with_their_hashes(finished_made: Made) -> None:
    trained = finished_made.folder / "checkpoints" / "student" / "final"
    files = bill(finished_made.gather())["metadata"]["component"]["components"]
    assert {f["name"]: f["hashes"][0]["content"] for f in files} == {
        path.name: sha256_file(path) for path in trained.iterdir()
    }


def test_the_schema_is_really_asked(finished_made: Made) -> None:
    good = bill(finished_made.gather())
    for break_it in (
        lambda b: b["metadata"]["component"].update(teacher="tutor"),
        lambda b: b["metadata"]["component"].update(type="student"),
        lambda b: b["components"][0].pop("name"),
        lambda b: b["metadata"]["component"]["licenses"][0]["license"].update(id="mit"),
        lambda b: b.update(serialNumber="urn:uuid:1"),
    ):
        bad = json.loads(json.dumps(good))
        break_it(bad)
        with pytest.raises(InputError, match=r"no valid CycloneDX 1\.7"):
            check(json.dumps(bad))


# -- SPDX --------------------------------------------------------------------------------------


def graph(p: Provenance) -> list[dict[str, Any]]:
    told = json.loads(spdx(p))
    assert told["@context"] == "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
    return told["@graph"]


def related(elements: list[dict[str, Any]], kind: str) -> set[tuple[Any, Any]]:
    """Pairs of names that a kind of relationship joins."""
    names = {
        e.get("spdxId"): e.get("name", e.get("simplelicensing_licenseExpression")) for e in elements
    }
    return {
        (names[e["from"]], names[to])
        for e in elements
        if e.get("relationshipType") == kind
        for to in e["to"]
    }


def test_the_document_says_who_taught_whom(two_models: Provenance) -> None:
    elements = graph(two_models)
    assert related(elements, "generates") == {("tutor", "answers"), ("tutor", "targets")}
    trained_on = {("Llama-replies", name) for name in ("prompts", "answers", "targets")}
    assert related(elements, "trainedOn") == trained_on
    assert related(elements, "testedOn") == {("Llama-replies", "answers")}
    assert related(elements, "descendantOf") == {("Llama-replies", "start")}
    assert related(elements, "hasDeclaredLicense") == {
        ("Llama-replies", "LicenseRef-llama3.1"), ("tutor", "MIT"), ("start", "Apache-2.0"),
    }  # fmt: skip
    (student,) = [e for e in elements if e.get("name") == "Llama-replies"]
    assert student["type"] == "ai_AIPackage"
    training = student["ai_informationAboutTraining"]
    for text in ("owner/tutor", LLAMA.route, LLAMA.clause, *LLAMA.duties, "Verdict: passed"):
        assert text in training
    assert two_models.recipe.id in training
    assert student["software_attributionText"] == ["Built with Llama", duties_of([LLAMA]).notice[0]]
    metrics = {m["key"]: m["value"] for m in student["ai_metric"]}
    assert metrics["kl: student − control"].startswith("-0.746 [-0.803, -0.691], n = 96")
    margins = {m["key"]: m["value"] for m in student["ai_metricDecisionThreshold"]}
    assert margins["rouge_l: student − control"] == "0.05"
    settings = {m["key"]: m["value"] for m in student["ai_hyperparameter"]}
    assert settings["train.divergence"] == '"forward_kl"'


def test_data_carry_their_hashes(finished_made: Made) -> None:
    p = finished_made.gather()
    data = {e["name"]: e for e in graph(p) if e["type"] == "dataset_DatasetPackage"}
    assert {name: e["verifiedUsing"][0]["hashValue"] for name, e in data.items()} == {
        one.name: one.sha256 for one in p.data
    }
    assert data["answers"]["dataset_datasetSize"] == len(finished_made.answers)


def test_spdx_itself_is_really_asked(finished_made: Made) -> None:
    text = spdx(finished_made.gather())
    check_spdx(text)
    for old, new in (
        ('"trainedOn"', '"taughtBy"'),
        ('"sha256"', '"crc"'),
        ('"dataset_datasetType"', '"dataset_teacher"'),
        ('"relationshipType": "descendantOf",', ""),
    ):
        assert old in text
        with pytest.raises((ValueError, KeyError, TypeError)):
            check_spdx(text.replace(old, new, 1))


# -- both --------------------------------------------------------------------------------------


def test_both_repeat_and_tell_nothing_of_the_machine(finished_made: Made) -> None:
    made = finished_made
    for write in (cyclonedx, spdx):
        text = write(made.gather())
        assert text == write(made.gather())
        assert str(made.folder) not in text and str(made.teacher.folder) not in text


def test_other_data_have_other_hashes(made: Made) -> None:
    """One answer's text, one log-probability, one prompt: each changes its own hash alone."""
    before = {one.name: one.sha256 for one in made.gather().data}

    def changed() -> set[str]:
        after = {one.name: one.sha256 for one in made.gather().data}
        different = {name for name in before if before[name] != after[name]}
        before.update(after)
        return different

    with sqlite3.connect(made.folder / "answers.sqlite") as db:
        db.execute("UPDATE answers SET seconds = seconds + 1, asked_at = asked_at || 'Z'")
    assert changed() == set(), "another run's clock is not other data"
    with sqlite3.connect(made.folder / "answers.sqlite") as db:
        db.execute("UPDATE answers SET text = text || '!' WHERE id = (SELECT min(id) FROM answers)")
    assert changed() == {"answers"}
    shard = next((made.folder / "targets").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert changed() == {"targets"}
    prompts = made.folder / "prompts.jsonl"
    prompts.write_text(prompts.read_text() + "\n")
    assert changed() == {"prompts"}


@pytest.mark.parametrize(
    "licence", [None, "other", "no licence, nor SPDX id", "MIT", "llama3.1", "openrail++", "qwen"]
)
def test_any_licence_of_weights_makes_valid_bills(finished_made: Made, licence: str | None) -> None:
    p = finished_made.gather()
    p = replace(p, licence=licence, teacher=replace(p.teacher, licence=licence))
    cyclonedx(p)
    check_spdx(spdx(p))
    for element in graph(p):
        expression = element.get("simplelicensing_licenseExpression", "MIT")
        assert re.fullmatch(r"MIT|LicenseRef-[A-Za-z0-9.-]+", expression)
