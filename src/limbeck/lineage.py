"""Which answers trained this student, from whom, under which terms, and on which day.

A join over what the stages left in the run folder: prompts, answers with the permission under
which each was asked for, shards of targets, and how often the student was trained on each answer.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.collect.ask import Asking, stored
from limbeck.collect.prompts import load_prompts
from limbeck.collect.store import AnswerStore, store_of
from limbeck.collect.targets import holders
from limbeck.errors import InputError
from limbeck.files import write_text
from limbeck.recipe import Recipe
from limbeck.records import Answer, Outcome, Prompt, Split
from limbeck.run import Run, Stage

if TYPE_CHECKING:
    from limbeck.train.loop import Lesson

DROPPED = "dropped.json"
LEARNT = "answers.json"  # beside a role's checkpoints
FROM_ANSWERS: tuple[Stage, ...] = (
    "targets", "student", "train", "control", "validate", "export", "report",
)  # fmt: skip
MADE: dict[Stage, str] = {
    "student": "checkpoints/start",
    "train": "checkpoints/student",
    "control": "checkpoints/control",
    "validate": "verdict.json",
    "export": "student/",
    "report": "report.html",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt's way towards the student.

    Attributes:
        source: Where the prompt stood, as `file:row`.
        asked_at: When the teacher was asked (ISO 8601, UTC); "" if it was not kept.
        permission: The id of the permission under which it was asked.
        shard: The file that holds the teacher's distribution over the answer, if any.
        times: How often the student was trained on the answer; 0 is never.
    """

    answer: str
    prompt: str
    source: str
    split: Split
    outcome: Outcome
    why: str
    asked_at: str
    permission: str
    shard: str | None
    times: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """A run's student with all that it comes from; `permissions` by id."""

    run: str
    teacher: dict[str, str]
    student: dict[str, str]
    permissions: dict[str, dict[str, Any]]
    rows: tuple[Row, ...]

    def groups(self) -> list[dict[str, Any]]:
        """Counts by file, day and permission; each answer is in one of the four counts."""
        found: dict[tuple[str, str, str], Counter[str]] = {}
        for row in self.rows:
            key = (file_of(row.source), row.asked_at[:10], row.permission)
            found.setdefault(key, Counter())[_fate(row)] += 1
        return [
            {"source": source, "day": day, "permission": permission}
            | {fate: counts[fate] for fate in FATES}
            for (source, day, permission), counts in sorted(found.items())
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, rows and groups, as JSON has it."""
        return asdict(self) | {"groups": self.groups()}


FATES = ("trained", "not_reached", "held_out", "left_out")


@dataclass(frozen=True, slots=True)
class Drop:
    """What removing a source means: which answers go, and what was made with them."""

    source: str
    answers: tuple[str, ...]
    outcomes: dict[Outcome, int]
    trained: int
    shards: tuple[str, ...]
    stages: tuple[Stage, ...]


def trace(recipe: Recipe, folder: Path) -> Lineage:
    """Read the lineage of the run in `folder`; nothing there is touched.

    Raises InputError where no answers were collected yet, or a file of the run is damaged.
    """
    run = Run(folder, recipe)
    facts = _collected(run)
    prompts = load_prompts(folder / "prompts.jsonl")
    key = run.manifest["stages"]["collect"]["key"]
    with AnswerStore(store_of(recipe, folder), read_only=True, judged=key) as store:
        found = stored(prompts, _asking(recipe, facts), store)
        origins = store.origins([answer.id for answer in found])
        permissions = store.permissions()
    shards, times = holders(folder / "targets"), _learnt(run)
    sources = {prompt.id: prompt for prompt in prompts}
    rows = [
        Row(
            answer=answer.id,
            prompt=answer.prompt_id,
            source=sources[answer.prompt_id].source,
            split=sources[answer.prompt_id].split,
            outcome=answer.outcome,
            why=answer.why,
            asked_at=origins[answer.id].asked_at,
            permission=origins[answer.id].permission,
            shard=shards.get(answer.id),
            times=times.get(answer.id, 0),
        )
        for answer in found
    ]
    exported = run.manifest["stages"].get("export", {}).get("facts", {})
    return Lineage(
        run=str(folder),
        teacher={key: facts[key] for key in ("teacher", "fingerprint", "route")},
        student={"name": recipe.name, "sha256": exported.get("sha256", "")},
        permissions=permissions,
        rows=tuple(rows),
    )


def note_learnt(path: Path, lesson: Lesson, taken: int) -> None:
    """Write how often each answer was trained on in the first `taken` steps of a lesson."""
    from limbeck.train.batch import steps

    lengths = [len(example.token_ids) for example in lesson.examples]
    section = lesson.section
    order = steps(lengths, section.batch_tokens, section.micro_tokens, lesson.seed)
    seen = Counter(i for step in islice(order, taken) for micro in step for i in micro)
    times = {lesson.examples[i].answer_id: n for i, n in seen.items()}
    write_text(path, json.dumps(times, indent=0, sort_keys=True) + "\n")


def plan_drop(recipe: Recipe, folder: Path, source: str) -> Drop:
    """What dropping `source` would take out of the run, and what was made with it.

    `source` is a file of prompts (its name is enough where it is the only one), one of its rows as
    `file:row`, or the id of a permission. Raises InputError where there is no such source, where it
    was dropped before, where too little would be left to train and test on, or where the answers
    are other runs' too.
    """
    if recipe.teacher.answers:
        raise InputError(
            f"{recipe.teacher.answers} is shared (teacher.answers): what is dropped there would be "
            "gone from other runs as well. Take the prompts out of the source, and make a new run; "
            "answers to the others are not paid for again."
        )
    lineage = trace(recipe, folder)
    name = _resolve(source, lineage)
    gone = [row for row in lineage.rows if _belongs(name, row.source, row.permission)]
    if name in dropped(folder):
        raise InputError(f"{name} was dropped before. Go on with: limbeck distill {folder}")
    for split in ("train", "held_out"):
        kept = [r for r in lineage.rows if r.split == split and r.outcome == "kept"]
        if not set(kept) - set(gone):
            raise InputError(
                f"Without {name} no answer to a {split} prompt is left. Nothing was changed; "
                "give the run's successor other prompts in a new recipe."
            )
    done = Run(folder, recipe).manifest["stages"]
    return Drop(
        source=name,
        answers=tuple(row.answer for row in gone),
        outcomes=dict(Counter(row.outcome for row in gone)),
        trained=sum(row.times > 0 for row in gone),
        shards=tuple(sorted({row.shard for row in gone if row.shard})),
        stages=tuple(s for s in FROM_ANSWERS if "finished" in done.get(s, {})),
    )


def drop(run: Run, plan: Drop) -> None:
    """Take a source out of the run: its answers are rejected, and what rests on them is due again.

    The texts stay in the store, as those of every other rejected answer; so does the old student's
    folder, until the next `distill` has made its successor. Interrupted, it is finished by the next
    `distill`: what was dropped is on record first.
    """
    today = datetime.now(UTC).date().isoformat()
    new = {"source": plan.source, "day": today, "answers": plan.answers}
    record = [*_record(run.folder), new]
    write_text(run.folder / DROPPED, json.dumps(record, indent=1) + "\n")
    with AnswerStore(run.folder / "answers.sqlite") as store:
        store.reject(plan.answers, _why(plan.source))
    for half_trained in run.folder.glob("checkpoints/*/step-*"):
        shutil.rmtree(half_trained)
    run.forget(*FROM_ANSWERS)


def dropped(folder: Path) -> list[str]:
    """The sources that were taken out of a run."""
    return [entry["source"] for entry in _record(folder)]


def enforce(
    folder: Path, prompts: Sequence[Prompt], answers: Sequence[Answer], store: AnswerStore
) -> list[Answer]:
    """The answers with those to dropped sources rejected, here and in the store."""
    names = dropped(folder)
    places = {prompt.id: prompt.source for prompt in prompts}
    ids = [answer.id for answer in answers]
    origins = store.origins(ids) if names else {}
    for name in names:
        found = [
            a.id for a in answers if _belongs(name, places[a.prompt_id], origins[a.id].permission)
        ]
        store.reject(found, _why(name))
    return store.get(ids) if names else list(answers)


def told(lineage: Lineage) -> Iterator[str]:
    """The lines that tell a person where a student comes from."""
    teacher, student = lineage.teacher, lineage.student
    yield f"student     {student['name']}  sha256 {student['sha256'] or '(not exported yet)'}"
    yield f"teacher     {teacher['teacher']}  fingerprint {teacher['fingerprint']}"
    for group in lineage.groups():
        counts = [f"{group[fate]} {fate.replace('_', ' ')}" for fate in FATES if group[fate]]
        yield f"{group['day'] or 'day unknown':<10}  {group['source']}: {', '.join(counts)}"
        yield f"{'':<10}  under permission {group['permission'] or 'unknown'}"
    for id_, terms in lineage.permissions.items():
        duties = "; ".join(terms["duties"]) or "none"
        yield f"permission  {id_}: {terms['decision']}, {terms['route']}"
        yield f"{'':<10}  {terms['clause']}"
        yield f"{'':<10}  duties: {duties}; {terms['source']}, read {terms['date_read']}"


def told_drop(plan: Drop, folder: Path) -> Iterator[str]:
    """The lines that tell a person what dropping a source does."""
    was = ", ".join(f"{n} {outcome}" for outcome, n in plan.outcomes.items())
    yield f"source      {plan.source}"
    yield f"answers     {len(plan.answers)} become rejected (now {was})"
    yield f"{'':<10}  {plan.trained} of them trained the student"
    yield f"targets     {', '.join(plan.shards) or 'none'}: scored anew without them"
    made = [MADE[stage] for stage in plan.stages if stage in MADE]
    yield f"made anew   {', '.join(made) or 'nothing yet'}"
    if "export" in plan.stages:
        yield f"{'':<10}  {folder / 'student'} stays the old one until then: do not give it out"


def file_of(source: str) -> str:
    """The file of a prompt's `file:row`."""
    return source.rpartition(":")[0]


def _fate(row: Row) -> str:
    if row.times:
        return "trained"
    if row.outcome != "kept":
        return "left_out"
    return "held_out" if row.split == "held_out" else "not_reached"


def _collected(run: Run) -> dict[str, Any]:
    """What the collect stage says of the teacher: its name, fingerprint and route."""
    facts = run.manifest["stages"].get("collect", {}).get("facts", {})
    if "fingerprint" not in facts:
        raise InputError(
            f"{run.folder} has no complete set of answers: run limbeck collect {run.folder} first"
        )
    return facts


def _asking(recipe: Recipe, facts: dict[str, Any]) -> Asking:
    """What the answers are stored under, told without a look at the teacher's weights."""
    if recipe.teacher.served:
        from limbeck.collect.service import asking_of

        return asking_of(recipe)[1]
    sampling = recipe.teacher.sampling(recipe.seed)
    samples = recipe.teacher.samples
    return Asking(facts["fingerprint"], facts["route"], sampling, samples=samples)


def _learnt(run: Run) -> dict[str, int]:
    """How often the student was trained on each answer; nothing before it is trained."""
    if "finished" not in run.manifest["stages"].get("train", {}):
        return {}
    path = run.folder / "checkpoints" / "student" / LEARNT
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}, which says what the student was trained on, cannot be read ({error}). "
            f"Run limbeck train {run.folder} again."
        ) from None


def _resolve(source: str, lineage: Lineage) -> str:
    """The source's full name: a permission's id, a `file:row`, or a file."""
    rows = {row.source for row in lineage.rows}
    files = {file_of(row) for row in rows}
    known = rows | files | {row.permission for row in lineage.rows if row.permission}
    exact = [name for name in (source, str(Path(source).resolve())) if name in known]
    named = [name for name in sorted(files | rows) if Path(name).name == source]
    found = exact[:1] or named
    if not found:
        raise InputError(
            f"{source!r} is no source of {lineage.run}. Its sources are "
            f"{', '.join(sorted(files))}, a row of them as file:row, or the id of a permission"
        )
    if len(found) > 1:
        raise InputError(f"{source!r} may be {' or '.join(found)}: say which")
    return found[0]


def _belongs(name: str, source: str, permission: str) -> bool:
    return name in (source, file_of(source), permission)


def _record(folder: Path) -> list[dict[str, Any]]:
    path = folder / DROPPED
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [dict(entry, source=str(entry["source"])) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): put it back from a copy.") from None


def _why(source: str) -> str:
    return f"source dropped: {source}"
