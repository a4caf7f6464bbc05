"""A model on this machine: transformers weights, answering in batches and scoring answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import InputError, ServiceError, first_line
from limbeck.models.decode import Request, decode, prefilled
from limbeck.models.head import Head
from limbeck.models.heap import keep_freed_memory
from limbeck.models.outcomes import sampled_targets, tail_offsets
from limbeck.models.protocol import HEAD_ROWS, QUIET, SCORE_TOKENS, Asked, OnTokens
from limbeck.models.tokenizer import ChatTokenizer
from limbeck.models.weights import Weights, ordinary_folder
from limbeck.records import Answer, Prompt, Sampling, Targets, Usage

Precision = Literal["auto", "float32", "bfloat16"]


def compute_dtype(precision: Precision = "auto") -> torch.dtype:
    """The dtype that products run in: bfloat16 where the processor multiplies it natively."""
    if precision != "auto":
        return dtype_of(precision)
    if torch.cuda.is_available():
        return torch.bfloat16
    able = torch.cpu.get_capabilities()
    fast = able.get("amx_bf16") or able.get("avx512_bf16")
    return torch.bfloat16 if fast else torch.float32


def dtype_of(name: Literal["float32", "bfloat16"]) -> torch.dtype:
    """The torch dtype of this name."""
    return torch.float32 if name == "float32" else torch.bfloat16


def device() -> torch.device:
    """Where models run: the first GPU, or the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_network(
    folder: Path,
    dtype: torch.dtype,
    where: torch.device | None = None,
    *,
    trust_remote_code: bool = False,
) -> Any:
    """Load a causal language model from safetensors, in evaluation mode, onto `device()`.

    Raises InputError with the library's reason when the folder is not one, and ServiceError when
    memory does not suffice.
    """
    from transformers import AutoModelForCausalLM

    if device().type == "cpu":
        keep_freed_memory()
    try:
        network: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="sdpa",
            trust_remote_code=trust_remote_code,
        )
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ServiceError(f"{folder} does not fit in memory: {error}") from None
    except Exception as error:
        reason = first_line(error)
        raise InputError(f"{folder} cannot be loaded as a language model: {reason}") from None
    return network.to(where or device()).eval()


class LocalModel:
    """Weights on this machine behind the one `Model` protocol.

    Args:
        weights: where they are; a GGUF is dequantised once and cached.
        precision: of the products; "auto" takes bfloat16 where the processor has it.
        batch_size: prompts answered at once.

    Pickled for another process, it is loaded anew there.
    """

    route = "local"

    def __init__(
        self,
        weights: Weights,
        *,
        precision: Precision = "auto",
        batch_size: int = 64,
        trust_remote_code: bool = False,
    ) -> None:
        folder = ordinary_folder(weights)
        self._again = partial(
            LocalModel,
            weights,
            precision=precision,
            batch_size=batch_size,
            trust_remote_code=trust_remote_code,
        )
        self.name, self.fingerprint, self.folder = weights.name, weights.fingerprint, folder
        self.batch_size = batch_size
        self.tokenizer = ChatTokenizer(folder)
        self.network: Any = load_network(
            folder, compute_dtype(precision), trust_remote_code=trust_remote_code
        )
        self.head = Head(self.network, len(self.tokenizer.inner))
        self.stops = self.tokenizer.stop_ids(self.network.generation_config)
        self.context = int(getattr(self.network.config, "max_position_embeddings", 0) or 1 << 30)

    def __reduce__(self) -> tuple[Callable[[], LocalModel], tuple[()]]:
        return self._again, ()

    @property
    def parameters(self) -> int:
        """Parameters, shared ones counted once."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return int(self.network.config.num_hidden_layers)

    def prompt_ids(self, prompt: Prompt, room: int) -> list[int]:
        """The prompt's tokens; InputError where they and `room` more outgrow the context."""
        if prompt.schema is not None:
            raise InputError(
                f"{prompt.source}: only a service holds its answers to a schema. Remove "
                "prompts.schema, or the row's own, and let [checks] reject what does not fit."
            )
        ids = self.tokenizer.prompt_ids(prompt)
        if len(ids) + room > self.context:
            raise InputError(
                f"{prompt.source}: the prompt has {len(ids)} tokens; with {room} for the answer "
                f"it is longer than the context of {self.name} ({self.context}). Shorten or "
                "remove it, or lower teacher.max_tokens."
            )
        return ids

    def generate(
        self, prompts: Iterable[Prompt], sampling: Sampling, on_tokens: OnTokens = QUIET
    ) -> Iterator[list[Answer]]:
        """Answer in batches of like length, longest first; one list a finished batch.

        Cut from the sorted prompts, the batches that are left after an interruption are the ones
        that were left before it, so answers come out the same.
        """
        cut = [(self.prompt_ids(p, sampling.max_tokens), p) for p in prompts]
        cut.sort(key=lambda one: (-len(one[0]), one[1].id))
        for start in range(0, len(cut), self.batch_size):
            yield self._answer(cut[start : start + self.batch_size], sampling, on_tokens)

    def _answer(
        self, batch: list[tuple[list[int], Prompt]], sampling: Sampling, on_tokens: OnTokens
    ) -> list[Answer]:
        began = time.monotonic()
        keys = [
            Answer.identify(prompt.id, self.fingerprint, self.route, sampling)
            for _, prompt in batch
        ]
        requests = [Request(ids, key) for (ids, _), key in zip(batch, keys, strict=True)]
        written = decode(self.network, self.head, requests, sampling, self.stops, on_tokens)
        seconds = (time.monotonic() - began) / len(batch)
        return [
            self._record(prompt, key, ids, out, sampling, seconds)
            for (ids, prompt), key, out in zip(batch, keys, written, strict=True)
        ]

    def _record(
        self,
        prompt: Prompt,
        key: str,
        ids: list[int],
        out: list[int],
        sampling: Sampling,
        seconds: float,
    ) -> Answer:
        ended = bool(out) and out[-1] in self.stops
        return Answer(
            id=key,
            prompt_id=prompt.id,
            model=self.fingerprint,
            route=self.route,
            sampling=sampling,
            text=self.tokenizer.text(out),
            reasoning="",
            tool_calls=(),
            token_ids=tuple(out),
            finish_reason="stop" if ended else "length",
            usage=Usage(len(ids), len(out), round(seconds, 4)),
            outcome="kept",
        )

    @torch.inference_mode()
    def score(
        self, asked: Sequence[Asked], top_k: int, temperature: float, tail_samples: int = 0
    ) -> Iterator[Targets]:
        """Top-k log-probabilities, tail mass and draws for each token of each answer, in order.

        Rows are padded on the right: under causal attention no answer token sees the padding.
        Draws are decided by the answer's id, in whatever batch it is scored. Raises InputError
        naming the prompt where the logits are not numbers.
        """
        for batch, states in self.answer_states(asked):
            offsets = [tail_offsets(answer.id, len(answer.token_ids)) for _, answer in batch]
            drawing = torch.from_numpy(np.concatenate(offsets)).to(states.device)
            parts = [
                sampled_targets(self.head(rows), top_k, temperature, tail_samples, offset)
                for rows, offset in zip(
                    states.split(HEAD_ROWS), drawing.split(HEAD_ROWS), strict=True
                )
            ]
            columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
            start = 0
            for prompt, answer in batch:
                stop = start + len(answer.token_ids)
                ids, logprobs, tail, tail_ids, entropy = (c[start:stop] for c in columns)
                start = stop
                if np.isnan(logprobs).any():
                    raise InputError(
                        f"{prompt.source}: {self.name} gives logits that are not numbers. Its "
                        'weights are damaged, or overflow: try train.precision = "float32".'
                    )
                yield Targets(
                    answer_id=answer.id,
                    token_ids=np.array(answer.token_ids, np.int64),
                    top_ids=ids,
                    logprobs=logprobs,
                    tail=tail,
                    tail_ids=tail_ids,
                    tail_entropy=entropy,
                    temperature=temperature,
                    tokenizer_hash=self.tokenizer.hash,
                )

    def log_probabilities(self, states: Tensor) -> Tensor:
        """Log-probabilities (N, V) in float32 from final states (N, hidden)."""
        return self.head(states).float().log_softmax(-1)

    @torch.inference_mode()
    def answer_states(self, asked: Sequence[Asked]) -> Iterator[tuple[Sequence[Asked], Tensor]]:
        """Final hidden states that predict the answers' tokens, (sum of T, hidden), batch by batch.

        The state that predicts answer token t stands one position before it.
        """
        rows = [(self.tokenizer.prompt_ids(p), list(a.token_ids)) for p, a in asked]
        start = 0
        while start < len(rows):
            stop, width = start, 0
            while stop < len(rows):
                width = max(width, sum(map(len, rows[stop])))
                if stop > start and width * (stop - start + 1) > SCORE_TOKENS:
                    break
                stop += 1
            yield asked[start:stop], self._states(rows[start:stop])
            start = stop

    def _states(self, rows: list[tuple[list[int], list[int]]]) -> Tensor:
        here = device()
        cache, shared = prefilled(self.network, [prompt[:-1] for prompt, _ in rows])
        width = max(len(p) + len(a) for p, a in rows) - shared
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        wanted = torch.zeros(len(rows), width, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(rows):
            first = len(prompt) - shared
            ids[row, : first + len(answer)] = torch.tensor(prompt[shared:] + answer)
            wanted[row, first - 1 : first + len(answer) - 1] = True
        past = {"past_key_values": cache, "use_cache": True} if shared else {"use_cache": False}
        states = self.head.body(input_ids=ids.to(here), **past).last_hidden_state
        return states[wanted.to(here)]
