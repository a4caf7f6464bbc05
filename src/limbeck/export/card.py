"""The student's model card and NOTICE: what it is, from whom, by what right, and how good it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from limbeck.errors import InputError, first_line
from limbeck.export.provenance import Model, Provenance
from limbeck.export.wording import NOTHING, RESULTS

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# https://huggingface.co/docs/hub/repositories-licenses; any other licence is `other` with a name.
HUB_LICENCES = frozenset({
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
    "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1",
    "lgpl-3.0", "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl", "openrail++", "osl-3.0",
    "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr", "deepfloyd-if-license",
    "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma", "unknown",
})  # fmt: skip
COUNTED = ("parameters", "bytes")  # facts, not evaluation results
PASSED_ON = "Use policy, which passes on to whoever uses this model"
BODY = """
# {name}
{displayed}
A student of **{teacher}**, distilled with [Limbeck](https://github.com/limbeck/limbeck) {version}:
{made}.
Its verdict: **{passed}** ([figures](#measured)).

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

## Teacher and terms
{models}
{terms}
{duties}

`base_model` tells the hub where the weights start. The hub has no relation for distillation;
`finetune` is the nearest, and `teacher` names who was learnt from.

## Data
{answers} answers of the teacher to {prompts} prompts ({outcomes}), from
`{source_name}`; the last was asked for on {day}.

| data | rows | SHA-256 | over |
|---|---|---|---|
{data}

## Measured
On held-out prompts, student against the control (the same start, steps and text, without the
teacher's distribution) and against the teacher; paired {confidence:.0%} intervals. Speeds are the
machine's as much as the model's, and stand in the run's report.

| metric | against | teacher | student | control | delta | interval | n | verdict |
|---|---|---|---|---|---|---|---|---|
{rows}

## Recipe
`{recipe_id}`
```toml
{recipe}```
"""


def model_card(p: Provenance) -> str:
    """Markdown under Hugging Face metadata; every figure comes from `verdict.json`.

    Raises InputError where `huggingface_hub` does not take the metadata, the name included.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(p.name)
        card = ModelCard(f"---\n{_metadata(p).to_yaml()}\n---\n{_body(p)}")
        assert card.data.to_dict() == _metadata(p).to_dict(), "the metadata do not read back"
    except ValueError as error:
        raise InputError(f"The hub takes no card for {p.name!r}: {first_line(error)}") from None
    return str(card)


def notice(p: Provenance) -> str:
    """The NOTICE file: lines that terms want kept, and where every term stands."""
    lines = [p.name, *p.duties.notice, *p.duties.display]
    lines += [f"{PASSED_ON}: {url}" for url in p.duties.policy]
    lines += ["", "These weights were changed. They come from", _origin(p.base)]
    lines += ["and were trained on answers of", _origin(p.teacher)]
    for one in p.terms:
        lines += ["", f"Terms: {one.route}", one.clause, f"{one.source} (read {one.date_read})"]
    return "\n".join(lines) + "\n"


def licence_link(p: Provenance) -> str:
    """Where the student's licence can be read: the terms' own source, else the NOTICE beside it."""
    inherited = {(name or "").lower() for name in (p.base.licence, *p.duties.licence)}
    if p.licence not in inherited:
        return "NOTICE"
    links = [url for one in p.terms for url in re.findall(r"https?://[^\s;,)]+", one.source)]
    return links[0] if links else "NOTICE"


def figure(value: float | None) -> str:
    """A measured value for reading."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _metadata(p: Provenance) -> Any:
    from huggingface_hub import ModelCardData

    listed = p.licence or "unknown"
    other = listed not in HUB_LICENCES
    return ModelCardData(
        license="other" if other else listed,
        license_name=listed if other else None,
        license_link=licence_link(p) if other else None,
        base_model=p.base.hub,
        base_model_relation="finetune" if p.base.hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["distillation", "limbeck", f"teacher:{p.teacher.hub or p.teacher.name}"],
        teacher=p.teacher.hub or p.teacher.name,
        distillation=_distillation(p),
        model_name=p.name,
        eval_results=list(_results(p)),
    )


def _distillation(p: Provenance) -> dict[str, Any]:
    """What the hub's own fields have no place for."""
    return {
        "teacher_fingerprint": p.teacher.fingerprint,
        "terms": [
            {
                "permission": one.id,
                "route": one.route,
                "decision": one.decision,
                "clause": one.clause,
                "duties": list(one.duties),
                "source": one.source,
                "date_read": one.date_read,
            }
            for one in p.terms
        ],
        "data_sha256": {one.name: one.sha256 for one in p.data},
        "recipe": p.recipe.id,
        "verdict": RESULTS[p.verdict["passed"]],
        "limbeck": p.version,
    }


def _results(p: Provenance) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    for row in p.rows:
        if row["metric"] in COUNTED:
            continue
        yield EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name=f"held-out prompts of {p.name}",
            metric_type=row["metric"],
            metric_name=f"{row['metric']}, against {row['against']}: {_delta(row)}",
            metric_value=row["student"],
        )


def _body(p: Provenance) -> str:
    verdict, samples = p.verdict, p.verdict["samples"]
    teacher, student, outcomes = verdict["teacher"], verdict["student"], verdict["outcomes"]
    return BODY.format(
        name=p.name,
        displayed="".join(f"\n**{text}**\n" for text in p.duties.display),
        teacher=p.teacher.hub or p.teacher.name,
        version=p.version,
        made=_made(p),
        passed=RESULTS[verdict["passed"]],
        t_parameters=teacher["parameters"],
        s_parameters=student["parameters"],
        t_layers=teacher["layers"],
        s_layers=student["layers"],
        t_bytes=teacher["bytes"] / 1e6,
        s_bytes=student["bytes"] / 1e6,
        example=_quoted(samples[0]["prompt"]) if samples else "Hello",
        models=_models(p),
        terms="\n".join(_terms(p)),
        duties="\n".join(_duties(p)),
        answers=outcomes["kept"],
        prompts=sum(outcomes.values()),
        outcomes=", ".join(f"{n} {outcome}" for outcome, n in outcomes.items()),
        source_name=p.recipe.prompts.source.rpartition("/")[2],
        day=p.day or "a day that was not kept",
        data="\n".join(
            f"| {one.name} | {one.rows:,} | `{one.sha256}` | {one.hashed} |" for one in p.data
        ),
        confidence=verdict["confidence"],
        rows="\n".join(_row(row) for row in p.rows),
        recipe_id=p.recipe.id,
        recipe=p.recipe.to_toml(),
    )


def _made(p: Provenance) -> str:
    if p.base == p.teacher:
        return "layers of the teacher, trained on the teacher's answers and their distributions"
    return f"{_origin(p.base)}, trained on the teacher's answers and their distributions"


def _models(p: Provenance) -> str:
    lines = [f"- Teacher: {_origin(p.teacher)}"]
    if p.base != p.teacher:
        lines.append(f"- Starts from: {_origin(p.base)}")
    return "\n".join(lines)


def _origin(model: Model) -> str:
    licence = model.licence or "no licence stated"
    return f"{model.hub or model.name} ({licence}; fingerprint {model.fingerprint})"


def _terms(p: Provenance) -> Iterator[str]:
    for one in p.terms:
        yield f"- Route: {one.route}; decision: {one.decision}; permission `{one.id}`"
        yield f"- Terms: {one.clause} ({one.source}, read {one.date_read})"


def _duties(p: Provenance) -> Iterator[str]:
    d = p.duties
    yield f"- Goes out under: {p.licence or 'no licence that anybody stated'}"
    yield from (f"- Its name starts with {text!r}, as the terms ask" for text in d.name)
    yield from (f"- Shown, as the terms ask: {text}" for text in d.display)
    yield from (f"- {PASSED_ON}: {url}" for url in d.policy)
    yield from (f"- Kept in NOTICE: {text}" for text in d.notice)
    yield from (f"- Left to whoever publishes this model: {text}" for text in d.others)


def _row(row: Mapping[str, Any]) -> str:
    values = [figure(row[who]) for who in ("teacher", "student", "control")]
    low, high = row["interval"]
    cells = [
        row["metric"], row["against"], *values, figure(row["delta"]),
        f"[{figure(low)}, {figure(high)}]", str(row["n"]), RESULTS[row["passed"]],
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _delta(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    word = RESULTS[row["passed"]]
    return f"{figure(row['delta'])} [{figure(low)}, {figure(high)}], n = {row['n']}, {word}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
