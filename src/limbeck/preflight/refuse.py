"""The silent check of a real run: a recipe that cannot fit is refused before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from limbeck.errors import GateError, InputError
from limbeck.models.shape import Shape, read_shape
from limbeck.models.weights import Weights
from limbeck.preflight.fit import Free, Need, change, need
from limbeck.preflight.machine import free_disk, free_memory, has_gpu
from limbeck.preflight.memory import Job
from limbeck.preflight.work import count
from limbeck.recipe import Recipe
from limbeck.records import Prompt
from limbeck.run import Run, Stage


def refuse(
    run: Run,
    teacher: Weights,
    prompts: Sequence[Prompt],
    stages: Sequence[Stage],
    calibration: int,
) -> None:
    """Raise GateError where what is left of `stages` cannot fit, and say what makes it fit.

    Only headers are read: hundredths of a second. What cannot be known that cheaply is not judged:
    memory with a GPU or with several processes, and models whose headers do not tell their sizes.
    In which precision products will run is not known either; the smaller need counts.
    """
    recipe, begun = run.recipe, run.manifest["stages"]
    due: frozenset[Stage] = frozenset(s for s in stages if "finished" not in begun.get(s, {}))
    try:
        shape = read_shape(teacher)
        student = student_shape(recipe, shape)
    except InputError:
        return  # the stage that loads the model says it better
    work = count(recipe, prompts)
    apart = has_gpu() or int(os.environ.get("WORLD_SIZE", "1")) > 1
    free = Free(None if apart else free_memory(), free_disk(run.folder))
    size = 2 if recipe.export.dtype == "bfloat16" else 4
    sizes = {"auto": (2, 4), "bfloat16": (2,), "float32": (4,)}[recipe.train.precision]
    jobs = [Job(recipe, shape, student, work, itemsize, calibration) for itemsize in sizes]
    if not any(need(job, due, size).fits(free) for job in jobs):
        raise GateError(refusal(jobs[0], due, size, free))


def student_shape(recipe: Recipe, teacher: Shape) -> Shape:
    """The student's sizes; InputError where they cannot be told without fetching its base."""
    section = recipe.student
    if section.base == "teacher":
        rest, layer = teacher.other_parameters, teacher.layer_parameters
        return teacher.cut(section.layers_left(teacher.layers, layer, rest))
    path = Path(section.base).expanduser()
    if not path.exists():
        raise InputError(f"student.base {section.base} is not on this machine")
    file = path if path.suffix == ".gguf" else None
    folder = path if file is None else path.parent
    return read_shape(Weights(path.stem, folder, file, "", None, ""))


def refusal(job: Job, due: frozenset[Stage], export_itemsize: int, free: Free) -> str:
    """What does not fit, and the change that makes it fit, in one line."""
    lacking: Need = need(job, due, export_itemsize)
    memory = free.memory is not None and lacking.memory > free.memory
    what, size, there, stage = (
        ("memory", lacking.memory, free.memory, lacking.memory_stage)
        if memory
        else ("disk", lacking.disk, free.disk, lacking.disk_stage)
    )
    found = change(job, lambda j: need(j, due, export_itemsize).fits(free, error=1.0))
    advice = (
        f"It fits with {found}."
        if found
        else "No single change makes it fit: take a larger machine, or a smaller model."
    )
    return (
        f"{job.recipe.name} does not fit: {stage} needs about {gigabytes(size)} of {what}, and "
        f"{gigabytes(there or 0)} are free. {advice}"
    )


def gigabytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
