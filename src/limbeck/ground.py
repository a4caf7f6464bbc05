"""What the stages of a run share: read from its folder, worked out once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck import lineage
from limbeck.collect.ask import Asking, stored
from limbeck.collect.checks import Checks
from limbeck.collect.prompts import iterate_prompts, load_prompts
from limbeck.collect.store import AnswerStore, store_of
from limbeck.errors import InputError
from limbeck.models import weights as models
from limbeck.permit import gate, routes
from limbeck.permit.decide import Route, decide
from limbeck.recipe import RUNS_ALIKE
from limbeck.records import Answer, Permission, Prompt
from limbeck.run import Run, key_of
from limbeck.sections import ChecksSection

if TYPE_CHECKING:
    from limbeck.collect.contamination import EvalSet
    from limbeck.collect.judge import Judge
    from limbeck.collect.listing import Format
    from limbeck.collect.targets import TargetsFolder
    from limbeck.models.local import LocalModel
    from limbeck.models.routes import Route as ServedRoute
    from limbeck.models.tokenizer import ChatTokenizer
    from limbeck.recipe import TeacherSection
    from limbeck.records import Role
    from limbeck.train.learner import Learns


class Ground:
    """Models, permissions, rows and keys of one run.

    What a stage is given by those before it is read back from the run folder, so any stage can be
    the first of a process. A key is the hash of what a stage's outcome depends on.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.recipe, self.folder = run, run.recipe, run.folder

    @cached_property
    def weights(self) -> models.Weights:
        """The teacher's weights, found and hashed, not loaded."""
        section = self.recipe.teacher
        return models.find(section.model, revision=section.revision, sha256=section.sha256)

    @cached_property
    def served(self) -> tuple[ServedRoute, Asking] | None:
        """A service's route and what its answers are stored under; None for weights."""
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
        samples = self.recipe.teacher.samples
        return Asking(self.weights.fingerprint, "local", sampling, samples=samples)

    @cached_property
    def base(self) -> models.Weights | None:
        """The weights that the student starts from; None for those of a service's teacher."""
        base = self.recipe.student.base
        if base != "teacher":
            return models.find(base)
        return None if self.recipe.teacher.served else self.weights

    @cached_property
    def permission(self) -> Permission:
        """What the terms of all that shapes the rows, or a recorded permission, say."""
        section, judge = self.recipe.teacher, self.recipe.judge
        shaped = [_way(section) if self.served else _route(self.weights)]
        if judge is not None:
            shaped.append(replace(_way(judge), role="judge"))
        return gate.permission_for(shaped, self.recipe.permit)

    @cached_property
    def terms(self) -> tuple[Permission, ...]:
        """What the student is under: the teacher's permission, and another base's licence."""
        if self.base is None or (not self.recipe.teacher.served and self.base == self.weights):
            return (self.permission,)
        said = self.recipe.permit
        base = decide(
            [_route(self.base)],
            said.purpose,
            competes=said.competes,
            distribution=said.distribution,
        )
        return (self.permission, base)

    @cached_property
    def all_prompts(self) -> tuple[Prompt, ...]:
        """The run's prompts, in both splits."""
        return load_prompts(self.folder / "prompts.jsonl")

    def each_prompt(self) -> Iterator[Prompt]:
        """The same, one after another: there may be more than fit in memory."""
        return iterate_prompts(self.folder / "prompts.jsonl")

    @cached_property
    def answers(self) -> list[Answer]:
        """The teacher's answers to all prompts, in their order."""
        with self.store() as store:
            return stored(self.all_prompts, self.asking, store)

    def asked(self, split: str) -> list[tuple[Prompt, Answer]]:
        """The prompts of one split with the teacher's kept answers."""
        kept: dict[str, list[Answer]] = {}
        for answer in self.answers:
            if answer.outcome == "kept":
                kept.setdefault(answer.prompt_id, []).append(answer)
        asked = (p for p in self.all_prompts if p.split == split)
        return [(p, self._in_tokens(p, answer)) for p in asked for answer in kept.get(p.id, [])]

    def _in_tokens(self, prompt: Prompt, answer: Answer) -> Answer:
        """A service's answer in the student's tokens: it told none of its own.

        Calls, and reasoning where it is learnt, are written as the student's template has them.
        """
        if not self.served:
            return answer
        aloud = self.recipe.train.reasoning and bool(answer.reasoning)
        if aloud or answer.tool_calls:
            ids = self.pupil.template_ids(prompt, answer, reasoning=aloud)
        else:
            ids = self.pupil.answer_ids(answer.text)
        return replace(answer, token_ids=tuple(ids))

    @cached_property
    def pupil(self) -> ChatTokenizer:
        """The tokenizer of the model that a service's student starts from."""
        from limbeck.models.tokenizer import ChatTokenizer

        if self.base is None:
            raise InputError(
                'student.base = "teacher" needs the teacher\'s weights, and a service keeps them: '
                "name the model that the student starts from, a folder or a hub id."
            )
        return ChatTokenizer(models.ordinary_folder(self.base))

    @property
    def text_alone(self) -> bool:
        """Whether a service's answers are learnt from without a distribution."""
        facts = self.run.manifest["stages"].get("targets", {}).get("facts", {})
        return bool(self.served) and facts.get("way") == "text alone"

    @cached_property
    def teacher(self) -> LocalModel:
        """The teacher, loaded."""
        return self.load(self.weights)

    def load(self, weights: models.Weights) -> LocalModel:
        """A local model of these weights, loaded."""
        from limbeck.models.local import LocalModel

        section = self.recipe.teacher
        return LocalModel(
            weights,
            precision=self.recipe.train.precision,
            batch_size=section.batch_size,
            trust_remote_code=section.trust_remote_code,
        )

    @property
    def live(self) -> bool:
        """Whether the teacher runs beside the student, so that nothing is stored of it."""
        return self.recipe.train.teacher == "live"

    @property
    def store_path(self) -> Path:
        """Where the answers are kept."""
        return store_of(self.recipe, self.folder)

    def store(self) -> AnswerStore:
        """The run's answers."""
        return AnswerStore(self.store_path, self.permission, judged=self.collect_key)

    @cached_property
    def collect_key(self) -> str:
        """Of the answers: prompts, teacher, sampling, what was dropped, and the checks."""
        ids = sha256()
        for prompt in self.each_prompt():
            ids.update(f"{prompt.id} {prompt.split}{prompt.reference}\n".encode())
        gone, checks = lineage.dropped(self.folder), self.recipe.checks
        also: list[Any] = [gone] if gone else []
        if checks != ChecksSection():
            also.append(Checks(checks).key)
        if self.judge is not None:
            also.append(asdict(self.judge.asking))
        return key_of("collect", ids.hexdigest(), asdict(self.asking), *also)

    @cached_property
    def judge(self) -> Judge | None:
        """The model that scores answers, not loaded; None where the recipe names none."""
        if self.recipe.judge is None:
            return None
        from limbeck.collect.judge import judge_of

        return judge_of(self.recipe)

    def tests(self) -> list[EvalSet]:
        """What no row to learn from may overlap with."""
        from limbeck.collect.contamination import benchmark, held_out

        told = self.recipe.checks
        if not told.overlap:
            return []
        named = [benchmark(name, told.overlap) for name in told.benchmarks]
        return [*named, held_out(self.each_prompt, told.overlap)]

    @property
    def targets_key(self) -> str:
        """Of the targets."""
        section = self.recipe.train
        kept: tuple[Any, ...] = (section.top_k, section.tail_samples, section.temperature)
        if self.served:
            kept = (section.top_k, self.recipe.student.base, section.reasoning)
        return key_of("targets", self.collect_key, *kept)

    @property
    def student_key(self) -> str:
        """Of where the student starts."""
        return key_of("student", self.collect_key, self.recipe.student.model_dump())

    def train_key(self, role: Learns) -> str:
        """Of the student or the control, trained."""
        section = self.recipe.train.model_dump(exclude={*RUNS_ALIKE})
        dtype = self.recipe.export.dtype
        return key_of(role, self.targets_key, self.student_key, section, dtype, self.recipe.seed)

    @property
    def validate_key(self) -> str:
        """Of the verdict."""
        section = self.recipe.validate_.model_dump()
        return key_of("validate", self.train_key("student"), self.train_key("control"), section)

    def speakers(self) -> dict[Role, LocalModel]:
        """Teacher, student and control, loaded; no teacher where it is a service."""
        loaded: dict[Role, LocalModel] = {} if self.served else {"teacher": self.teacher}
        names: dict[Role, str] = {
            "student": self.recipe.name,
            "control": f"{self.recipe.name} control",
        }
        for role, name in names.items():
            place = f"{role}/final"
            if role == "control" and self.text_alone:
                place, name = "start", f"{self.recipe.name} untrained"
            found = models.find(str(self.folder / "checkpoints" / place))
            loaded[role] = self.load(replace(found, name=name))
        return loaded

    def verdict(self) -> dict[str, Any]:
        """The content of `verdict.json`; InputError where validation has not been done."""
        path = self.folder / "verdict.json"
        if not path.exists():
            raise InputError(f"{self.folder} has no verdict yet: run limbeck validate first")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}). Remove it and run again.") from None

    def listed(self, outcome: str | None, form: Format) -> Iterator[dict[str, Any]]:
        """The answers as rows (see `collect.listing`), of one outcome or all."""
        from limbeck.collect.listing import messages, rows

        if not self.store_path.exists():
            raise InputError(f"{self.folder} has no answers yet: run limbeck collect first")
        with AnswerStore(self.store_path, read_only=True, judged=self.collect_key) as store:
            found = rows(self.each_prompt(), self.asking, store, outcome)
            aloud = self.recipe.train.reasoning
            yield from messages(found, reasoning=aloud) if form == "messages" else found

    def cost(self) -> dict[str, float | None]:
        """What the run has cost so far: seconds, dollars if known, the teacher's tokens."""
        stages = self.run.manifest["stages"].values()
        return {
            "seconds": round(sum(s.get("seconds", 0.0) for s in stages), 1),
            "dollars": self._dollars(),
            "teacher_tokens_in": sum(a.usage.tokens_in for a in self.answers),
            "teacher_tokens_out": sum(a.usage.tokens_out for a in self.answers),
        }

    def _dollars(self) -> float | None:
        if not self.served:
            return 0.0
        from limbeck.models.budget import find_price
        from limbeck.models.routes import SERVER

        where = self.served[0]
        provider = "" if where.provider == SERVER else where.provider
        price = find_price(provider, where.model, self.recipe.budget)
        return price and round(sum(price.dollars(a.usage) for a in self.answers), 4)

    def targets_folder(self) -> TargetsFolder:
        """The run's targets, bound to what they depend on."""
        from limbeck.collect.targets import Binding, TargetsFolder
        from limbeck.models.tokenizer import ChatTokenizer

        section = self.recipe.train
        if self.served:
            tokenizer, fingerprint, samples = self.pupil, self.asking.model, 0
        else:
            tokenizer = ChatTokenizer(models.ordinary_folder(self.weights))
            fingerprint, samples = self.weights.fingerprint, section.tail_samples
        binding = Binding(
            teacher=fingerprint,
            tokenizer=tokenizer.hash,
            template=tokenizer.template_hash,
            vocabulary=len(tokenizer.inner),
            top_k=section.top_k,
            tail_samples=samples,
            temperature=section.temperature,
        )
        return TargetsFolder(self.folder / "targets", binding)


def _way(section: TeacherSection) -> Route:
    """The route by which terms are looked up for whatever model a section names."""
    if section.url is not None:
        return routes.route_at(section.url, section.model)
    if section.served:
        return routes.route_of(section.model)
    found = models.find(section.model, revision=section.revision, sha256=section.sha256)
    return _route(found)


def _route(weights: models.Weights) -> Route:
    return Route("weights", "", weights.name, weights.licence, weights.licence_source)
