"""Targets by byte alignment beside plain text distillation, for a student with another tokenizer.

The teacher is the embedded SmolLM2-135M, taken as a service is: its sampled answers and 20
log-probabilities a token, as bytes. The student is a small Llama with random weights and a BPE of
its own, trained on the spot. All contenders start alike and take the same steps over the same text;
what each gives held-out answers is measured in nats a byte, whose difference is that of their KL
from the teacher. Prints one JSON document last, which is also kept in
benchmarks/results/alignment.json; answers are kept in the cache, so that a second run is short.

    python benchmarks/alignment.py [--runs 3] [--prompts 400] [--steps 120]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import keep

from limbeck.collect.alignment import Aligner
from limbeck.collect.ask import ask
from limbeck.collect.prompts import read_prompts
from limbeck.collect.store import AnswerStore
from limbeck.collect.told import pieces_of
from limbeck.models import weights
from limbeck.models.compare import divergence_from, likelihood
from limbeck.models.local import LocalModel, dtype_of
from limbeck.models.protocol import Asked
from limbeck.models.tokenizer import ChatTokenizer, byte_vocabulary
from limbeck.recipe import TrainSection, read_recipe
from limbeck.records import Sampling, Targets, TopLogprobs
from limbeck.train.examples import render
from limbeck.train.learner import Lesson
from limbeck.train.loop import train

ROOT = Path(__file__).parents[1]
TOLD, NEW_TOKENS, VOCABULARY, WIDTH, LAYERS = 20, 40, 1024, 96, 2
SECTION = TrainSection(
    steps=1, batch_tokens=1024, micro_tokens=1024, row_tokens=256, learning_rate=3e-3, top_k=TOLD
)
Told = Mapping[str, Sequence[TopLogprobs]]


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--steps", type=int, default=120)
    given = parser.parse_args()
    asked, told, vocabulary = _answered(given.prompts)
    held_out = [one for one in asked if one[0].split == "held_out"]
    learnt = [one for one in asked if one[0].split == "train"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tokenizer = _student(place / "start", [a.text for _, a in learnt], seed=0)
        asked = {"train": _cut(learnt, tokenizer), "held_out": _cut(held_out, tokenizer)}
        ways = {
            "ours": Aligner(_pieces(tokenizer), vocabulary),
            "nothing but what is certain": Aligner(_pieces(tokenizer)),
        }
        made, rows = {}, []
        for name, aligner in ways.items():
            began = time.perf_counter()
            made[name], known = _targets([*asked["train"], *asked["held_out"]], told, aligner)
            rate = known["tokens"] / (time.perf_counter() - began)
            _say(f"{name}: {known['known']} of {known['tokens']} tokens, {rate:.0f} tokens/s")
            rows.append(_alignment(name, known, rate))
        rows += _measured(place, asked, made, tokenizer, given.runs, given.steps)
    keep("alignment", rows)


def _answered(prompts: int) -> tuple[list[Asked], Told, frozenset[bytes]]:
    """Prompts with the teacher's sampled answers, what a service would tell, and its vocabulary."""
    recipe = read_recipe(ROOT / "recipes" / "demo.toml")
    teacher = LocalModel(weights.find(recipe.teacher.model))
    found = read_prompts(recipe.prompts).prompts[:prompts]
    path = weights.cache_root() / "benchmark-alignment.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    with AnswerStore(path) as store:
        answers = ask(teacher, found, Sampling(NEW_TOKENS, 1.0, 1.0, 1), store, "teacher")
    kept = [(p, a) for p, a in zip(found, answers, strict=True) if a.outcome == "kept"]
    _say(f"{len(kept)} of {len(found)} answers kept")
    pieces = byte_vocabulary(teacher.tokenizer.plain)
    assert pieces is not None, "the embedded teacher is byte-level"
    told: dict[str, list[TopLogprobs]] = {}
    for (_, answer), logprobs in zip(kept, _log_probabilities(teacher, kept), strict=True):
        top = logprobs.topk(TOLD)
        rows = zip(answer.token_ids, logprobs, top.indices, top.values, strict=True)
        told[answer.id] = [
            TopLogprobs(
                pieces[own] or b"",
                float(row[own]),
                tuple(
                    (pieces[i] or b"", p) for i, p in zip(ids.tolist(), ps.tolist(), strict=True)
                ),
            )
            for own, row, ids, ps in rows
        ]
    seen = {token for rows in told.values() for row in rows for token, _ in row.top}
    return kept, told, frozenset(seen - {b""})


@torch.inference_mode()
def _log_probabilities(teacher: LocalModel, asked: Sequence[Asked]) -> Iterator[torch.Tensor]:
    for batch, states in teacher.answer_states(asked):
        for rows in states.split([len(a.token_ids) for _, a in batch]):
            yield teacher.log_probabilities(rows)


def _pieces(tokenizer: ChatTokenizer) -> Any:
    found = pieces_of(tokenizer)
    assert found is not None, "it was made byte-level"
    return found


def _student(folder: Path, texts: Sequence[str], seed: int) -> ChatTokenizer:
    """A small Llama with random weights, and a byte-level BPE trained on the answers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    end = "<|im_end|>"
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    made: Any = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, pad_token=end)
    made.chat_template = (
        "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n' }}{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(made), hidden_size=WIDTH, intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=made.eos_token_id, pad_token_id=made.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return ChatTokenizer(folder)


def _cut(asked: Sequence[Asked], tokenizer: ChatTokenizer) -> list[Asked]:
    return [(p, replace(a, token_ids=tuple(tokenizer.answer_ids(a.text)))) for p, a in asked]


def _targets(
    asked: Sequence[Asked], told: Told, aligner: Aligner
) -> tuple[dict[str, Targets], dict[str, float]]:
    found: dict[str, Targets] = {}
    tokens = known = 0
    tail = 0.0
    for _, a in asked:
        made = aligner.align(told[a.id], a.token_ids, a.text.encode(), TOLD)
        made = made or aligner.text(a.token_ids, TOLD)
        tokens, known = tokens + len(a.token_ids), known + int(made.known.sum())
        tail += float(made.tail[made.known].sum())
        none = np.zeros((len(a.token_ids), 0), np.int64)
        found[a.id] = Targets(
            a.id, np.array(a.token_ids), made.top_ids, made.logprobs, made.tail, none,
            np.zeros(len(a.token_ids), np.float32), 1.0, "",
        )  # fmt: skip
    return found, {"tokens": tokens, "known": known, "tail": tail / max(known, 1)}


def _measured(
    place: Path,
    asked: Mapping[str, list[Asked]],
    made: Mapping[str, dict[str, Targets]],
    tokenizer: ChatTokenizer,
    runs: int,
    steps: int,
) -> list[dict[str, Any]]:
    """What held-out answers cost each contender, trained `runs` times from other weights."""
    size = sum(len(a.text.encode()) for _, a in asked["held_out"])
    tokens = np.array([len(a.token_ids) for _, a in asked["held_out"]])
    reference = {k: replace(t, tokenizer_hash="") for k, t in made["ours"].items()}
    columns = lambda some: {  # noqa: E731
        name: np.concatenate([getattr(reference[a.id], name) for _, a in some])
        for name in ("top_ids", "logprobs", "tail")
    }
    nll: dict[str, list[float]] = {name: [] for name in (*made, "text alone")}
    kl: dict[str, list[float]] = {name: [] for name in nll}
    for run in range(runs):
        _student(place / "start", [a.text for _, a in asked["train"]], seed=run)
        for name in nll:
            trained = _trained(place, asked["train"], made.get(name), tokenizer, run, steps)
            nll[name].append(float(-(likelihood(trained, asked["held_out"]) * tokens).sum() / size))
            told = divergence_from(columns, trained, asked["held_out"])
            kl[name].append(float((told * tokens).sum() / size))
            _say(f"run {run} {name}: {nll[name][-1]:.4f} nats/byte, {kl[name][-1]:.4f} to the told")
    return [_row(f"held_out_nll, {steps} steps", nll), _row(f"kl_to_told, {steps} steps", kl)]


def _trained(
    place: Path,
    asked: Sequence[Asked],
    targets: Mapping[str, Targets] | None,
    tokenizer: ChatTokenizer,
    seed: int,
    steps: int,
) -> LocalModel:
    if targets is not None:
        targets = {k: replace(t, tokenizer_hash=tokenizer.hash) for k, t in targets.items()}
    examples = render(asked, tokenizer, targets)
    alone = targets is None
    section = SECTION.model_copy(update={"steps": steps})
    lesson = Lesson("student", place / "start", examples, [], section, seed, steps, None, alone)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        out = Path(folder)
        train(lesson, out, out / "metrics.jsonl", dtype_of("float32"))
        return LocalModel(weights.find(str(out / "final")), precision="float32")


def _row(what: str, found: Mapping[str, list[float]]) -> dict[str, Any]:
    """Lower is better; the spread is of the ratio to the best peer, run by run."""
    medians = {name: statistics.median(values) for name, values in found.items()}
    ours = medians.pop("ours")
    best = min(medians, key=medians.__getitem__)
    ratios = sorted(a / b for a, b in zip(found["ours"], found[best], strict=True))
    return {
        "what": what, "unit": "nats/byte", "ours": round(ours, 4),
        "peers": {name: round(value, 4) for name, value in medians.items()},
        "ratio": round(ours / medians[best], 4), "memory_ratio": None,
        "runs": len(ratios), "spread": [round(ratios[0], 4), round(ratios[-1], 4)],
    }  # fmt: skip


def _alignment(name: str, known: Mapping[str, float], rate: float) -> dict[str, Any]:
    return {
        "what": f"share of tokens with a distribution: {name}", "unit": "share",
        "ours": round(known["known"] / known["tokens"], 4), "peers": {}, "ratio": None,
        "memory_ratio": None, "runs": 1, "spread": None, "mean_tail": round(known["tail"], 4),
        "tokens_per_s": round(rate, 1),
    }  # fmt: skip


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
