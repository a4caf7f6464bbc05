"""`limbeck distill --dry-run`: what each stage will take and need, before anything is loaded."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from limbeck.collect.prompts import read_prompts
from limbeck.collect.store import AnswerStore
from limbeck.distill import CALIBRATION_ANSWERS, STAGES, Walk
from limbeck.errors import GateError
from limbeck.export.duties import check
from limbeck.models import weights as models
from limbeck.models.shape import read_shape
from limbeck.permit import gate
from limbeck.preflight.fit import Free, need
from limbeck.preflight.machine import free_disk, free_memory
from limbeck.preflight.memory import Disk, Job, disk, memory
from limbeck.preflight.refuse import gigabytes, refusal, student_shape
from limbeck.preflight.work import count
from limbeck.progress import duration, say
from limbeck.recipe import PromptsSection, Recipe
from limbeck.records import Prompt
from limbeck.run import Run, Stage, clashes

MEASURED: frozenset[Stage] = frozenset(
    {"collect", "targets", "student", "train", "control", "validate"}
)
LARGE, ROWS = 2**25, 20_000  # of a file above so many bytes so many rows are read, and scaled up


@dataclass(frozen=True, slots=True)
class Estimate:
    """One stage: seconds, peak of memory and of added disk in bytes, dollars for a teacher's API.

    What is `there` already takes and needs nothing. Nothing is timed of what does not fit: then
    `seconds` is None.
    """

    stage: Stage
    there: bool
    seconds: float | None
    memory: int
    disk: int
    dollars: float


class Rehearsal(Walk):
    """A walk that only looks: which stages are done, and what is known of the others."""

    def __init__(self, run: Run, scratch: Path) -> None:
        super().__init__(run)
        self.found: dict[Stage, bool] = {}
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
    def base(self) -> models.Weights:
        """Likewise what the student starts from."""
        return self.remote_base.weights if self.remote_base else super().base

    def look(self) -> dict[Stage, bool]:
        """Whether each stage is done: by its own key, as the real walk decides it."""
        gate.gate(self.permission)
        check(self.recipe, self.terms, self.base.licence)
        self.found |= {"permit": True, "targets": self.live}
        for stage in STAGES[1:]:
            getattr(self, stage)()
            if stage == "prompts" and not self.found[stage]:
                break  # all later keys depend on the prompts
        return {stage: self.found.get(stage, False) for stage in STAGES}

    def _skipped(self, stage: Stage, key: str, *outputs: Path) -> bool:
        self.found[stage] = self.run.is_done(stage, key, *outputs)
        return True

    def store(self) -> AnswerStore:
        """A copy: to open the store itself would write beside it."""
        for path in self.folder.glob("answers.sqlite*"):
            shutil.copy(path, self.scratch)
        return AnswerStore(self.scratch / "answers.sqlite", self.permission)


def rehearse(recipe: Recipe, folder: Path, as_json: bool) -> None:
    """Print what each stage will take and need; write nothing into the run folder, lock nothing.

    Raises GateError where it cannot fit, naming the change of the recipe that makes it fit.
    """
    run = Run(folder, recipe)
    clashes(run)
    with tempfile.TemporaryDirectory(prefix="limbeck-") as scratch:
        walk = Rehearsal(run, Path(scratch))
        done = walk.look()
        due: frozenset[Stage] = frozenset(stage for stage in STAGES if not done[stage])
        job, reading, imports = _job(walk, done)
    size = 2 if recipe.export.dtype == "bfloat16" else 4
    free, lacking = Free(_free_memory(), free_disk(folder)), need(job, due, size)
    problem = None if lacking.fits(free) else refusal(job, due, size, free)
    seconds: dict[Stage, float] = {"permit": 0.0, "prompts": reading}
    machine = None
    if problem is None and due & MEASURED:
        machine, found = _measured(job, imports, due)
        seconds |= found
    rows = _estimates(job, due, seconds, size)
    told = {
        "name": recipe.name,
        "stages": [asdict(row) for row in rows],
        "totals": _totals(rows, lacking.disk),
        "free": asdict(free),
        "machine": machine,
        "work": asdict(job.work),
        "fits": problem is None,
    }
    if as_json:
        refused = {} if problem is None else {"error": problem, "exit_code": GateError.exit_code}
        print(json.dumps(told | refused))  # noqa: T201
    else:
        _show(rows, told)
    if problem is not None:
        if as_json:
            say(f"{'limbeck':>9}  {problem}")
            raise SystemExit(GateError.exit_code)
        raise GateError(problem)


def _job(walk: Rehearsal, done: dict[Stage, bool]) -> tuple[Job, float, float]:
    """The job, and the seconds that prompts took to read and libraries to import."""
    began = time.perf_counter()
    prompts, scale = (walk.all_prompts, 1.0) if done["prompts"] else _read(walk.recipe.prompts)
    read = (time.perf_counter() - began) * scale
    began = time.perf_counter()
    from transformers import LlamaForCausalLM  # noqa: F401

    from limbeck.models.local import compute_dtype
    from limbeck.models.tokenizer import ChatTokenizer

    imports = time.perf_counter() - began
    place = models.place_of(walk.weights)
    tokenizer = ChatTokenizer(place) if place.exists() else None
    answers = walk.answers if done["prompts"] else []
    work = count(walk.recipe, prompts, answers, tokenizer, scale)
    shape = read_shape(walk.weights, walk.remote.tensors if walk.remote else None)
    base = walk.remote_base
    job = Job(
        recipe=walk.recipe,
        teacher=shape,
        student=read_shape(walk.base, base.tensors) if base else student_shape(walk.recipe, shape),
        work=work,
        itemsize=compute_dtype(walk.recipe.train.precision).itemsize,
        calibration=CALIBRATION_ANSWERS,
        unpacked=tokenizer is None,
        download=sum(found.size for found in (walk.remote, base) if found),
    )
    return job, read, imports


def _read(section: PromptsSection) -> tuple[Sequence[Prompt], float]:
    """The recipe's prompts, and how many times as many there are."""
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
    job: Job, imports: float, due: frozenset[Stage]
) -> tuple[dict[str, Any], dict[Stage, float]]:
    """What was measured of this machine, and the seconds of each stage."""
    import torch

    from limbeck.preflight import cost, probe

    section = job.recipe.train
    say(f"{'measure':>9}  about ten seconds of this machine")
    teacher = probe.measure(job, job.teacher, section)
    same = job.recipe.student.base == "teacher"
    student = teacher if same else probe.measure(job, job.student, section)
    machine = cost.Machine(teacher, student, probe.disk_rate(Path(tempfile.gettempdir())), imports)
    seconds = cost.seconds(job, machine, section.checkpoint_seconds)
    for stage, more in cost.starting_up(job, machine, due).items():
        seconds[stage] += more
    told = {
        "product_flops": teacher.product,
        "disk_bytes_per_s": machine.disk,
        "threads": torch.get_num_threads(),
        "precision": "bfloat16" if job.itemsize < 4 else "float32",
    }
    return told, seconds


def _free_memory() -> int | None:
    """Free memory of what models run on."""
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else free_memory()


def _estimates(
    job: Job, due: frozenset[Stage], seconds: dict[Stage, float], size: int
) -> list[Estimate]:
    peaks, added = memory(job, due), disk(job, size)
    nothing = Disk(0, 0)
    return [
        Estimate(
            stage,
            there=stage not in due,
            seconds=seconds.get(stage) if stage in due else 0.0,
            memory=peaks.get(stage, 0),
            disk=added.get(stage, nothing).peak if stage in due else 0,
            dollars=0.0,  # the weights are here
        )
        for stage in STAGES
    ]


def _totals(rows: Sequence[Estimate], disk_peak: int) -> dict[str, float | None]:
    """Seconds and dollars add up; memory is the largest, disk what lies there at its fullest."""
    times = [row.seconds for row in rows if row.seconds is not None]
    return {
        "seconds": sum(times) if len(times) == len(rows) else None,
        "memory": max(row.memory for row in rows),
        "disk": disk_peak,
        "dollars": sum(row.dollars for row in rows),
    }


def _show(rows: Sequence[Estimate], told: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("stage")
    for title in ("time", "memory", "disk", "cost"):
        grid.add_column(title, justify="right")
    for row in rows:
        if row.there:
            grid.add_row(row.stage, "already there")
        else:
            grid.add_row(row.stage, *_cells(asdict(row)))
    grid.add_section()
    grid.add_row("in all", *_cells(told["totals"]))
    out = Console(highlight=False, emoji=False)
    out.print(grid)
    for line in _remarks(told):
        out.print(line, soft_wrap=True)


def _cells(row: dict[str, Any]) -> list[str]:
    sizes = [gigabytes(row[key]) if row[key] else "–" for key in ("memory", "disk")]
    time_ = "–" if row["seconds"] is None else duration(row["seconds"])
    return [time_, *sizes, f"${row['dollars']:.2f}"]


def _remarks(told: dict[str, Any]) -> list[str]:
    """What the table rests on."""
    free, work, machine = told["free"], told["work"], told["machine"]
    room = "" if free["memory"] is None else f"{gigabytes(free['memory'])} of memory and "
    lines = [f"{'free':>9}  {room}{gigabytes(free['disk'])} of disk"]
    if machine:
        lines.append(
            f"{'measured':>9}  {machine['product_flops'] / 1e9:,.0f} GFLOP/s in "
            f"{machine['precision']} products, {machine['disk_bytes_per_s'] / 1e6:,.0f} MB/s to "
            f"disk, {machine['threads']} threads"
        )
    how = "as the stored answers have it" if work["counted"] else "assumed: no answer is there yet"
    lines.append(
        f"{'answers':>9}  {work['answer_tokens']:.0f} tokens on average, {work['kept']:.0%} kept "
        f"({how})"
    )
    return lines
