"""Whether what a recipe needs is there, and if not, which one change of the recipe makes it fit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from limbeck.errors import GateError, InputError
from limbeck.ground import Ground
from limbeck.models.shape import Shape, read_shape
from limbeck.models.weights import Weights
from limbeck.preflight.memory import Job, disk, memory
from limbeck.preflight.work import count
from limbeck.recipe import Recipe
from limbeck.run import Stage

ERROR = 1.25  # an estimate may be so much too high: what is refused cannot fit even then
_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class Free:
    """Free bytes; `memory` is None where the system does not say."""

    memory: int | None
    disk: int


@dataclass(frozen=True, slots=True)
class Need:
    """The largest of all stages' memory and of the disk's fill, and where each is."""

    memory: int
    memory_stage: Stage | None
    disk: int
    disk_stage: Stage | None

    def fits(self, free: Free, error: float = ERROR) -> bool:
        """Whether there is room even if the estimate is too high by `error`."""
        roomy = free.memory is None or self.memory <= free.memory * error
        return roomy and self.disk <= free.disk * error


def free_memory() -> int | None:
    """Bytes that a new process can have: of the machine or, if less, of its container.

    None where the system does not say (it is read from Linux's /proc and /sys).
    """
    try:
        rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    for limit, used in _LIMITS:
        try:
            most, taken = ((_CGROUP / name).read_text() for name in (limit, used))
            free = min(free, int(most) - int(taken))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return free


def free_disk(folder: Path) -> int:
    """Free bytes where `folder` is or will be."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def has_gpu() -> bool:
    """Whether models may run on a GPU, whose memory only torch can tell."""
    return any(Path("/dev", name).exists() for name in ("nvidia0", "nvidiactl", "kfd", "dxg"))


def need(job: Job, due: frozenset[Stage]) -> Need:
    """What the stages that are due need together: memory one at a time, disk one on the other."""
    peaks = memory(job, due)
    top = max(peaks, key=lambda s: peaks[s], default=None)
    filled, fullest, where = 0, 0, None
    for stage, size in disk(job).items():
        if stage in due:
            if filled + size.peak > fullest:
                fullest, where = filled + size.peak, stage
            filled += size.left
    return Need(peaks[top] if top else 0, top, fullest, where)


def refuse(ground: Ground, stages: Sequence[Stage], calibration: int) -> None:
    """Raise GateError where what is left of `stages` cannot fit, and say what makes it fit.

    The silent check of a real run: only headers are read. What cannot be known that cheaply is not
    judged: memory with a GPU or with several processes, and models whose headers do not tell their
    sizes. In which precision products will run is not known either; the smaller need counts.
    """
    recipe, begun = ground.recipe, ground.run.manifest["stages"]
    due: frozenset[Stage] = frozenset(s for s in stages if "finished" not in begun.get(s, {}))
    try:
        teacher = read_shape(ground.weights)
        student = student_shape(recipe, teacher, ground.base)
    except InputError:
        return  # the stage that loads the model says it better
    work = count(recipe, ground.all_prompts)
    apart = has_gpu() or int(os.environ.get("WORLD_SIZE", "1")) > 1
    free = Free(None if apart else free_memory(), free_disk(ground.folder))
    sizes = {"auto": (2, 4), "bfloat16": (2,), "float32": (4,)}[recipe.train.precision]
    jobs = [Job(recipe, teacher, student, work, itemsize, calibration) for itemsize in sizes]
    if not any(need(job, due).fits(free) for job in jobs):
        raise GateError(refusal(jobs[0], due, free))


def student_shape(recipe: Recipe, teacher: Shape, base: Weights | None) -> Shape:
    """The sizes of a student that starts from its teacher, or from another `base`."""
    if recipe.student.base != "teacher" and base is not None:
        return read_shape(base)
    rest, layer = teacher.other_parameters, teacher.layer_parameters
    return teacher.cut(recipe.student.layers_left(teacher.layers, layer, rest))


def refusal(job: Job, due: frozenset[Stage], free: Free) -> str:
    """What does not fit, and the change that makes it fit, in one line."""
    lacking = need(job, due)
    memory = free.memory is not None and lacking.memory > free.memory
    what, size, there, stage = (
        ("memory", lacking.memory, free.memory, lacking.memory_stage)
        if memory
        else ("disk", lacking.disk, free.disk, lacking.disk_stage)
    )
    found = change(job, lambda j: need(j, due).fits(free, error=1.0))
    advice = (
        f"It fits with {found}."
        if found
        else "No single change makes it fit: take a larger machine, or a smaller model."
    )
    return (
        f"{job.recipe.name} does not fit: {stage} needs about {gigabytes(size)} of {what}, and "
        f"{gigabytes(there or 0)} are free. {advice}"
    )


def change(job: Job, fits: Callable[[Job], bool]) -> str | None:
    """The one change of the recipe, as it would be written, with which `fits` says yes.

    Of a number the largest that fits is named. None where no single change is enough.
    """
    for name, most, changed in _changes(job):
        low, high = 0, most  # the largest that fits lies between, low itself if any
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(changed(middle)) else (low, middle - 1)
        if low:
            return name.format(low)
    return None


def _changes(job: Job) -> Iterator[tuple[str, int, Callable[[int], Job]]]:
    """Each a line of the recipe with a number in it, the largest to try, and the job then."""
    train, teacher = job.recipe.train, job.recipe.teacher

    def with_(section: str, key: str) -> Callable[[int], Job]:
        old = getattr(job.recipe, section)
        return lambda value: replace(
            job,
            recipe=job.recipe.model_copy(
                update={section: old.model_copy(update={key: type(getattr(old, key))(value)})}
            ),
        )

    yield "train.micro_tokens = {}", train.micro_tokens - 1, with_("train", "micro_tokens")
    yield "teacher.batch_size = {}", teacher.batch_size - 1, with_("teacher", "batch_size")
    again = "checkpoint_activations"
    yield f"train.{again} = true", 1, with_("train", again)
    yield "train.top_k = {}", train.top_k - 1, with_("train", "top_k")
    if job.recipe.student.base == "teacher":
        layers = job.student.layers - 1
        yield "student.layers = {}", layers, lambda n: replace(job, student=job.student.cut(n))


def gigabytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
