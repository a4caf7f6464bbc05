"""The student as a folder that others load: weights, tokenizer, chat template, card."""

from __future__ import annotations

import shutil
from pathlib import Path

from limbeck.files import whole_folder


def export_student(trained: Path, card: str, into: Path) -> Path:
    """Copy the trained model folder to `into` with its card as README.md, whole or not at all."""
    with whole_folder(into) as part:
        shutil.copytree(trained, part, dirs_exist_ok=True)
        (part / "README.md").write_text(card, encoding="utf-8")
    return into
