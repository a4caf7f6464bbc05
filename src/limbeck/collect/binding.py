"""Which targets belong to a run: bound to its teacher's weights, tokenizer and template."""

from __future__ import annotations

from pathlib import Path

from limbeck.collect.targets import Binding, TargetsFolder
from limbeck.models.tokenizer import ChatTokenizer
from limbeck.models.weights import Weights, ordinary_folder
from limbeck.recipe import TrainSection


def targets_folder(path: Path, teacher: Weights, section: TrainSection) -> TargetsFolder:
    """The folder of the targets that `teacher` gives under these settings."""
    tokenizer = ChatTokenizer(ordinary_folder(teacher))
    binding = Binding(
        teacher=teacher.fingerprint,
        tokenizer=tokenizer.hash,
        template=tokenizer.template_hash,
        vocabulary=len(tokenizer.inner),
        top_k=section.top_k,
        temperature=section.temperature,
    )
    return TargetsFolder(path, binding)
