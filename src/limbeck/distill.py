"""The walk: wires the rooms, one stage after another, each doing only what is not done yet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck import __version__
from limbeck.collect import prompts as prompt_files
from limbeck.collect.ask import Asking, collected, stored
from limbeck.collect.store import AnswerStore, outcomes
from limbeck.errors import InputError
from limbeck.files import write_text
from limbeck.models import weights as models
from limbeck.permit import decide
from limbeck.progress import say
from limbeck.records import Answer, Permission, Prompt
from limbeck.run import Run, Stage, key_of

if TYPE_CHECKING:
    from limbeck.collect.targets import TargetsFolder
    from limbeck.models.local import LocalModel
    from limbeck.models.routes import Route
    from limbeck.records import Role
    from limbeck.train.loop import Learns

STAGES: tuple[Stage, ...] = (
    "permit", "prompts", "collect", "targets", "student", "train", "control",
    "validate", "export", "report",
)  # fmt: skip
CALIBRATION_ANSWERS = 6


class Walk:
    """One run's way from recipe to report. Each method is a stage and leaves files behind it.

    What a stage is given by those before it is read back from the run folder, so any stage can be
    the first of a process.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.recipe, self.folder = run, run.recipe, run.folder

    def until(self, last: Stage) -> None:
        """Walk every stage up to `last`, skipping what is done."""
        for stage in STAGES[: STAGES.index(last) + 1]:
            getattr(self, stage)()

    # -- what stages share -------------------------------------------------------------------

    @cached_property
    def weights(self) -> models.Weights:
        """The teacher's weights, found and hashed, not loaded."""
        section = self.recipe.teacher
        return models.find(section.model, revision=section.revision, sha256=section.sha256)

    @cached_property
    def permission(self) -> Permission:
        """What the teacher's licence, or a recorded permission, says."""
        section = self.recipe.permit
        recorded = Path(section.permission) if section.permission else None
        if self.served:
            unread = decide.Licence(None, "")
            return decide.decide(self.served[0].teacher, unread, section.purpose, recorded)
        licence = decide.Licence(self.weights.licence, self.weights.licence_source)
        return decide.decide(self.weights.name, licence, section.purpose, recorded)

    @cached_property
    def served(self) -> tuple[Route, Asking] | None:
        """The teacher's route and what its answers are stored under, if it is behind a service."""
        if not self.recipe.teacher.served:
            return None
        from limbeck.collect.service import asking_of

        return asking_of(self.recipe)

    @cached_property
    def asking(self) -> Asking:
        """What the teacher's answers are stored under."""
        if self.served:
            return self.served[1]
        sampling = self.recipe.teacher.sampling(self.recipe.seed)
        return Asking(self.weights.fingerprint, "local", sampling)

    @cached_property
    def all_prompts(self) -> tuple[Prompt, ...]:
        """The run's prompts, in both splits."""
        return prompt_files.load_prompts(self.folder / "prompts.jsonl")

    @cached_property
    def answers(self) -> list[Answer]:
        """The teacher's answers to all prompts, in their order."""
        with self._store() as store:
            return stored(self.all_prompts, self.asking, store)

    def asked(self, split: str) -> list[tuple[Prompt, Answer]]:
        """The prompts of one split with the teacher's kept answers."""
        by_prompt = {a.prompt_id: a for a in self.answers if a.outcome == "kept"}
        return [
            (p, by_prompt[p.id]) for p in self.all_prompts if p.split == split and p.id in by_prompt
        ]

    @cached_property
    def teacher(self) -> LocalModel:
        """The teacher, loaded."""
        return self._load(self.weights)

    def _load(self, weights: models.Weights) -> LocalModel:
        from limbeck.models.local import LocalModel

        section = self.recipe.teacher
        return LocalModel(
            weights,
            precision=self.recipe.train.precision,
            batch_size=section.batch_size,
            trust_remote_code=section.trust_remote_code,
        )

    @property
    def store_path(self) -> Path:
        """Where the answers are: in the run folder, or in a store that runs share."""
        return Path(self.recipe.teacher.answers or self.folder / "answers.sqlite")

    def _store(self) -> AnswerStore:
        return AnswerStore(self.store_path)

    def some_prompts(self) -> Iterator[Prompt]:
        """The run's prompts one after another: there may be more than fit in memory."""
        return prompt_files.iterate_prompts(self.folder / "prompts.jsonl")

    @cached_property
    def _collect_key(self) -> str:
        return key_of("collect", prompt_files.digest(self.some_prompts()), asdict(self.asking))

    @property
    def _targets_key(self) -> str:
        section = self.recipe.train
        return key_of("targets", self._collect_key, section.top_k, section.temperature)

    @property
    def _student_key(self) -> str:
        return key_of("student", self._collect_key, self.recipe.student.model_dump())

    def _train_key(self, role: Learns) -> str:
        section = self.recipe.train.model_dump(exclude={"checkpoint_seconds"})
        dtype = self.recipe.export.dtype
        return key_of(role, self._targets_key, self._student_key, section, dtype, self.recipe.seed)

    @property
    def _validate_key(self) -> str:
        section = self.recipe.validate_.model_dump()
        return key_of("validate", self._train_key("student"), self._train_key("control"), section)

    def _skipped(self, stage: Stage, key: str, *outputs: Path) -> bool:
        if self.run.is_done(stage, key, *outputs):
            say(f"{stage:>9}  already there")
            return True
        return False

    # -- the stages --------------------------------------------------------------------------

    def permit(self) -> None:
        """May we? Before the first answer, and again whenever the run goes on."""
        decide.gate(self.permission)
        say(f"{'permit':>9}  {decide.line(self.permission)}")
        key = key_of("permit", asdict(self.permission))
        path = self.folder / "permission.json"
        if not self.run.is_done("permit", key, path):
            with self.run.work("permit", key) as facts:
                write_text(path, json.dumps(asdict(self.permission), indent=1) + "\n")
                facts["decision"] = self.permission.decision

    def prompts(self) -> None:
        """Read, deduplicate and split the prompts."""
        section = self.recipe.prompts
        key = key_of("prompts", section.model_dump(), prompt_files.content(section))
        path = self.folder / "prompts.jsonl"
        if self._skipped("prompts", key, path):
            return
        with self.run.work("prompts", key) as facts:
            found = prompt_files.read_prompts(section)
            prompt_files.write_prompts(path, found.prompts)
            facts |= {"read": found.read, "exact_duplicates": found.exact_duplicates}
            facts |= {"near_duplicates": found.near_duplicates}
            facts |= {"train": len(found.train), "held_out": len(found.held_out)}

    def collect(self) -> None:
        """Ask the teacher for what is missing; every prompt ends in one outcome."""
        key = self._collect_key
        if self._skipped("collect", key, self.store_path):
            return
        from limbeck.collect.service import ask_teacher

        with self.run.work("collect", key) as facts, self._store() as store:
            facts["asked_now"] = ask_teacher(
                self.recipe,
                self.some_prompts,
                self.asking,
                store,
                lambda: self.teacher,
                self.folder,
            )
            facts |= collected(self.some_prompts(), self.asking, store)

    def targets(self) -> None:
        """The teacher's distribution over every kept answer, held-out ones too."""
        if self.served:
            say(f"{'targets':>9}  none: text alone")
            return
        key = self._targets_key
        if self._skipped("targets", key, self.folder / "targets" / "index.jsonl"):
            return
        with self.run.work("targets", key) as facts:
            facts |= self._targets_folder().write(
                self.teacher, [*self.asked("train"), *self.asked("held_out")]
            )

    def student(self) -> None:
        """Where the student starts: layers of the teacher, or another model's weights."""
        start = self.folder / "checkpoints" / "start"
        if self._skipped("student", self._student_key, start / "config.json"):
            return
        from limbeck.train.student import start_from_layers, start_from_model

        if self.served:
            raise InputError(
                "Training on a service's text is not built yet. Its answers are collected: take "
                f"them elsewhere with limbeck answers {self.folder} --export FILE"
            )
        section = self.recipe.student
        with self.run.work("student", self._student_key) as facts:
            if section.base == "teacher":
                calibration = self.asked("train")[:CALIBRATION_ANSWERS]
                facts |= start_from_layers(self.teacher, section, calibration, start)
            else:
                base = models.find(section.base)
                facts |= start_from_model(base, self.weights, start)

    def train(self) -> None:
        """The student learns the teacher's distribution."""
        self._teach("student", "train")

    def control(self) -> None:
        """The control learns the same text for the same steps, without the distribution."""
        self._teach("control", "control")

    def _teach(self, role: Learns, stage: Stage) -> None:
        key, folder = self._train_key(role), self.folder / "checkpoints" / role
        if self._skipped(stage, key, folder / "final" / "config.json"):
            return
        from limbeck.models.local import compute_dtype, dtype_of
        from limbeck.train.loop import train

        self.__dict__.pop("teacher", None)  # its memory is wanted now
        lesson = self._lesson(role)
        with self.run.work(stage, key) as facts:
            done = train(
                lesson, folder, self.folder / "metrics.jsonl", dtype_of(self.recipe.export.dtype)
            )
            facts |= {"steps": done.step, "tokens": done.tokens}
            facts |= {"target_tokens": done.target_tokens}
            facts["tokens_per_s"] = round(done.tokens / max(done.seconds, 1e-9), 1)
            facts["precision"] = str(compute_dtype(self.recipe.train.precision)).split(".")[1]

    def _lesson(self, role: Learns) -> Any:
        from limbeck.models.tokenizer import ChatTokenizer
        from limbeck.train.examples import render
        from limbeck.train.loop import Lesson, plan_steps

        start, section = self.folder / "checkpoints" / "start", self.recipe.train
        asked, kept_back = self.asked("train"), self.asked("held_out")
        found = self._targets_folder().read([*asked, *kept_back])
        tokenizer = ChatTokenizer(start)
        examples = render(asked, tokenizer, found)
        plan = self.folder / "checkpoints" / "plan.json"
        key = self._train_key("student")
        known = json.loads(plan.read_text()) if plan.exists() else {}
        if known.get("key") != key:
            steps = plan_steps(section, examples, start, self.recipe.seed)
            write_text(plan, json.dumps({"key": key, "steps": steps}) + "\n")
        else:
            steps = known["steps"]
        held_out = render(kept_back, tokenizer, found)
        return Lesson(role, start, examples, held_out, section, self.recipe.seed, steps)

    def validate(self) -> None:
        """Student against teacher and control on held-out prompts: `verdict.json`."""
        path = self.folder / "verdict.json"
        if self._skipped("validate", self._validate_key, path):
            return
        from limbeck.models.local import dtype_of
        from limbeck.validate.measure import NOTES, measure
        from limbeck.validate.verdict import judge, passed, to_json

        section = self.recipe.validate_
        with self.run.work("validate", self._validate_key) as facts, self._store() as store:
            asked = self.asked("held_out")
            sampling = self.recipe.teacher.sampling(self.recipe.seed)
            itemsize = dtype_of(self.recipe.export.dtype).itemsize
            found = measure(
                self._speakers(),
                asked,
                sampling,
                store,
                answered=section.prompts,
                itemsize=itemsize,
            )
            rows = judge(
                found.measured,
                margin=section.margin,
                confidence=section.confidence,
                resamples=section.resamples,
                seed=self.recipe.seed,
            )
            verdict = {
                "name": self.recipe.name,
                "passed": passed(rows),
                "confidence": section.confidence,
                "rows": to_json(rows),
                **found.figures,
                "cost": self._cost(),
                "outcomes": outcomes(self.answers),
                "permission": asdict(self.permission),
                "samples": found.samples,
                "notes": list(NOTES),
            }
            write_text(path, json.dumps(verdict, indent=1, ensure_ascii=False) + "\n")
            facts |= {"passed": str(verdict["passed"]), "held_out_answers": len(asked)}

    def _speakers(self) -> dict[Role, LocalModel]:
        """Teacher, student and control, loaded."""
        loaded: dict[Role, LocalModel] = {"teacher": self.teacher}
        names: dict[Role, str] = {
            "student": self.recipe.name,
            "control": f"{self.recipe.name} control",
        }
        for role, name in names.items():
            found = models.find(str(self.folder / "checkpoints" / role / "final"))
            loaded[role] = self._load(replace(found, name=name))
        return loaded

    def export(self) -> None:
        """The student's folder, with its card."""
        path = self.folder / "student"
        key = key_of("export", self._validate_key, self.recipe.export.model_dump())
        if self._skipped("export", key, path / "README.md"):
            return
        from limbeck.export.card import model_card
        from limbeck.export.weights import export_student

        licence = self.weights.licence
        if self.recipe.student.base != "teacher":
            licence = models.find(self.recipe.student.base).licence
        with self.run.work("export", key) as facts:
            card = model_card(self.recipe, self.permission, self.verdict(), licence, __version__)
            export_student(self.folder / "checkpoints" / "student" / "final", card, path)
            facts["sha256"] = models.find(str(path)).fingerprint
            facts["megabytes"] = round(
                sum(f.stat().st_size for f in path.glob("*.safetensors")) / 1e6, 1
            )

    def report(self) -> None:
        """`report.html`, made anew where anything before it was."""
        path = self.folder / "report.html"
        key = key_of("report", self._validate_key, __version__)
        if self._skipped("report", key, path):
            return
        from limbeck.export.report import write_report

        with self.run.work("report", key):
            write_report(self.folder)

    # -- what comes out ----------------------------------------------------------------------

    def verdict(self) -> dict[str, Any]:
        """The content of `verdict.json`; InputError where validation has not been done."""
        path = self.folder / "verdict.json"
        if not path.exists():
            raise InputError(f"{self.folder} has no verdict yet: run limbeck validate first")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}). Remove it and run again.") from None

    def _cost(self) -> dict[str, float]:
        stages = self.run.manifest["stages"].values()
        return {
            "seconds": round(sum(s.get("seconds", 0.0) for s in stages), 1),
            "dollars": 0.0,
            "teacher_tokens_in": sum(a.usage.tokens_in for a in self.answers),
            "teacher_tokens_out": sum(a.usage.tokens_out for a in self.answers),
        }

    def _targets_folder(self) -> TargetsFolder:
        from limbeck.collect.binding import targets_folder

        return targets_folder(self.folder / "targets", self.weights, self.recipe.train)
