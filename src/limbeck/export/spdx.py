"""An SPDX 3.0.1 document of a student, in the classes of the AI and Dataset profiles.

SPDX has `trainedOn` and no teacher. Here the teacher is an AI package that `generates` the answers,
and the student was `trainedOn` them and is `descendantOf` the model that its weights start from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from limbeck.export.bom import document_id
from limbeck.export.card import figure, licence_link
from limbeck.export.provenance import Data, Model, Provenance
from limbeck.export.wording import RESULTS


def spdx(p: Provenance) -> str:
    """The document as JSON-LD, written by SPDX's own model, which refuses what it bars."""
    return _Document(p).text()


def check(text: str) -> None:
    """Read a document into SPDX's own model and out again; ValueError or KeyError if it is none."""
    from spdx_python_model import v3_0_1 as model

    objects = model.SHACLObjectSet()
    model.JSONLDDeserializer().deserialize_data(json.loads(text), objects)
    model.JSONLDSerializer().serialize_data(objects)


class _Document:
    """The elements of one document, each under an id below the document's own."""

    def __init__(self, p: Provenance) -> None:
        from spdx_python_model import v3_0_1 as model

        self.p, self.model, self.elements = p, model, list[Any]()
        self.root = f"urn:uuid:{document_id(p)}"
        day = datetime.fromisoformat(p.day or "1970-01-01").replace(tzinfo=UTC)
        self.about: Any = model.CreationInfo(specVersion="3.0.1", created=day)
        limbeck = self.new("SoftwareAgent", "limbeck", name=f"limbeck {p.version}")
        self.about.createdBy = [limbeck]

    def new(self, kind: str, id_: str, /, **properties: Any) -> Any:
        """A new element; ValueError where SPDX's model does not take a property."""
        made = getattr(self.model, kind)(creationInfo=self.about, **properties)
        made.set_id(f"{self.root}#{id_}")
        self.elements.append(made)
        return made

    def relate(self, one: Any, kind: str, others: Iterable[Any]) -> None:
        """State a relationship between elements."""
        to = list(others)
        name = f"{one.get_id().partition('#')[2]}-{kind}-{to[0].get_id().partition('#')[2]}"
        kinds: Any = self.model.RelationshipType
        self.new("Relationship", name, from_=one, relationshipType=getattr(kinds, kind), to=to)

    def text(self) -> str:
        """Build everything, and write it down."""
        p = self.p
        student = self._student()
        models = {m.fingerprint: self._model(m) for m in (p.teacher, p.base)}
        data = {one.name: self._data(one) for one in p.data}
        self.relate(models[p.teacher.fingerprint], "generates", [data["answers"], data["targets"]])
        self.relate(student, "trainedOn", data.values())
        self.relate(student, "testedOn", [data["answers"]])
        self.relate(student, "descendantOf", [models[p.base.fingerprint]])
        self._document(student)
        objects = self.model.SHACLObjectSet()
        for element in self.elements:
            objects.add(element)
        told: Any = self.model.JSONLDSerializer().serialize_data(objects)
        return json.dumps(told, indent=1, ensure_ascii=False) + "\n"

    def _student(self) -> Any:
        p = self.p
        student = self.new(
            "ai_AIPackage",
            "student",
            name=p.name,
            summary=f"A student of {p.teacher.name}",
            software_primaryPurpose=self.model.software_SoftwarePurpose.model,
            ai_typeOfModel=[p.architecture],
            ai_informationAboutTraining="\n".join(self._told()),
            ai_hyperparameter=self._entries(_flat(p.recipe.model_dump(by_alias=True))),
            ai_metric=self._entries(_metrics(p)),
            ai_metricDecisionThreshold=self._entries(_margins(p)),
            software_attributionText=[*p.duties.display, *p.duties.notice],
        )
        licence = self._licence(student, p.licence, licence_link(p))
        self.relate(student, "hasConcludedLicense", [licence])
        for name, sha256 in p.files.items():
            file = self.new("software_File", f"file-{name}", name=name)
            file.verifiedUsing = [self._hash(sha256)]
            self.relate(student, "contains", [file])
        return student

    def _told(self) -> Iterable[str]:
        """Teacher, route, terms, recipe and verdict: what the profile has no property for."""
        p = self.p
        yield f"Teacher: {p.teacher.hub or p.teacher.name}"
        for one in p.terms:
            yield f"Route: {one.route}; decision: {one.decision}; permission {one.id}"
            yield f"Terms: {one.clause} ({one.source}, read {one.date_read})"
            yield from (f"Duty: {duty}" for duty in one.duties)
        yield f"Recipe: {p.recipe.id}"
        yield f"Verdict: {RESULTS[p.verdict['passed']]}"

    def _model(self, model: Model) -> Any:
        made = self.new(
            "ai_AIPackage",
            f"model-{model.fingerprint[:16]}",
            name=model.name,
            software_primaryPurpose=self.model.software_SoftwarePurpose.model,
            comment=f"fingerprint {model.fingerprint}",
        )
        if model.hub:
            made.software_downloadLocation = f"https://huggingface.co/{model.hub}"
        self._licence(made, model.licence, None)
        return made

    def _data(self, one: Data) -> Any:
        kinds: Any = self.model.dataset_DatasetType
        return self.new(
            "dataset_DatasetPackage",
            one.name,
            name=one.name,
            summary=one.what,
            dataset_datasetType=[kinds.numeric if one.name == "targets" else kinds.text],
            dataset_datasetSize=one.rows,
            software_primaryPurpose=self.model.software_SoftwarePurpose.data,
            verifiedUsing=[self._hash(one.sha256, one.hashed)],
        )

    def _licence(self, one: Any, licence: str | None, link: str | None) -> Any:
        """An SPDX id, or a reference of our own with the place where its text stands."""
        from cyclonedx.spdx import fixup_id

        listed, name = fixup_id(licence or ""), licence or "not stated"
        reference = f"LicenseRef-{re.sub('[^A-Za-z0-9.-]+', '-', name)}"
        id_ = one.get_id().partition("#")[2]
        expression = self.new(
            "simplelicensing_LicenseExpression",
            f"licence-{id_}",
            simplelicensing_licenseExpression=listed or reference,
        )
        if not listed:
            told = f"{name}: {link}" if link else name
            text = self.new(
                "simplelicensing_SimpleLicensingText",
                f"licence-text-{id_}",
                simplelicensing_licenseText=told,
            )
            entry = self.model.DictionaryEntry(key=reference, value=text.get_id())
            expression.simplelicensing_customIdToUri = [entry]
        self.relate(one, "hasDeclaredLicense", [expression])
        return expression

    def _document(self, student: Any) -> None:
        kinds: Any = self.model.ProfileIdentifierType
        # Not `ai` and `dataset`, whose profiles also ask where the teacher was released, and when.
        profiles = [kinds.core, kinds.software, kinds.simpleLicensing]
        inside = list(self.elements)
        sbom = self.new(
            "software_Sbom",
            "sbom",
            rootElement=[student],
            element=inside,
            profileConformance=profiles,
        )
        self.new(
            "SpdxDocument",
            "document",
            rootElement=[sbom],
            element=[*inside, sbom],
            profileConformance=profiles,
        )

    def _entries(self, told: dict[str, str]) -> list[Any]:
        return [self.model.DictionaryEntry(key=key, value=value) for key, value in told.items()]

    def _hash(self, sha256: str, comment: str | None = None) -> Any:
        made = self.model.Hash(algorithm=self.model.HashAlgorithm.sha256, hashValue=sha256)
        if comment:
            made.comment = comment
        return made


def _metrics(p: Provenance) -> dict[str, str]:
    told: dict[str, str] = {}
    for row in p.rows:
        low, high = map(figure, row["interval"])
        value = f"{figure(row['delta'])} [{low}, {high}], n = {row['n']}"
        told[_key(row)] = f"{value}, {RESULTS[row['passed']]}"
    return told


def _margins(p: Provenance) -> dict[str, str]:
    return {_key(row): figure(row["margin"]) for row in p.rows if row["margin"] is not None}


def _key(row: Any) -> str:
    return f"{row['metric']}: student − {row['against']}"


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = json.dumps(value, ensure_ascii=False)
    return flat
