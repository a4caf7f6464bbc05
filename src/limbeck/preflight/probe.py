"""Ten seconds of this machine: the rooms' own code timed on networks of a few layers.

The networks are Llamas of the model's sizes with random weights, one of two layers and one of
several, so that a line through the two gives any number of layers. What is timed is what will run,
`LocalModel.generate` and `score` and `Learner.learn`, in batches as large as the recipe's if they
take no more than a second.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter as _now
from typing import Any, cast

import numpy as np
import torch

from limbeck.models.local import LocalModel, compute_dtype, device
from limbeck.models.protocol import SCORE_TOKENS, Asked
from limbeck.models.shape import Shape
from limbeck.models.weights import Weights
from limbeck.preflight.memory import Job
from limbeck.progress import Meter
from limbeck.records import Answer, Example, Message, Prompt, Sampling, Targets, Usage

TABLE = 2**26  # numbers in the embedding of a probe: a larger vocabulary is cut, and scaled up
# Layers of the two probes (fewer stay in the caches from step to step), and parameters in them.
SHALLOW, LAYERS, LARGEST = 2, 8, 2**28
SECONDS = 1.0  # that the longest single timing should take
SMALL = 8  # times smaller is the second batch that is timed
STEPS = 6  # decoding steps that are timed
SURE = 20.0  # of the last norm: as in a trained model, few tokens have most of the chance
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of something: fixed, for each layer, for each unit, and for each of both."""

    fixed: float
    layer: float
    unit: float
    both: float

    def __call__(self, layers: float, units: float) -> float:
        """Seconds for so many layers and units."""
        return self.fixed + self.layer * layers + (self.unit + self.both * layers) * units


def fit(seconds: Mapping[tuple[int, float], float], outside: float = 1.0) -> Cost:
    """The cost whose parts, none below 0, come nearest to seconds at (layers, units).

    `outside` scales what does not depend on layers: the head, where its vocabulary was cut.
    """
    from scipy.optimize import nnls

    rows = np.array([[1, n, u, n * u] for n, u in seconds], np.float64)
    scale = rows.max(0)  # else their sizes differ by thousands
    found, _ = nnls(rows / scale, np.array(list(seconds.values())))
    fixed, layer, unit, both = (found / scale).tolist()
    return Cost(fixed * outside, layer, unit * outside, both)


@dataclass(frozen=True, slots=True)
class Rates:
    """What was measured, for models of one shape.

    `product`: floating-point operations a second of a matrix product at this shape. Costs: `load`
    of one model; `score` of an answer; `prefill` of a token, those that all prompts share apart;
    `decode` of a live row, for one step; `step` of a token of an optimizer step.
    """

    product: float
    load: Cost
    score: Cost
    prefill: Cost
    decode: Cost
    step: Cost


def disk_rate(folder: Path, size: int = 2**26) -> float:
    """Bytes a second that are written to `folder` for good."""
    with tempfile.TemporaryFile(dir=folder) as file:
        began = _now()
        file.write(os.urandom(2**20) * (size >> 20))
        file.flush()
        os.fsync(file.fileno())
        return size / (_now() - began)


def product_rate(shape: Shape, tokens: int, dtype: torch.dtype) -> float:
    """Operations a second of (tokens, H) by (H, I)."""
    left = torch.randn(tokens, shape.hidden, device=device()).to(dtype)
    right = torch.randn(shape.hidden, shape.inner, device=device()).to(dtype)
    once = _timed(lambda: (left @ right)[0, 0].item())
    return 2 * tokens * shape.hidden * shape.inner / once


def measure(job: Job, shape: Shape) -> Rates:
    """Time answering, scoring and learning at the job's batches with models of this shape."""
    dtype = compute_dtype(job.recipe.train.precision)
    product = product_rate(shape, 512, dtype)
    deep = min(LAYERS, max(2 * SHALLOW, LARGEST // shape.layer_parameters))
    vocabulary = min(shape.vocabulary, max(1024, TABLE // shape.hidden))
    outside = shape.vocabulary / vocabulary
    found: dict[str, dict[tuple[int, float], float]] = {}
    budget = SECONDS * product / (2 * 2 * shape.layer_parameters * deep)  # tokens, at half speed
    for layers in (SHALLOW, deep):
        with _folder(shape.cut(layers), vocabulary) as folder:
            timings = _Timings(job, folder, vocabulary, budget)
            for name, rows in timings.all().items():
                found.setdefault(name, {}).update({(layers, u): s for u, s in rows.items()})
    costs = {name: fit(rows, outside) for name, rows in found.items()}
    return Rates(product, **costs)


class _Timings:
    """Seconds by units, of one probe: in a batch of about `tokens`, and in a small one."""

    def __init__(self, job: Job, folder: Path, vocabulary: int, tokens: float) -> None:
        self.job, self.folder, self.vocabulary = job, folder, vocabulary
        self.section, self.tokens = job.recipe.train, tokens
        self.rng = np.random.default_rng(0)

    def all(self) -> dict[str, dict[float, float]]:
        began = _now()
        weights = Weights("probe", self.folder, None, "probe", None, "")
        model = LocalModel(weights, precision=self.section.precision, batch_size=1 << 20)
        loading = _now() - began
        model.stops = ()
        prefill, decode = self.generate(model)
        score = self.score(model)
        del model
        return {
            "load": {1.0: loading},
            "score": score,
            "prefill": prefill,
            "decode": decode,
            "step": self.learn(),
        }

    def rows(self, tokens: float, length: float, most: int) -> list[int]:
        """Rows of a batch of about so many tokens, the largest first."""
        large = max(1, min(most, round(tokens / length)))
        return sorted({large, max(1, large // SMALL)}, reverse=True)

    def generate(self, model: LocalModel) -> tuple[dict[float, float], dict[float, float]]:
        """Prefill by tokens read, and one step by live rows."""
        work, prefill, decode = self.job.work, {}, {}
        length = round(work.prompt_tokens + work.answer_tokens / 2)  # as in a step half-way
        sampling = self.job.recipe.teacher.sampling(0)
        for rows in self.rows(self.tokens, length, self.job.recipe.teacher.batch_size):
            prompts = [self.prompt(length) for _ in range(rows)]
            drawn = Sampling(1 + STEPS, sampling.temperature, sampling.top_p)
            took: list[list[float]] = []
            for _ in range(2):
                at = [_now()]
                for _ in model.generate(prompts, drawn, lambda _, at=at: at.append(_now())):
                    pass
                took.append(np.diff(at).tolist())
            prefill[float(rows * (length - work.shared))] = took[1][0]
            decode[float(rows)] = float(np.median([one[1:] for one in took]))
        return prefill, decode

    def score(self, model: LocalModel) -> dict[float, float]:
        """One batch, by its answers; prompts are as long as the longest of a batch."""
        timings: dict[float, float] = {}
        length, learnt = self.job.work.padded_prompt, max(1, round(self.job.work.kept_tokens))
        for rows in self.rows(min(self.tokens, SCORE_TOKENS), length + learnt, 1 << 20):
            asked = [self.asked(length, learnt) for _ in range(rows)]

            def once(asked: Sequence[Asked] = asked) -> None:
                for _ in model.score(asked, *self.kept()):
                    pass

            once()
            timings[float(rows)] = _timed(once)
        return timings

    def learn(self) -> dict[float, float]:
        """A whole optimizer step of one micro-batch, by its tokens."""
        from limbeck.train.learner import Learner, Lesson

        work, timings = self.job.work, {}
        length, learnt = round(work.prompt_tokens), max(1, round(work.kept_tokens))
        tokens = min(self.tokens / 3, self.job.micro_tokens)
        sizes = self.rows(tokens, length + learnt, 1 << 20)
        examples = [self.example(length, learnt) for _ in range(sizes[0])]
        changes = {"batch_tokens": 1 << 30, "compile": False}  # to compile takes a minute itself
        section = self.section.model_copy(update=changes)
        silent = cast(Meter, _Silent())
        learner = Learner(Lesson("student", self.folder, examples, (), section, 0, 1 << 20))
        for rows in sizes:
            step = [list(range(rows))]

            def once(step: list[list[int]] = step) -> None:
                learner.learn(step, silent)

            once()
            timings[float(rows * (length + learnt))] = _timed(once)
        return timings

    def kept(self) -> tuple[int, float, int]:
        """What is kept of a distribution, as `score` takes it."""
        section = self.section
        return min(section.top_k, self.vocabulary - 1), section.temperature, section.tail_samples

    def prompt(self, tokens: int) -> Prompt:
        """Random tokens, after as many of all prompts' own as the user's prompts have."""
        own = self.rng.integers(1, self.vocabulary, max(1, tokens - self.job.work.shared))
        words = " ".join([*["0"] * self.job.work.shared, *map(str, own)])
        messages = (Message("user", words),)
        return Prompt(Prompt.identify(messages), messages, "probe", "train")

    def asked(self, length: int, learnt: int) -> Asked:
        ids = tuple(self.rng.integers(0, self.vocabulary, learnt).tolist())
        prompt = self.prompt(length)
        told = (prompt.id, "probe", "local", Sampling(), "", "", (), ids, "stop")
        return prompt, Answer(prompt.id, *told, Usage(length, learnt), "kept")

    def example(self, length: int, learnt: int) -> Example:
        k, temperature, drawn = self.kept()
        ids = self.rng.integers(0, self.vocabulary, length + learnt)
        top = np.stack([self.rng.permutation(self.vocabulary)[:k] for _ in range(learnt)])
        logprobs = np.full((learnt, k), np.log(0.9 / k), np.float32)
        tail = np.full(learnt, 0.1, np.float32)
        rest = (tail, np.full((learnt, drawn), 7), tail, temperature, "probe")
        targets = Targets("probe", ids[length:], top, logprobs, *rest)
        return Example("probe", ids, np.arange(length + learnt) >= length, targets)


class _Silent:
    def advance(self, *_: object, **__: object) -> None:
        pass


def _timed(once: Callable[[], Any]) -> float:
    """The median of three: the best of them is better than what then happens."""
    took: list[float] = []
    for _ in range(3):
        began = _now()
        once()
        took.append(_now() - began)
    return float(np.median(took))


@contextmanager
def _folder(shape: Shape, vocabulary: int) -> Iterator[Path]:
    """A model folder of this shape with random weights and a tokenizer of numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({str(n): n for n in range(vocabulary)}, "0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=TEMPLATE)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=1 << 20,
        tie_word_embeddings=shape.other_parameters < 1.5 * shape.vocabulary * shape.hidden,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with tempfile.TemporaryDirectory(prefix="limbeck-") as name:
        network = LlamaForCausalLM(config)
        network.model.norm.weight.data.fill_(SURE)  # pyright: ignore
        network.save_pretrained(name)
        tokenizer.save_pretrained(name)
        yield Path(name)
