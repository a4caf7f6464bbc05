"""Whether what a recipe needs is there, and if not, which one change of the recipe makes it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from limbeck.preflight.memory import Job, disk, memory
from limbeck.recipe import TrainSection
from limbeck.run import Stage

ERROR = 1.25  # an estimate may be so much too high: what is refused cannot fit even then


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


def need(job: Job, due: frozenset[Stage], export_itemsize: int) -> Need:
    """What the stages that are due need together: memory one at a time, disk one on the other."""
    peaks = memory(job, due)
    top = max(peaks, key=lambda s: peaks[s], default=None)
    filled, fullest, where = 0, 0, None
    for stage, size in disk(job, export_itemsize).items():
        if stage in due:
            if filled + size.peak > fullest:
                fullest, where = filled + size.peak, stage
            filled += size.left
    return Need(peaks[top] if top else 0, top, fullest, where)


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
    recipe = job.recipe

    def with_(section: str, **keys: Any) -> Job:
        changed = getattr(recipe, section).model_copy(update=keys)
        return replace(job, recipe=recipe.model_copy(update={section: changed}))

    yield (
        "train.micro_tokens = {}",
        recipe.train.micro_tokens - 1,
        lambda n: with_("train", micro_tokens=n),
    )
    yield (
        "teacher.batch_size = {}",
        recipe.teacher.batch_size - 1,
        lambda n: with_("teacher", batch_size=n),
    )
    if "checkpoint_activations" in TrainSection.model_fields:
        yield (
            "train.checkpoint_activations = true",
            1,
            lambda _: with_("train", checkpoint_activations=True),
        )
    yield "train.top_k = {}", recipe.train.top_k - 1, lambda n: with_("train", top_k=n)
    if recipe.student.base == "teacher":
        yield (
            "student.layers = {}",
            job.student.layers - 1,
            lambda n: replace(job, student=job.student.cut(n)),
        )
