"""States of training on disk: written whole, the newest kept, taken up bit for bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from limbeck.errors import InputError
from limbeck.files import whole_folder


@dataclass(slots=True)
class Progress:
    """How far training is. `plan` is the hash of what decides its course."""

    plan: str
    step: int = 0
    tokens: int = 0
    target_tokens: int = 0
    seconds: float = 0.0


def save(folder: Path, progress: Progress, tensors: dict[str, Tensor]) -> Path:
    """Write a checkpoint, and remove the older ones once it is in place."""
    from safetensors.torch import save_file

    path = folder / f"step-{progress.step:07d}"
    with whole_folder(path) as part:
        save_file({k: v.contiguous() for k, v in tensors.items()}, part / "state.safetensors")
        (part / "progress.json").write_text(json.dumps(asdict(progress)))
    for old in _found(folder):
        if old != path:
            shutil.rmtree(old)
    return path


def load_newest(folder: Path, plan: str) -> tuple[Progress, dict[str, Tensor]] | None:
    """The newest checkpoint of this plan, or None.

    Raises InputError when it is damaged, or was made by another plan.
    """
    from safetensors.torch import load_file

    found = _found(folder)
    if not found:
        return None
    try:
        progress = Progress(**json.loads((found[-1] / "progress.json").read_text()))
        tensors = load_file(found[-1] / "state.safetensors")
    except Exception as error:
        raise InputError(f"{found[-1]} is damaged ({error}). Remove it and run again.") from None
    if progress.plan != plan:
        raise InputError(
            f"{found[-1]} belongs to other answers, targets or settings than this run's. "
            f"Remove {folder} and run again to train anew."
        )
    return progress, tensors


def clear(folder: Path) -> None:
    """Remove all checkpoints: training is finished."""
    for old in _found(folder):
        shutil.rmtree(old)


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
