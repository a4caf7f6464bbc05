"""The student's model card: what it is, from whom, under which terms, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from limbeck.recipe import Recipe
from limbeck.records import Permission

TIMED = ("tokens_per_s", "answers_per_s")  # another value each time: the card has to repeat
PATHS = (
    ("teacher", "model"),
    ("prompts", "source"),
    ("prompts", "held_out"),
    ("student", "base"),
    ("permit", "permission"),
)
BODY = """\
# {name}

A student of {teacher}, distilled with [Limbeck](https://github.com/limbeck/limbeck) {version}.

| | teacher | student |
|---|---|---|
| parameters | {t_parameters:,} | {s_parameters:,} |
| layers | {t_layers} | {s_layers} |
| weights on disk | {t_bytes:.0f} MB | {s_bytes:.0f} MB |

## Use
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
turns = [{{"role": "user", "content": "{example}"}}]
ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))
```

## Teacher and permission
- Teacher: `{teacher}`, fingerprint `{fingerprint}`
- Route: {route}
- Decision: {decision}; {clause} ({source}, read {date})
- Duties that pass on: {duties}

## Data
{answers} answers of the teacher to {prompts} prompts ({outcomes}), from `{source_name}`;
recipe `{recipe_id}`. Greedy decoding unless the recipe says otherwise.

## Measured
On held-out prompts, student against the control (the same start, steps and text, without the
teacher's distribution) and against the teacher; paired {confidence:.0%} intervals. Speeds are the
machine's as much as the model's, and stand in the run's report.

| metric | against | teacher | student | control | delta | interval | n |
|---|---|---|---|---|---|---|---|
{rows}

## Recipe
```toml
{recipe}```
"""


def model_card(
    recipe: Recipe,
    permission: Permission,
    verdict: Mapping[str, Any],
    licence: str | None,
    version: str,
) -> str:
    """Markdown with Hugging Face metadata; every figure comes from `verdict.json`."""
    teacher, student = verdict["teacher"], verdict["student"]
    outcomes = verdict["outcomes"]
    samples = verdict["samples"]
    return _front(recipe, teacher["name"], licence) + BODY.format(
        name=recipe.name,
        teacher=teacher["name"],
        version=version,
        t_parameters=teacher["parameters"],
        s_parameters=student["parameters"],
        t_layers=teacher["layers"],
        s_layers=student["layers"],
        t_bytes=teacher["bytes"] / 1e6,
        s_bytes=student["bytes"] / 1e6,
        example=_quoted(samples[0]["prompt"]) if samples else "Hello",
        fingerprint=teacher["fingerprint"],
        route=permission.route,
        decision=permission.decision,
        clause=permission.clause,
        source=permission.source,
        date=permission.date_read,
        duties="; ".join(permission.duties) or "none",
        answers=outcomes["kept"],
        prompts=sum(outcomes.values()),
        outcomes=", ".join(f"{n} {outcome}" for outcome, n in outcomes.items()),
        source_name=recipe.prompts.source.rpartition("/")[2],
        recipe_id=recipe.id,
        confidence=verdict["confidence"],
        rows="\n".join(_row(row) for row in verdict["rows"] if row["metric"] not in TIMED),
        recipe=_shareable(recipe).to_toml(),
    )


def _shareable(recipe: Recipe) -> Recipe:
    """The recipe with names in place of absolute paths, which are this machine's business."""
    table = recipe.model_dump(by_alias=True)
    for section, key in PATHS:
        value = table[section][key]
        if isinstance(value, str) and Path(value).is_absolute():
            table[section][key] = Path(value).name
    return Recipe.model_validate(table)


def _front(recipe: Recipe, teacher: str, licence: str | None) -> str:
    told: dict[str, Any] = {
        "license": licence.lower() if licence else "other",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", "limbeck"],
        "teacher": teacher,
    }
    if "/" in recipe.teacher.model and not recipe.teacher.model.startswith("/"):
        told["base_model"] = recipe.teacher.model
    return "---\n" + yaml.safe_dump(told, sort_keys=False, allow_unicode=True) + "---\n\n"


def _row(row: Mapping[str, Any]) -> str:
    values = [_number(row[who]) for who in ("teacher", "student", "control")]
    low, high = row["interval"]
    cells = [
        row["metric"], row["against"], *values, _number(row["delta"]),
        f"[{_number(low)}, {_number(high)}]", str(row["n"]),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
