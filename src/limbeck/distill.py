"""The walk: wires the rooms, one stage after another, each doing only what is not done yet."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck import __version__, lineage, ranks
from limbeck.collect.ask import collected, gather, grouped, missing, stored
from limbeck.collect.checks import Checks
from limbeck.collect.prompts import content, read_prompts, write_prompts
from limbeck.collect.store import AnswerStore, outcomes
from limbeck.export.duties import check
from limbeck.files import sha256_file, write_text
from limbeck.ground import Ground
from limbeck.permit import gate
from limbeck.preflight.fit import refuse
from limbeck.progress import say
from limbeck.records import identity
from limbeck.run import Fact, Stage, key_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.collect.contamination import EvalSet
    from limbeck.export.provenance import Model
    from limbeck.models.protocol import Asked
    from limbeck.models.weights import Weights
    from limbeck.train.learner import Learns
    from limbeck.validate.measure import Findings

STAGES: tuple[Stage, ...] = (
    "permit", "prompts", "collect", "targets", "student", "train", "control",
    "validate", "export", "report",
)  # fmt: skip
CALIBRATION_ANSWERS = 6


class Walk(Ground):
    """One run's way from recipe to report. Each method is a stage and leaves files behind it."""

    def until(self, last: Stage) -> None:
        """Walk every stage up to `last`, skipping what is done, if there is room for it."""
        stages = STAGES[: STAGES.index(last) + 1]
        for stage in stages:
            if stage == "collect" and not self.served:
                refuse(self, stages, CALIBRATION_ANSWERS)
            getattr(self, stage)()

    def permit(self) -> None:
        """May we? Before the first answer, and again whenever the run goes on."""
        gate.gate(self.permission)
        check(self.recipe, self.terms, self.base.licence if self.base else None)
        say(f"{'permit':>9}  {gate.line(self.permission)}")
        key = key_of("permit", asdict(self.permission))
        path = self.folder / "permission.json"
        if not self.run.is_done("permit", key, path):
            with self.run.work("permit", key) as facts:
                write_text(path, json.dumps(asdict(self.permission), indent=1) + "\n")
                facts["decision"] = self.permission.decision

    def prompts(self) -> None:
        """Read, deduplicate and split the prompts."""
        section = self.recipe.prompts
        key = key_of("prompts", section.model_dump(), content(section))
        path = self.folder / "prompts.jsonl"
        if self._skipped("prompts", key, path):
            return
        with self.run.work("prompts", key) as facts:
            found = read_prompts(section)
            write_prompts(path, found.prompts)
            facts |= {"read": found.read, "exact_duplicates": found.exact_duplicates}
            facts |= {"near_duplicates": found.near_duplicates}
            facts |= {"train": len(found.train), "held_out": len(found.held_out)}

    def collect(self) -> None:
        """Ask the teacher for what is missing; every prompt ends in one outcome."""
        key = self.collect_key
        if self._skipped("collect", key, self.store_path):
            return
        checks, sets = Checks(self.recipe.checks), self.tests()
        checks.ready()  # what is wrong with them shows before anything is paid for
        with self.run.work("collect", key) as facts, self.store() as store:
            asked_now = self._ask_service(store) if self.served else self._ask_weights(store)
            if lineage.dropped(self.folder):
                there = stored(self.all_prompts, self.asking, store)
                lineage.enforce(self.folder, self.all_prompts, there, store)
            name = self.served[0].teacher if self.served else self.weights.name
            asking = self.asking
            facts |= {"teacher": name, "fingerprint": asking.model, "route": asking.route}
            rejected = self._judge(checks, sets, store, name)
            facts |= collected(self.each_prompt(), asking, store)
            facts |= {"asked_now": asked_now, **rejected}

    def _judge(
        self, checks: Checks, sets: Sequence[EvalSet], store: AnswerStore, teacher: str
    ) -> dict[str, Fact]:
        """Hold what is stored to the recipe's checks; what was rejected, and by whom."""
        from limbeck.collect.judge import kinship
        from limbeck.collect.judging import rejudge

        groups = lambda: (  # noqa: E731
            (prompt, [answer for answer in answers if answer])
            for prompt, answers in grouped(self.each_prompt(), self.asking, store)
        )
        found = rejudge(groups, checks, store, sets, self.judge)
        facts: dict[str, Fact] = {f"rejected by {name}": n for name, n in found.items() if n}
        if self.judge is not None:
            kin = kinship(teacher, self.judge.name)
            facts["judge"] = self.judge.name
            facts["judge_is"] = f"not independent of the teacher: {kin}" if kin else "independent"
        return facts

    def _ask_weights(self, store: AnswerStore) -> int:
        asked = 0
        for one in self.asking.each:
            wanted = [p for p in self.all_prompts if one.wants(p)]
            if due := sum(1 for _ in missing(wanted, one, store)):
                there = len(wanted) - due
                gather(self.teacher, wanted, one, store, "collect", len(wanted), there)
            asked += due
        return asked

    def _ask_service(self, store: AnswerStore) -> int:
        from limbeck.collect.service import alone, ask_service

        pupil = lambda: self.pupil if self.base else None  # noqa: E731
        with alone(self.store_path):
            return ask_service(self.recipe, self.each_prompt, store, self.folder, pupil)

    def targets(self) -> None:
        """The teacher's distribution over every kept answer, held-out ones too."""
        if self.served:
            self._told_targets()
            return
        if self.live:
            say(f"{'targets':>9}  none: the teacher runs beside the student")
            return
        key = self.targets_key
        if self._skipped("targets", key, self.folder / "targets" / "index.jsonl"):
            return
        with self.run.work("targets", key) as facts:
            facts |= self.targets_folder().write(
                self.teacher, [*self.asked("train"), *self.asked("held_out")]
            )

    def _told_targets(self) -> None:
        """The same from what the service told, in the student's tokens; none from text alone."""
        if self.base is None:
            say(f"{'targets':>9}  none: no student.base says whose tokens they would be of")
            return
        key, index = self.targets_key, self.folder / "targets" / "index.jsonl"
        if self._skipped("targets", key, *([] if self.text_alone else [index])):
            return
        from limbeck.collect.told import ToldTeacher, check_section

        with self.run.work("targets", key) as facts, self.store() as store:
            asked = [*self.asked("train"), *self.asked("held_out")]
            told = ToldTeacher(store, [answer for _, answer in asked], self.pupil)
            facts |= {"way": told.way, "told": told.told}
            if told.way != "text alone":
                check_section(self.recipe.train)
                facts |= self.targets_folder().write(told, asked)
                facts["known"] = told.count(asked, self.recipe.train.top_k)

    def student(self) -> None:
        """Where the student starts: layers of the teacher, or another model's weights."""
        start = self.folder / "checkpoints" / "start"
        if self._skipped("student", self.student_key, start / "config.json"):
            return
        from limbeck.train.student import start_as_it_is, start_from_layers, start_from_model

        section = self.recipe.student
        with self.run.work("student", self.student_key) as facts:
            if self.served:
                pupil, asked = self.pupil, [*self.asked("train"), *self.asked("held_out")]
                assert self.base is not None, "the pupil is of one"
                facts |= start_as_it_is(self.base, pupil, asked, start)
            elif section.base == "teacher":
                calibration = self.asked("train")[:CALIBRATION_ANSWERS]
                facts |= start_from_layers(self.teacher, section, calibration, start)
            else:
                assert self.base is not None
                facts |= start_from_model(self.base, self.weights, start)

    def train(self) -> None:
        """The student learns the teacher's distribution."""
        self._teach("student", "train")

    def control(self) -> None:
        """The control learns the same text for the same steps, without the distribution.

        Of a student that has nothing but the text, it is where that one starts.
        """
        if not self.text_alone:
            self._teach("control", "control")
        elif not self._skipped("control", key := self.train_key("control")):
            with self.run.work("control", key) as facts:
                facts["control"] = "the start, untrained"

    def _teach(self, role: Learns, stage: Stage) -> None:
        key, folder = self.train_key(role), self.folder / "checkpoints" / role
        learnt = folder / lineage.LEARNT
        if self._skipped(stage, key, folder / "final" / "config.json", learnt):
            return
        from limbeck.models.local import compute_dtype, dtype_of
        from limbeck.train.loop import train

        if not self.live:
            self.__dict__.pop("teacher", None)  # its memory is wanted now
        lesson = self._lesson(role)
        with self.run.work(stage, key) as facts:
            dtype = dtype_of(self.recipe.export.dtype)
            done = ranks.together(train, lesson, folder, self.folder / "metrics.jsonl", dtype)
            lineage.note_learnt(learnt, lesson, done.step)
            facts |= {"steps": done.step, "tokens": done.tokens}
            facts |= {"target_tokens": done.target_tokens}
            facts["tokens_per_s"] = round(done.tokens / max(done.seconds, 1e-9), 1)
            facts["precision"] = str(compute_dtype(self.recipe.train.precision)).split(".")[1]

    def _lesson(self, role: Learns) -> Any:
        from limbeck.models.tokenizer import ChatTokenizer
        from limbeck.train.examples import render
        from limbeck.train.learner import Lesson
        from limbeck.train.loop import plan_steps

        start = self.folder / "checkpoints" / "start"
        asked, kept_back = self.asked("train"), self.asked("held_out")
        bare = self.live or self.text_alone
        found = None if bare else self.targets_folder().read([*asked, *kept_back])
        tokenizer = ChatTokenizer(start)
        examples = render(asked, tokenizer, found)
        held_out = render(kept_back, tokenizer, found)
        teacher = self.teacher if self.live else None
        section, seed = self.recipe.train, self.recipe.seed
        alone = self.text_alone
        lesson = Lesson(role, start, examples, held_out, section, seed, 1, teacher, alone)
        plan = self.folder / "checkpoints" / "plan.json"
        key = self.train_key("student")
        known = json.loads(plan.read_text()) if plan.exists() else {}
        if known.get("key") != key:
            steps = ranks.together(plan_steps, replace(lesson, role="student"))
            known = {"key": key, "steps": steps}
            write_text(plan, json.dumps(known) + "\n")
        return replace(lesson, steps=known["steps"])

    def validate(self) -> None:
        """Student against teacher and control on held-out prompts: `verdict.json`."""
        path = self.folder / "verdict.json"
        if self._skipped("validate", self.validate_key, path):
            return
        from limbeck.validate.verdict import judge, passed, to_json

        section = self.recipe.validate_
        with self.run.work("validate", self.validate_key) as facts, self.store() as store:
            asked = self.asked("held_out")
            found, notes = self._measured(asked, store)
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
                "cost": self.cost(),
                "outcomes": outcomes(self.answers),
                "permission": asdict(self.permission),
                "samples": found.samples,
                "notes": [*notes, *self._of_the_judge()],
            }
            write_text(path, json.dumps(verdict, indent=1, ensure_ascii=False) + "\n")
            facts |= {"passed": str(verdict["passed"]), "held_out_answers": len(asked)}
            facts["sha256"] = sha256_file(path)

    def _of_the_judge(self) -> list[str]:
        """What a verdict has to say of the model that chose the answers, if one did."""
        facts = self.run.manifest["stages"]["collect"].get("facts", {})
        if "judge" not in facts:
            return []
        return [f"{facts['judge']} chose the answers that were learnt from: {facts['judge_is']}."]

    def _measured(
        self, asked: Sequence[Asked], store: AnswerStore
    ) -> tuple[Findings, tuple[str, ...]]:
        """The measurements on held-out prompts, and what a reader has to know of them."""
        from limbeck.models.local import dtype_of
        from limbeck.validate import measure, served

        answered = self.recipe.validate_.prompts
        itemsize = dtype_of(self.recipe.export.dtype).itemsize
        if not self.served:
            sampling = self.recipe.teacher.sampling(self.recipe.seed)
            found = measure.measure(
                self.speakers(), asked, sampling, store, answered=answered, itemsize=itemsize
            )
            return found, measure.NOTES
        targets = None if self.text_alone else self.targets_folder().read(asked)
        found = served.measure(
            self.speakers(),
            asked,
            targets,
            store,
            teacher=self.served[0].teacher,
            answered=answered,
            itemsize=itemsize,
        )
        return found, served.NOTES + (served.TARGETS if targets else served.TEXT_ALONE)

    def export(self) -> None:
        """The student's folder, with its card."""
        path = self.folder / "student"
        given_out = (self.recipe.export.model_dump(), [asdict(one) for one in self.terms])
        key = key_of("export", self.validate_key, *given_out)
        if self._skipped("export", key, path / "README.md"):
            return
        from limbeck.export.provenance import gather
        from limbeck.export.weights import export_student

        assert self.base is not None
        with self.run.work("export", key) as facts, self.store() as store:
            found = gather(self.folder, self.recipe, self._origin(), self.base, self.terms,
                           self.verdict(), self.answers, store, __version__)  # fmt: skip
            facts |= export_student(self.folder / "checkpoints" / "student" / "final", found, path)

    def _origin(self) -> Weights | Model:
        """The teacher, for the papers."""
        from limbeck.export.provenance import Model

        if not self.served:
            return self.weights
        name = self.served[0].teacher
        return Model(name, None, identity("service", self.asking.route, name), None, ())

    def report(self) -> None:
        """`report.html`, made anew where anything before it was."""
        path = self.folder / "report.html"
        key = key_of("report", self.validate_key, __version__)
        if self._skipped("report", key, path):
            return
        from limbeck.export.report import write_report

        with self.run.work("report", key):
            write_report(self.folder)

    def _skipped(self, stage: Stage, key: str, *outputs: Path) -> bool:
        if self.run.is_done(stage, key, *outputs):
            say(f"{stage:>9}  already there")
            return True
        return False
