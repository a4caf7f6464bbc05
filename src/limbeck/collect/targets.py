"""The teacher's distributions on disk: sparse, versioned, checksummed, bound to what made them.

A targets folder holds `index.jsonl` and shards. A shard is a safetensors file with, for the A
answers in it, their T tokens end to end:

| tensor    | dtype            | shape  | what                                                |
|-----------|------------------|--------|-----------------------------------------------------|
| lengths   | int32            | (A,)   | tokens of each answer                               |
| token_ids | uint16 or uint32 | (T,)   | the answers' tokens                                 |
| top_ids   | uint16 or uint32 | (T, K) | the K likeliest tokens, likeliest first             |
| logprobs  | float16          | (T, K) | their natural log-probabilities                     |
| tail      | float32          | (T,)   | the mass of all other tokens                        |

and as metadata `format`, `version`, `answers` (their ids, JSON) and `binding` (JSON). Token ids
take 16 bits where the vocabulary allows. A line of `index.jsonl` names a finished shard, its
SHA-256, its answers and tokens; a shard without a line does not count. Reading rescales the K
rounded probabilities by one factor a token, so that with the exact tail they sum to 1 again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import InputError
from limbeck.files import full_disk_named, sha256_file, whole_file
from limbeck.models.protocol import Asked, Model
from limbeck.progress import stage_bar
from limbeck.records import Targets, identity

FORMAT, VERSION = "limbeck-targets", "1"
SHARD_TOKENS = 8192
SMALL_VOCABULARY = 1 << 16


def stored_bytes(top_k: int, vocabulary: int) -> int:
    """Bytes a token of targets on disk, as the table above has them."""
    ids = 2 if vocabulary <= SMALL_VOCABULARY else 4
    return ids + top_k * (ids + 2) + 4


@dataclass(frozen=True, slots=True)
class Binding:
    """What targets depend on besides the answers: another value is another set of targets."""

    teacher: str
    tokenizer: str
    template: str
    vocabulary: int
    top_k: int
    temperature: float


@dataclass(frozen=True, slots=True)
class TargetsFolder:
    """Where the targets of one run lie, and what they are bound to."""

    path: Path
    binding: Binding

    def write(self, model: Model, asked: Sequence[Asked]) -> dict[str, int | float]:
        """Score the answers with the teacher, shard by shard, skipping shards that are finished.

        Returns what there is now: answers, tokens, and bytes a token on disk.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        plan = _shards(asked)
        there = {name for name in self._index() if (self.path / name).exists()}
        due = {name: rows for name, rows in plan.items() if name not in there}
        total, left = _tokens(asked), sum(_tokens(rows) for rows in due.values())
        if due:
            with stage_bar("targets", total, "tokens", total - left) as meter:
                for name, rows in due.items():
                    scored = model.score(rows, self.binding.top_k, self.binding.temperature)
                    self._write_shard(name, list(scored))
                    meter.advance(rows=_tokens(rows), tokens=_tokens(rows))
        size = sum((self.path / name).stat().st_size for name in plan)
        return {"answers": len(asked), "tokens": total, "bytes_per_token": round(size / total, 1)}

    def read(self, asked: Sequence[Asked]) -> dict[str, Targets]:
        """The targets of these answers by answer id, each held to its answer's tokens.

        Raises InputError naming the shard that is damaged or missing, the binding that differs,
        or the answer whose tokens do.
        """
        found: dict[str, Targets] = {}
        for line in self._index().values():
            found |= {t.answer_id: t for t in self._read_shard(line)}
        for prompt, answer in asked:
            targets = found.get(answer.id)
            if targets is None:
                raise InputError(
                    f"{self.path}: no targets for the answer to {prompt.source}. "
                    f"Remove {self.path} and run again to score them."
                )
            if not np.array_equal(targets.token_ids, answer.token_ids):
                raise InputError(
                    f"{self.path}: the targets for {prompt.source} are of other tokens than the "
                    f"stored answer's. Remove {self.path} and run again."
                )
        return found

    def _write_shard(self, name: str, scored: list[Targets]) -> None:
        from safetensors.numpy import save_file

        ids = np.uint16 if self.binding.vocabulary <= SMALL_VOCABULARY else np.uint32
        tensors = {
            "lengths": np.array([len(t.token_ids) for t in scored], np.int32),
            "token_ids": np.concatenate([t.token_ids for t in scored]).astype(ids),
            "top_ids": np.concatenate([t.top_ids for t in scored]).astype(ids),
            "logprobs": np.concatenate([t.logprobs for t in scored]).astype(np.float16),
            "tail": np.concatenate([t.tail for t in scored]).astype(np.float32),
        }
        told = {
            "format": FORMAT,
            "version": VERSION,
            "answers": json.dumps([t.answer_id for t in scored]),
            "binding": json.dumps(asdict(self.binding), sort_keys=True),
        }
        path = self.path / name
        with whole_file(path) as part:
            save_file(tensors, part, told)
        line = {
            "shard": name,
            "sha256": sha256_file(path),
            "answers": len(scored),
            "tokens": len(tensors["tail"]),
        }
        with full_disk_named(path), (self.path / "index.jsonl").open("a") as index:
            index.write(json.dumps(line) + "\n")

    def _index(self) -> dict[str, dict[str, Any]]:
        """The finished shards by name; a last line cut short by a crash does not count."""
        path = self.path / "index.jsonl"
        if not path.exists():
            return {}
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole)
        try:
            return {line["shard"]: line for line in map(json.loads, whole.splitlines())}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is damaged ({error}). Remove {self.path} and run again."
            ) from None

    def _read_shard(self, line: dict[str, Any]) -> Iterator[Targets]:
        from safetensors import safe_open

        path = self.path / line["shard"]
        if not path.exists() or sha256_file(path) != line["sha256"]:
            state = "missing" if not path.exists() else "damaged: its sha256 is not the indexed one"
            raise InputError(f"{path} is {state}. Remove {self.path} and run again to score it.")
        with safe_open(path, framework="np") as file:
            told = file.metadata()
            self._check(path, told)
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        logprobs = _rescaled(arrays["logprobs"], arrays["tail"])
        stop = 0
        for answer_id, length in zip(
            json.loads(told["answers"]), arrays["lengths"].tolist(), strict=True
        ):
            rows = slice(stop, stop := stop + length)
            yield Targets(
                answer_id=answer_id,
                token_ids=arrays["token_ids"][rows].astype(np.int64),
                top_ids=arrays["top_ids"][rows].astype(np.int64),
                logprobs=logprobs[rows],
                tail=arrays["tail"][rows],
                temperature=self.binding.temperature,
                tokenizer_hash=self.binding.tokenizer,
            )

    def _check(self, path: Path, told: dict[str, str]) -> None:
        if told.get("format") != FORMAT or told.get("version") != VERSION:
            raise InputError(
                f"{path} is {told.get('format')} version {told.get('version')}; this limbeck reads "
                f"{FORMAT} version {VERSION}. Remove {self.path} and run again."
            )
        theirs, ours = json.loads(told["binding"]), asdict(self.binding)
        other = [f"{k} ({theirs.get(k)}, now {ours[k]})" for k in ours if theirs.get(k) != ours[k]]
        if other:
            raise InputError(
                f"{path} was made with another {', '.join(other)}. "
                f"Remove {self.path} and run again."
            )


def _shards(asked: Sequence[Asked]) -> dict[str, list[Asked]]:
    """Answers of like length together, a shard named by the hash of the answers in it."""
    ordered = sorted(asked, key=lambda one: (-len(one[1].token_ids), one[1].id))
    shards: dict[str, list[Asked]] = {}
    rows: list[Asked] = []
    for one in ordered:
        rows.append(one)
        if _tokens(rows) >= SHARD_TOKENS:
            shards[_name(rows)] = rows
            rows = []
    if rows:
        shards[_name(rows)] = rows
    return shards


def _name(rows: Sequence[Asked]) -> str:
    ids = [[answer.id, list(answer.token_ids)] for _, answer in rows]
    return identity("shard", ids)[:16] + ".safetensors"


def _tokens(asked: Sequence[Asked]) -> int:
    return sum(len(answer.token_ids) for _, answer in asked)


def _rescaled(logprobs: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """Float32 log-probabilities that sum, with the tail, to 1 (see the module's docstring)."""
    exact = logprobs.astype(np.float64)
    mass = np.exp(exact).sum(-1, keepdims=True)
    wanted = 1.0 - tail.astype(np.float64)[:, None]
    return (exact + np.log(wanted) - np.log(mass)).astype(np.float32)
