"""What the walk's two heavy stages cost, beside the plain way to do each, in the same run.

Prints a line a contender on standard error and one JSON document last on standard output, which is
also kept in benchmarks/results/walk.json. Contenders take turns; figures are medians.

    python benchmarks/walk.py [--runs 3]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from results import keep

from limbeck.collect.prompts import read_prompts
from limbeck.models import weights
from limbeck.models.local import LocalModel
from limbeck.models.protocol import Asked
from limbeck.recipe import read_recipe
from limbeck.records import Prompt, Sampling
from limbeck.train.batch import pack
from limbeck.train.examples import render
from limbeck.train.losses import divergence
from limbeck.train.student import drop_layers

ROOT = Path(__file__).parents[1]
PROMPTS, NEW_TOKENS, LAYERS, ROW_TOKENS = 64, 32, 20, 256


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    recipe = read_recipe(ROOT / "recipes" / "demo.toml")
    teacher = LocalModel(weights.find(recipe.teacher.model), batch_size=PROMPTS)
    prompts = read_prompts(recipe.prompts).prompts[:PROMPTS]
    sampling = Sampling(NEW_TOKENS)
    answers = {a.prompt_id: a for batch in teacher.generate(prompts, sampling) for a in batch}
    asked = [(p, answers[p.id]) for p in prompts]
    rows = [
        _row("generate", _generate(teacher, prompts, sampling), runs),
        _row("train_step", _train_step(teacher, asked[: PROMPTS // 2]), runs),
    ]
    keep("walk", rows)


def _row(what: str, contenders: Mapping[str, Callable[[], int]], runs: int) -> dict[str, Any]:
    """Tokens a second of each contender, in turns after one run that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(runs + 1):
        for name, work in contenders.items():
            began = time.perf_counter()
            tokens = work()
            rate = tokens / (time.perf_counter() - began)
            if turn:
                rates[name].append(rate)
                print(f"{what} {name}: {rate:.1f} tokens/s", file=sys.stderr)  # noqa: T201
    medians = {name: statistics.median(found) for name, found in rates.items()}
    ours = medians.pop("ours")
    ratios = [
        a / b
        for a, b in zip(rates["ours"], rates[max(medians, key=medians.__getitem__)], strict=True)
    ]
    return {
        "what": what,
        "unit": "tokens/s",
        "ours": round(ours, 1),
        "peers": {name: round(rate, 1) for name, rate in medians.items()},
        "ratio": round(ours / max(medians.values()), 2),
        "memory_ratio": None,
        "runs": runs,
        "spread": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def _generate(
    teacher: LocalModel, prompts: tuple[Prompt, ...], sampling: Sampling
) -> dict[str, Callable[[], int]]:
    """Greedy answers to the same batch; tokens are those up to each answer's end."""

    def ours() -> int:
        return sum(a.usage.tokens_out for b in teacher.generate(prompts, sampling) for a in b)

    inner = teacher.tokenizer.inner
    rows = [teacher.tokenizer.prompt_ids(p) for p in prompts]
    batch = inner.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")

    def transformers() -> int:
        with torch.inference_mode():
            out = teacher.network.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = out[:, batch["input_ids"].shape[1] :]
        ended = (new == inner.eos_token_id).long().cumsum(-1)
        return int((ended - (new == inner.eos_token_id).long() == 0).sum())

    return {"ours": ours, "transformers generate": transformers}


def _train_step(teacher: LocalModel, asked: list[Asked]) -> dict[str, Callable[[], int]]:
    """Forward and backward of a student with sparse targets; tokens are all that are read.

    The plain way pads rows to the longest and makes logits at every position.
    """
    targets = {t.answer_id: t for t in teacher.score(asked, 32, 1.0)}
    examples = render(asked, teacher.tokenizer, targets)
    student = LocalModel(weights.find(str(teacher.folder)), precision="float32")
    drop_layers(student.network, [*range(LAYERS // 2), *range(30 - LAYERS // 2, 30)])
    network, head = student.network.train(), student.head
    packed = pack(examples, ROW_TOKENS)
    padded_rows = [pack([e], 1) for e in examples]
    tokens = sum(len(e.token_ids) for e in examples)

    def backward(logits: torch.Tensor, batch: Any) -> int:
        loss = divergence(logits, batch.top_ids, batch.logprobs, batch.tail, "forward_kl").mean()
        loss.backward()
        network.zero_grad()
        return tokens

    def ours() -> int:
        states = head.body(
            input_ids=packed.token_ids,
            attention_mask=packed.visible,
            position_ids=packed.positions,
            use_cache=False,
        ).last_hidden_state
        return backward(head(states.flatten(0, 1).index_select(0, packed.predicts)), packed)

    width = max(b.token_ids.shape[1] for b in padded_rows)
    ids = torch.zeros(len(padded_rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    predicts = []
    for row, one in enumerate(padded_rows):
        length = one.token_ids.shape[1]
        ids[row, :length], mask[row, :length] = one.token_ids[0], 1
        predicts.append(one.predicts + row * width)
    wanted = torch.cat(predicts)
    top_ids, logprobs, tail = (
        torch.cat([getattr(b, name) for b in padded_rows])
        for name in ("top_ids", "logprobs", "tail")
    )

    def plain() -> int:
        logits = network(input_ids=ids, attention_mask=mask, use_cache=False).logits
        found = logits.log_softmax(-1).flatten(0, 1)[wanted]
        student_top = found.gather(-1, top_ids)
        student_tail = torch.log1p(-student_top.exp().sum(-1).clamp(max=1 - 1e-6))
        loss = (logprobs.exp() * (logprobs - student_top)).sum(-1)
        loss = loss + tail * (tail.clamp_min(1e-30).log() - student_tail)
        loss.mean().backward()
        network.zero_grad()
        return tokens

    return {"ours": ours, "padded rows, all logits": plain}


if __name__ == "__main__":
    main()
