"""`limbeck distill --dry-run`: what each stage will take and need, before anything is loaded."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.collect.prompts import read_prompts
from limbeck.collect.store import AnswerStore
from limbeck.distill import CALIBRATION_ANSWERS, STAGES, Walk
from limbeck.errors import GateError
from limbeck.export.duties import check
from limbeck.models import weights as models
from limbeck.models.shape import read_shape
from limbeck.permit import gate
from limbeck.preflight.fit import (
    ERROR,
    Free,
    free_disk,
    free_memory,
    gigabytes,
    need,
    refusal,
    student_shape,
)
from limbeck.preflight.memory import ANSWER_ROW, ANSWER_TOKEN, Disk, Job, disk, memory
from limbeck.preflight.work import count
from limbeck.progress import duration, say
from limbeck.recipe import PromptsSection, Recipe
from limbeck.records import Prompt, Usage
from limbeck.run import Run, Stage, clashes

if TYPE_CHECKING:
    from limbeck.collect.service import Due
    from limbeck.models.budget import Purse

MEASURED: frozenset[Stage] = frozenset(
    {"collect", "targets", "student", "train", "control", "validate"}
)
LARGE, ROWS = 2**25, 20_000  # of a file above so many bytes so many rows are read, and scaled up


@dataclass(frozen=True, slots=True)
class Estimate:
    """One stage: seconds, peak of memory and of added disk in bytes, dollars for a service.

    What is `done`, or never has to be, needs nothing. `seconds` is None where nobody can know them,
    of a service's answers, and where nothing was measured, of what does not fit.
    """

    stage: Stage
    done: bool
    seconds: float | None = 0.0
    memory: int = 0
    disk: int = 0
    dollars: float = 0.0


@dataclass(slots=True)
class Plan:
    """All stages, the disk at its fullest, why it cannot be, and what the estimates rest on."""

    rows: list[Estimate]
    disk: int
    problem: str | None
    facts: dict[str, Any]
    remarks: list[str] = field(default_factory=list)

    @property
    def totals(self) -> dict[str, float | None]:
        """Seconds and dollars add up; memory is the largest."""
        times = [row.seconds for row in self.rows if row.seconds is not None]
        return {
            "seconds": sum(times) if len(times) == len(self.rows) else None,
            "memory": max(row.memory for row in self.rows),
            "disk": self.disk,
            "dollars": sum(row.dollars for row in self.rows),
        }


class Rehearsal(Walk):
    """A walk that only looks: which stages are done, and what is known of the others."""

    def __init__(self, run: Run, scratch: Path) -> None:
        super().__init__(run)
        self.done: dict[Stage, bool] = dict.fromkeys(STAGES, False)
        self.scratch = scratch

    @cached_property
    def remote(self) -> models.Headers | None:
        """The teacher's headers, where its weights are still on the hub."""
        return models.headers_on_hub(self.recipe.teacher.model, self.recipe.teacher.revision)

    @cached_property
    def remote_base(self) -> models.Headers | None:
        """Those of the student's base."""
        return models.headers_on_hub(self.recipe.student.base, None)

    @cached_property
    def weights(self) -> models.Weights:
        """The teacher's weights, or what the hub tells of them."""
        return self.remote.weights if self.remote else super().weights

    @cached_property
    def base(self) -> models.Weights | None:
        """Likewise what the student starts from."""
        return self.remote_base.weights if self.remote_base else super().base

    def look(self) -> None:
        """Find whether each stage is done: by its own key, as the real walk decides it."""
        gate.gate(self.permission)
        check(self.recipe, self.terms, self.base.licence if self.base else None)
        self.done |= {"permit": True, "targets": self.live}
        for stage in STAGES[1:]:
            getattr(self, stage)()
            if stage == "prompts" and not self.done[stage]:
                break  # all later keys depend on the prompts

    def _skipped(self, stage: Stage, key: str, *outputs: Path) -> bool:
        self.done[stage] = self.run.is_done(stage, key, *outputs)
        return True

    def store(self) -> AnswerStore:
        """The run's answers, or none in a store that goes with the scratch folder."""
        if self.store_path.exists():
            return AnswerStore(self.store_path, read_only=True)
        return AnswerStore(self.scratch / "answers.sqlite", self.permission)


def rehearse(recipe: Recipe, folder: Path, as_json: bool) -> None:
    """Print what each stage will take and need; write nothing into the run folder, lock nothing.

    Raises GateError where it cannot fit, naming the change of the recipe that makes it fit.
    """
    run = Run(folder, recipe)
    clashes(run)
    with tempfile.TemporaryDirectory(prefix="limbeck-") as scratch:
        walk = Rehearsal(run, Path(scratch))
        walk.look()
        plan = _of_service(walk) if walk.served else _of_weights(walk)
    if not as_json:
        _show(plan)
    else:
        told = {
            "name": recipe.name,
            "stages": [asdict(row) for row in plan.rows],
            "totals": plan.totals,
            "fits": plan.problem is None,
            **plan.facts,
        }
        if plan.problem:
            told |= {"error": plan.problem, "exit_code": GateError.exit_code}
        print(json.dumps(told))  # noqa: T201
    if plan.problem and as_json:
        say(f"{'limbeck':>9}  {plan.problem}")
        raise SystemExit(GateError.exit_code)
    if plan.problem:
        raise GateError(plan.problem)


def _of_weights(walk: Rehearsal) -> Plan:
    due: frozenset[Stage] = frozenset(stage for stage in STAGES if not walk.done[stage])
    job, reading, took = _job(walk)
    free, lacking = Free(_free_memory(), free_disk(walk.folder)), need(job, due)
    problem = None if lacking.fits(free) else refusal(job, due, free)
    seconds: dict[Stage, float] = {"permit": 0.0, "prompts": reading}
    machine = None
    if problem is None and due & MEASURED:
        machine, found = _measured(job, took, due)
        seconds |= found
    peaks, added = memory(job, due), disk(job)
    rows = [
        Estimate(
            stage,
            done=False,
            seconds=seconds.get(stage),
            memory=peaks.get(stage, 0),
            disk=added.get(stage, Disk(0, 0)).peak,
        )
        if stage in due
        else Estimate(stage, done=True)
        for stage in STAGES
    ]
    facts = {"free": asdict(free), "machine": machine, "work": asdict(job.work)}
    facts["download"] = job.download
    return Plan(rows, lacking.disk, problem, facts, _remarks(facts))


def _job(walk: Rehearsal) -> tuple[Job, float, dict[str, float]]:
    """The job, and the seconds that prompts, and that libraries and the teacher's header took."""
    began = time.perf_counter()
    prompts, scale = _prompts(walk)
    read = (time.perf_counter() - began) * scale
    began = time.perf_counter()
    from transformers import LlamaForCausalLM  # noqa: F401

    from limbeck.models.local import compute_dtype
    from limbeck.models.tokenizer import ChatTokenizer

    imports = time.perf_counter() - began
    place = models.place_of(walk.weights)
    tokenizer = ChatTokenizer(place) if place.exists() else None
    answers = walk.answers if walk.done["prompts"] else []
    began = time.perf_counter()
    shape = read_shape(walk.weights, walk.remote.tensors if walk.remote else None)
    took = {"imports": imports, "header": time.perf_counter() - began}
    base = walk.remote_base
    job = Job(
        recipe=walk.recipe,
        teacher=shape,
        student=read_shape(base.weights, base.tensors)
        if base
        else student_shape(walk.recipe, shape, walk.base),
        work=count(walk.recipe, prompts, answers, tokenizer, scale),
        itemsize=compute_dtype(walk.recipe.train.precision).itemsize,
        calibration=CALIBRATION_ANSWERS,
        unpacked=tokenizer is None and walk.weights.file is not None,
        download=sum(found.size for found in (walk.remote, base) if found),
    )
    return job, read, took


def _prompts(walk: Rehearsal) -> tuple[Sequence[Prompt], float]:
    """The run's prompts, or those of the recipe, and how many times as many there are."""
    return (walk.all_prompts, 1.0) if walk.done["prompts"] else _read(walk.recipe.prompts)


def _read(section: PromptsSection) -> tuple[Sequence[Prompt], float]:
    path = Path(section.source)
    if not path.is_file() or path.stat().st_size <= LARGE:
        return read_prompts(section).prompts, 1.0
    rows = _rows(path)
    if section.limit is not None:
        rows = min(rows, section.limit)
    some = section.model_copy(update={"limit": min(ROWS, rows)})
    return read_prompts(some).prompts, max(1.0, rows / ROWS)


def _rows(path: Path) -> int:
    """Rows of a Parquet file, or lines of another."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_metadata(path).num_rows
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def _measured(
    job: Job, took: dict[str, float], due: frozenset[Stage]
) -> tuple[dict[str, Any], dict[Stage, float]]:
    """What was measured of this machine, and the seconds of each stage."""
    import torch

    from limbeck.preflight import cost, probe

    say(f"{'measure':>9}  about ten seconds of this machine")
    teacher = probe.measure(job, job.teacher)
    same = job.recipe.student.base == "teacher"
    student = teacher if same else probe.measure(job, job.student)
    rate = probe.disk_rate(Path(tempfile.gettempdir()))
    machine = cost.Machine(teacher, student, rate, **took)
    told = {
        "product_flops": teacher.product,
        "disk_bytes_per_s": machine.disk,
        "threads": torch.get_num_threads(),
        "precision": "bfloat16" if job.itemsize < 4 else "float32",
    }
    return told, cost.seconds(job, machine, due)


def _free_memory() -> int | None:
    """Free memory of what models run on."""
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else free_memory()


def _of_service(walk: Rehearsal) -> Plan:
    """A service's answers: what they cost. How fast they come is known once they do."""
    from limbeck.collect.service import Due, purse_of

    assert walk.served is not None
    where, asking = walk.served
    prompts, scale = _prompts(walk)
    with walk.store() as store:
        due = Due.count(lambda: iter(prompts), asking, store)
        due.missing, due.bytes = round(due.missing * scale), round(due.bytes * scale)
        likely, most = due.usage(asking, store, batch=walk.recipe.teacher.batch is not None)
        money = purse_of(where, walk.recipe, store)
    price = money.price
    dollars = [price.dollars(usage) if price else 0.0 for usage in (likely, most)]
    size = due.missing * ANSWER_ROW + likely.tokens_out * ANSWER_TOKEN
    rows = [Estimate("permit", True), Estimate("prompts", walk.done["prompts"])]
    rows.append(Estimate("collect", True))
    if due.questions:
        rows[-1] = Estimate("collect", False, None, disk=size, dollars=dollars[0])
    facts: dict[str, Any] = {
        "free": asdict(Free(free_memory(), free_disk(walk.folder))),
        "asking": {
            "questions": due.questions,
            "tokens": likely.tokens_in + likely.tokens_out,
            "most_tokens": most.tokens_in + most.tokens_out,
            "dollars": dollars[0] if price else None,
            "most_dollars": dollars[1] if price else None,
            "price": price.source if price else None,
        },
    }
    source = f", by {price.source}" if price else ""
    remarks = [
        f"{'estimate':>9}  {due.told(money, likely, most)}{source}",
        f"{'student':>9}  not estimated: a service's answers decide what is trained, and how long",
    ]
    return Plan(rows, size, _overspent(walk.recipe, money, likely, due), facts, remarks)


def _overspent(recipe: Recipe, money: Purse, likely: Usage, due: Due) -> str | None:
    """Which cap of [budget] the answers will pass, and the change that keeps them below."""
    dollars = money.price.dollars(likely) if money.price else 0.0
    caps = (
        ("dollars", money.most_dollars, money.dollars, dollars),
        ("tokens", money.most_tokens, money.tokens, likely.tokens_in + likely.tokens_out),
    )
    for key, cap, spent, more in caps:
        if cap is not None and more > ERROR * (cap - spent):
            left = max(0, int((cap - spent) / more * due.missing))
            enough = f"{math.ceil((spent + more) * 100) / 100:.10g}"
            return (
                f"{recipe.name} does not fit: collect takes about {enough} {key}, and budget.{key} "
                f"= {cap:g}. It fits with budget.{key} = {enough}, or with prompts.limit = "
                f"{due.all - due.missing + left}."
            )
    return None


def _show(plan: Plan) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("stage")
    for title in ("time", "memory", "disk", "cost"):
        grid.add_column(title, justify="right")
    for row in plan.rows:
        cells = ["nothing to do"] if row.done else _cells(asdict(row))
        grid.add_row(row.stage, *cells)
    grid.add_section()
    grid.add_row("in all", *_cells(plan.totals))
    out = Console(highlight=False, emoji=False)
    out.print(grid)
    for line in plan.remarks:
        out.print(line, soft_wrap=True)


def _cells(row: dict[str, Any]) -> list[str]:
    sizes = [gigabytes(row[key]) if row[key] else "–" for key in ("memory", "disk")]
    time_ = "–" if row["seconds"] is None else duration(row["seconds"])
    return [time_, *sizes, f"${row['dollars']:.2f}"]


def _remarks(facts: dict[str, Any]) -> list[str]:
    """What the table rests on."""
    free, work, machine = facts["free"], facts["work"], facts["machine"]
    room = "" if free["memory"] is None else f"{gigabytes(free['memory'])} of memory and "
    lines = [f"{'free':>9}  {room}{gigabytes(free['disk'])} of disk"]
    if machine:
        lines.append(
            f"{'measured':>9}  {machine['product_flops'] / 1e9:,.0f} GFLOP/s in "
            f"{machine['precision']} products, {machine['disk_bytes_per_s'] / 1e6:,.0f} MB/s to "
            f"disk, {machine['threads']} threads"
        )
    if facts["download"]:
        size = gigabytes(facts["download"])
        lines.append(f"{'download':>9}  {size} from the hub come first; their time is not counted")
    how = "as the stored answers have it" if work["counted"] else "assumed: no answer is there yet"
    lines.append(
        f"{'answers':>9}  {work['answer_tokens']:.0f} tokens on average, {work['kept']:.0%} kept "
        f"({how})"
    )
    return lines
