"""A CycloneDX 1.7 bill of materials of a student: models, data, terms, recipe and verdict.

CycloneDX knows no teacher. The model that the weights start from is the student's pedigree; the
teacher is a component that the answers depend on, and `limbeck:` properties say the rest.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from limbeck.errors import InputError
from limbeck.export.card import figure, licence_link
from limbeck.export.provenance import Data, Model, Provenance
from limbeck.export.wording import RESULTS
from limbeck.records import Permission

Json = dict[str, Any]
STUDENT, RECIPE = "student", "recipe"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/limbeck/limbeck")


def cyclonedx(p: Provenance) -> str:
    """The bill as JSON, held to the 1.7 schema that cyclonedx-python-lib ships."""
    models = {p.base.fingerprint: _model(p.base, "start")}
    models[p.teacher.fingerprint] = _model(p.teacher, "teacher")
    bom: Json = {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{document_id(p)}",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [{"type": "application", "name": "limbeck", "version": p.version}]
            },
            "component": _student(p),
        },
        "components": [
            *models.values(),
            *(_data(one) for one in p.data),
            {"type": "data", "bom-ref": RECIPE, "name": "recipe.toml", "data": [_recipe(p)]},
        ],
        "dependencies": [
            {"ref": STUDENT, "dependsOn": [*models, *(one.name for one in p.data), RECIPE]},
            {"ref": "answers", "dependsOn": ["prompts", p.teacher.fingerprint]},
            {"ref": "targets", "dependsOn": ["answers", p.teacher.fingerprint]},
        ],
    }
    if p.day:
        bom["metadata"]["timestamp"] = f"{p.day}T00:00:00Z"
    text = json.dumps(bom, indent=1, ensure_ascii=False) + "\n"
    check(text, p.name)
    return text


def check(text: str, name: str = "the bill of materials") -> None:
    """Hold a document to the CycloneDX 1.7 schema; InputError names what breaks it."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_7).validate_str(text)
    if error is not None:
        raise InputError(f"{name}: no valid CycloneDX 1.7: {str(error).splitlines()[0]}")


def document_id(p: Provenance) -> uuid.UUID:
    """The same for the same student and terms, whoever writes the document."""
    told = {"files": dict(p.files), "terms": [one.id for one in p.terms], "name": p.name}
    return uuid.uuid5(NAMESPACE, json.dumps(told, sort_keys=True))


def _student(p: Provenance) -> Json:
    return {
        "type": "machine-learning-model",
        "bom-ref": STUDENT,
        "name": p.name,
        "description": f"A student of {p.teacher.name}",
        "licenses": _licences(p.licence, licence_link(p)),
        "pedigree": {
            "ancestors": [_named(p.base)],
            "notes": f"Weights of {p.base.name}, trained on answers of {p.teacher.name}",
        },
        "components": [
            {"type": "file", "name": name, "hashes": [_hash(sha256)]}
            for name, sha256 in p.files.items()
        ],
        "modelCard": _card(p),
        "properties": _properties(
            teacher=p.teacher.name,
            teacher_hub_id=p.teacher.hub,
            verdict=RESULTS[p.verdict["passed"]],
            recipe=p.recipe.id,
        )
        + [entry for number, one in enumerate(p.terms) for entry in _terms(number, one)],
    }


def _card(p: Provenance) -> Json:
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "text-generation",
            "modelArchitecture": p.architecture,
            "datasets": [{"ref": one.name} for one in p.data],
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [_metric(row) for row in p.rows],
        },
    }


def _metric(row: Mapping[str, Any]) -> Json:
    low, high = row["interval"]
    return {
        "type": f"{row['metric']}: student − {row['against']}",
        "value": figure(row["delta"]),
        "slice": f"held-out prompts, n = {row['n']}, {RESULTS[row['passed']]}",
        "confidenceInterval": {"lowerBound": figure(low), "upperBound": figure(high)},
    }


def _terms(number: int, one: Permission) -> list[Json]:
    told = {
        "permission": one.id,
        "route": one.route,
        "decision": one.decision,
        "clause": one.clause,
        "source": one.source,
        "date_read": one.date_read,
    }
    named = _properties(**{f"terms:{number}:{key}": value for key, value in told.items()})
    duties = [_property(f"terms:{number}:duty", duty) for duty in one.duties]
    return named + duties


def _model(model: Model, role: str) -> Json:
    made = _named(model)
    return made | {
        "bom-ref": model.fingerprint,
        "properties": made["properties"] + _properties(role=role),
    }


def _named(model: Model) -> Json:
    named: Json = {
        "type": "machine-learning-model",
        "name": model.name,
        "licenses": _licences(model.licence, None),
        "properties": _properties(fingerprint=model.fingerprint, hub_id=model.hub),
    }
    if model.hub:
        url = f"https://huggingface.co/{model.hub}"
        named["externalReferences"] = [{"type": "distribution", "url": url}]
    return named


def _data(one: Data) -> Json:
    return {
        "type": "data",
        "bom-ref": one.name,
        "name": one.name,
        "hashes": [_hash(one.sha256)],
        "data": [{"type": "dataset", "name": one.name, "description": one.what}],
        "properties": _properties(rows=str(one.rows), hashed=one.hashed),
    }


def _recipe(p: Provenance) -> Json:
    attachment = {"contentType": "application/toml", "content": p.recipe.to_toml()}
    return {"type": "configuration", "name": "recipe", "contents": {"attachment": attachment}}


def _licences(licence: str | None, link: str | None) -> list[Json]:
    """An SPDX id where the schema lists it, else a name with its link."""
    from cyclonedx.spdx import fixup_id

    if listed := fixup_id(licence or ""):
        return [{"license": {"id": listed}}]
    named: Json = {"name": licence or "not stated"}
    return [{"license": named | ({"url": link} if link else {})}]


def _properties(**told: str | None) -> list[Json]:
    return [_property(name, value) for name, value in told.items() if value]


def _property(name: str, value: str) -> Json:
    return {"name": f"limbeck:{name}", "value": value}


def _hash(sha256: str) -> Json:
    return {"alg": "SHA-256", "content": sha256}
