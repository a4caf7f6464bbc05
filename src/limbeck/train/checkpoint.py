"""States of training on disk: written whole, the newest kept, taken up bit for bit.

Tensors are in safetensors files, one of each process that trains. `torch.distributed.checkpoint`
reads them into as many processes as there are then.
"""

from __future__ import annotations

import json
import shutil
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from limbeck import ranks
from limbeck.errors import InputError, ServiceError, first_line
from limbeck.files import FULL, disk_full, whole_folder


@dataclass(slots=True)
class Progress:
    """How far training is. `plan` is the hash of what decides its course.

    `micro_tokens` is what a forward pass was cut down to where memory ran out, else 0.
    """

    plan: str
    step: int = 0
    tokens: int = 0
    target_tokens: int = 0
    seconds: float = 0.0
    micro_tokens: int = 0


def save(folder: Path, progress: Progress, tensors: dict[str, Tensor]) -> Path:
    """Write a checkpoint, and remove the older ones once it is in place.

    All ranks call it, each with its own part of the tensors; rank 0 sees to the folder.
    """
    path = folder / f"step-{progress.step:07d}"
    first = ranks.rank() == 0
    with whole_folder(path) if first else nullcontext() as made:
        part = ranks.from_first(made)
        _write(part, path, tensors)
        if first:
            told = {"progress": asdict(progress), "ranks": ranks.world(), "files": _sizes(part)}
            (part / "progress.json").write_text(json.dumps(told))
    if first:
        for old in _found(folder):
            if old != path:
                shutil.rmtree(old)
    return path


def load_newest(folder: Path, plan: str, tensors: dict[str, Tensor]) -> tuple[Progress, int] | None:
    """Fill `tensors` from the newest checkpoint of this plan; None where there is none.

    Returns its progress, and how many processes wrote it: any number may read it. All ranks call
    this, each with its own part of the tensors. Raises InputError when it is damaged, or was made
    by another plan.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    found = _found(folder)
    if not found:
        return None
    try:
        told = json.loads((found[-1] / "progress.json").read_text())
        progress, by = Progress(**told["progress"]), int(told["ranks"])
        if _sizes(found[-1]) != told["files"]:
            raise ValueError("a file is missing or cut short")
        if progress.plan == plan:
            _read(found[-1], tensors)
    except CheckpointException as error:
        raise _damaged(found[-1], next(iter(error.failures.values()))[0]) from None
    except Exception as error:
        raise _damaged(found[-1], error) from None
    if progress.plan != plan:
        raise InputError(
            f"{found[-1]} belongs to other answers, targets or settings than this run's. "
            f"Remove {folder} and run again to train anew."
        )
    return progress, by


def clear(folder: Path) -> None:
    """Remove all checkpoints: training is finished."""
    for old in _found(folder):
        shutil.rmtree(old)


def _write(part: Path, path: Path, tensors: dict[str, Tensor]) -> None:
    """Write this rank's tensors to the folder `part`, which is to become `path`."""
    if ranks.world() == 1:  # a third of the time that the way below takes
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in tensors.items()}, part / "state.safetensors")
        return
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_parts

    try:
        writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
        save_parts(tensors, storage_writer=writer)
    except CheckpointException as error:
        number, (cause, _) = next(iter(error.failures.items()))
        if isinstance(cause, OSError) and cause.errno in FULL:
            raise disk_full(path) from None
        reason = first_line(cause)
        raise ServiceError(f"{path} could not be written by rank {number}: {reason}") from None


def _read(path: Path, tensors: dict[str, Tensor]) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        reader = HuggingFaceStorageReader(str(path))
        load(tensors, storage_reader=reader, no_dist=ranks.world() == 1)


def _sizes(path: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(path.glob("*.safetensors"))}


def _damaged(path: Path, error: BaseException) -> InputError:
    return InputError(f"{path} is damaged ({first_line(error)}). Remove it and run again.")


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
