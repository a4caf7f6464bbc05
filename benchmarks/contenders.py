"""The contenders of benchmarks/train.py, each alone in a process, stepping when told to.

    python benchmarks/contenders.py NAME JOB.json

reads one word a line on standard input, `step`, `held_out` or `quit`, and answers each with one
JSON line on standard output. JOB.json is what `train.py` wrote: where teacher, student and rows
are, and by which settings all train.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from peak import peak_gb

from limbeck.collect.targets import Binding, TargetsFolder
from limbeck.models.local import LocalModel, compute_dtype
from limbeck.models.protocol import Asked
from limbeck.models.weights import find
from limbeck.progress import stage_bar
from limbeck.recipe import TrainSection
from limbeck.records import Answer, Message, Prompt, Sampling, Usage
from limbeck.train.examples import render
from limbeck.train.learner import Learner, Lesson


class Contender(Protocol):
    """One way to train the student."""

    def step(self) -> dict[str, float]:
        """One optimizer step: `tokens` read without padding, `target_tokens` learnt."""
        ...


def asked(rows: list[dict[str, str]], tokenizer: Any) -> list[Asked]:
    """Rows of instruction, context and response as prompts with the answers learnt from."""
    pairs: list[Asked] = []
    for number, row in enumerate(rows):
        messages = tuple(Message(m["role"], m["content"]) for m in chat(row)[:-1])
        prompt = Prompt(Prompt.identify(messages), messages, f"row {number}", "train")
        text = row["response"]
        ids = tokenizer.inner(text, add_special_tokens=False)["input_ids"]
        ids.append(tokenizer.inner.eos_token_id)
        sampling = Sampling(len(ids))
        answer = Answer(
            Answer.identify(prompt.id, "rows", "file", sampling), prompt.id, "rows", "file",
            sampling, text, "", (), tuple(ids), "stop", Usage(0, len(ids)), "kept",
        )  # fmt: skip
        pairs.append((prompt, answer))
    return pairs


def chat(row: dict[str, str]) -> list[dict[str, str]]:
    """A row as the two turns that every contender sees."""
    question = row["instruction"] + (f"\n\n{row['context']}" if row["context"] else "")
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": row["response"]},
    ]


class Ours:
    """Limbeck's own loop, from stored targets or with the teacher at hand."""

    def __init__(self, job: dict[str, Any], *, live: bool, **settings: Any) -> None:
        teacher = LocalModel(find(job["teacher"])) if live else None
        tokenizer = teacher.tokenizer if teacher else _tokenizer(job)
        pairs, kept_back = asked(job["rows"], tokenizer), asked(job["held_out"], tokenizer)
        tokens = job["batch_tokens"] or _tokens_of(job["batch_rows"], pairs, tokenizer)
        section = TrainSection(
            steps=job["steps"], learning_rate=job["learning_rate"], warmup=0.0,
            batch_tokens=tokens, micro_tokens=min(tokens, 768), row_tokens=job["row_tokens"],
            teacher="live" if live else "stored", **settings,
        )  # fmt: skip
        found, self.scoring = (None, 0.0) if live else _scored(job, section, pairs, kept_back)
        lesson = Lesson(
            "student",
            Path(job["student"]),
            render(pairs, tokenizer, found),
            render(kept_back, tokenizer, found),
            section,
            0,
            job["steps"],
            teacher,
        )
        self.learner = Learner(lesson)
        self._order: Iterator[list[list[int]]] = self.learner.steps()

    def step(self) -> dict[str, float]:
        """One of `Learner.learn`."""
        step = next(self._order)
        examples = [self.learner.lesson.examples[i] for micro in step for i in micro]
        with stage_bar("step", 1, "steps") as meter:
            self.learner.learn(step, meter)
        return {
            "tokens": sum(len(e.token_ids) for e in examples),
            "target_tokens": sum(int(e.loss_mask.sum()) for e in examples),
        }

    @property
    def network(self) -> Any:
        """The student."""
        return self.learner.network


class Trl:
    """TRL's GKDTrainer off-policy (lmbda 0), forward KL (beta 0), with its own optimizer."""

    def __init__(self, job: dict[str, Any], *, liger: bool = False) -> None:
        from datasets import Dataset  # pyright: ignore[reportMissingImports]
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl.experimental.gkd import (  # pyright: ignore[reportMissingImports]
            GKDConfig,
            GKDTrainer,
        )

        dtype = compute_dtype()
        settings = GKDConfig(
            output_dir=job["scratch"], use_cpu=not torch.cuda.is_available(),
            bf16=dtype == torch.bfloat16, lmbda=0.0, beta=0.0, temperature=1.0,
            gradient_checkpointing=False, per_device_train_batch_size=job["batch_rows"],
            learning_rate=job["learning_rate"], lr_scheduler_type="linear", warmup_steps=0,
            max_steps=job["steps"], max_grad_norm=1.0, adam_beta2=0.95, weight_decay=0.01,
            max_length=job["row_tokens"], report_to="none", use_liger_kernel=liger,
            disable_tqdm=True, dataloader_drop_last=False,
        )  # fmt: skip
        load = AutoModelForCausalLM.from_pretrained
        self.trainer = GKDTrainer(
            model=load(job["student"], dtype=torch.float32),
            teacher_model=load(job["teacher"], dtype=dtype),
            args=settings,
            processing_class=AutoTokenizer.from_pretrained(job["teacher"]),
            train_dataset=Dataset.from_list([{"messages": chat(row)} for row in job["rows"]]),
        )
        self.trainer.create_optimizer_and_scheduler(job["steps"])
        self._batches = self._endless()

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.trainer.get_train_dataloader()

    def step(self) -> dict[str, float]:
        """What `Trainer.train` does for one step."""
        batch, trainer = next(self._batches), self.trainer
        model = trainer.model.train()
        learnt = (batch["labels"][:, 1:] != -100).sum()
        trainer.training_step(model, dict(batch), num_items_in_batch=learnt)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        model.zero_grad()
        return {"tokens": int(batch["attention_mask"].sum()), "target_tokens": int(learnt)}

    @property
    def network(self) -> Any:
        """The student."""
        return self.trainer.model


@functools.cache
def _judge(folder: str) -> LocalModel:
    return LocalModel(find(folder))


@torch.no_grad()
def held_out_kl(job: dict[str, Any], network: Any) -> float:
    """Dense forward KL from the teacher, in nats a token, on the held-out rows' answers."""
    teacher = _judge(job["teacher"])
    total, count = 0.0, 0
    was_training, network = network.training, network.eval()
    for prompt, answer in asked(job["held_out"], teacher.tokenizer):
        before = teacher.tokenizer.prompt_ids(prompt)
        ids = torch.tensor([[*before, *answer.token_ids]])
        at = slice(len(before) - 1, -1)
        p, q = (
            model(input_ids=ids, use_cache=False).logits[0, at].float().log_softmax(-1)
            for model in (teacher.network, network)
        )
        total += (p.exp() * (p - q)).sum().item()
        count += len(p)
    network.train(was_training)
    return total / count


def _tokens_of(rows: int, pairs: list[Asked], tokenizer: Any) -> int:
    """Room for so many rows of mean length: a step ends before the row that would not fit."""
    found = [len(tokenizer.prompt_ids(p)) + len(a.token_ids or ()) for p, a in pairs]
    return int((rows + 0.5) * sum(found) / len(found))


def _tokenizer(job: dict[str, Any]) -> Any:
    from limbeck.models.tokenizer import ChatTokenizer

    return ChatTokenizer(Path(job["teacher"]))


def _scored(
    job: dict[str, Any], section: TrainSection, pairs: list[Asked], kept_back: list[Asked]
) -> tuple[Any, float]:
    """The teacher's targets, and the seconds that those of `pairs` took.

    They are scored in a process that ends with the teacher's memory.
    """
    folder = _folder(job, section.top_k, section.tail_samples)
    seconds = 0.0
    if not (folder.path / "index.jsonl").exists():
        path = Path(job["scratch"]) / "score.json"
        path.write_text(json.dumps({**job, "top_k": section.top_k, "drawn": section.tail_samples}))
        done = subprocess.run(  # noqa: S603
            [sys.executable, __file__, "score", str(path)], check=True, capture_output=True
        )
        seconds = float(done.stdout.split()[-1])
    return folder.read([*pairs, *kept_back]), seconds


def score(job: dict[str, Any]) -> float:
    """Write the targets of the job's rows; gives the seconds that those to learn from took."""
    teacher = LocalModel(find(job["teacher"]))
    folder = _folder(job, job["top_k"], job["drawn"])
    began = time.perf_counter()
    folder.write(teacher, asked(job["rows"], teacher.tokenizer))
    seconds = time.perf_counter() - began
    folder.write(teacher, asked([*job["rows"], *job["held_out"]], teacher.tokenizer))
    return seconds


def _folder(job: dict[str, Any], top_k: int, drawn: int) -> TargetsFolder:
    tokenizer = _tokenizer(job)
    sizes = (len(tokenizer.inner), top_k, drawn, 1.0)
    binding = Binding("benchmark", tokenizer.hash, tokenizer.template_hash, *sizes)
    return TargetsFolder(Path(job["scratch"]) / f"targets-{top_k}-{drawn}", binding)


BUILDERS: dict[str, Any] = {
    "ours stored": lambda job: Ours(job, live=False),
    "ours top-k + tail": lambda job: Ours(job, live=False, top_k=16, tail_samples=0),
    "ours live": lambda job: Ours(job, live=True),
    "TRL GKD": Trl,
    "TRL GKD + Liger": lambda job: Trl(job, liger=True),
}


def main() -> None:
    """Build the named contender, then do as told."""
    name, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    if name == "score":
        print(score(job))  # noqa: T201
        return
    torch.manual_seed(0)
    began = time.perf_counter()
    contender = BUILDERS[name](job)
    _tell(built=time.perf_counter() - began, scoring=getattr(contender, "scoring", 0.0))
    for word in sys.stdin:
        match word.strip():
            case "step":
                began = time.perf_counter()
                counts = contender.step()
                _tell(seconds=time.perf_counter() - began, **counts)
            case "held_out":
                _tell(kl=held_out_kl(job, contender.network))
            case _:
                break


def _tell(**facts: float) -> None:
    sys.__stdout__.write(json.dumps({**facts, "peak_gb": peak_gb()}) + "\n")  # pyright: ignore[reportOptionalMemberAccess]
    sys.__stdout__.flush()  # pyright: ignore[reportOptionalMemberAccess]


if __name__ == "__main__":
    main()
