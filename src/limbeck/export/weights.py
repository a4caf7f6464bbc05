"""The student as a folder that others load: weights, tokenizer, chat template, and its papers."""

from __future__ import annotations

import shutil
from pathlib import Path

from limbeck.errors import extra
from limbeck.export.bom import cyclonedx
from limbeck.export.card import model_card, notice
from limbeck.export.provenance import Provenance
from limbeck.export.spdx import spdx
from limbeck.files import sha256_file, whole_folder
from limbeck.models.weights import find

PAPERS = ("README.md", "NOTICE", "bom.cdx.json", "bom.spdx3.json")


def export_student(trained: Path, p: Provenance, into: Path) -> dict[str, str | float]:
    """Copy the trained model folder to `into` with its papers, whole or not at all.

    The licence and notice files that came with its models' weights go along, under the model's
    name. Returns what the manifest records: hashes of weights and card, and megabytes.
    """
    with extra("papers"):
        texts = (model_card(p), notice(p), cyclonedx(p), spdx(p))
    with whole_folder(into) as part:
        shutil.copytree(trained, part, dirs_exist_ok=True)
        for model in (p.teacher, p.base):
            for file in model.texts:
                shutil.copyfile(file, part / f"{model.name.replace('/', '--')}.{file.name}")
        for name, text in zip(PAPERS, texts, strict=True):
            (part / name).write_text(text, encoding="utf-8")
    size = sum(file.stat().st_size for file in into.glob("*.safetensors"))
    return {
        "sha256": find(str(into)).fingerprint,
        "card": sha256_file(into / PAPERS[0]),
        "megabytes": round(size / 1e6, 1),
    }
