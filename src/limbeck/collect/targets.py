"""The teacher's distributions on disk: sparse, versioned, checksummed, bound to what made them.

A targets folder holds `index.jsonl` and shards. A shard is a safetensors file with, for the A
answers in it, `lengths` int32 (A,), the tokens of each, and for these T tokens end to end the
tensors of `collect/packing.py`; and as metadata `format`, `version`, `answers` (their ids, JSON)
and `binding` (JSON). A line of `index.jsonl` names a finished shard, its SHA-256, its answers and
tokens; a shard without a line does not count. Read targets stay packed until they are wanted.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck import ranks
from limbeck.collect.packing import pack, token_ids
from limbeck.errors import InputError
from limbeck.files import full_disk_named, sha256_file, whole_file, write_text
from limbeck.models.protocol import Asked, Model
from limbeck.progress import stage_bar
from limbeck.records import PackedTargets, Targets, identity

FORMAT, VERSION = "limbeck-targets", "2"
SHARD_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Binding:
    """What targets depend on besides the answers: another value is another set of targets."""

    teacher: str
    tokenizer: str
    template: str
    vocabulary: int
    top_k: int
    tail_samples: int
    temperature: float


@dataclass(frozen=True, slots=True)
class TargetsFolder:
    """Where the targets of one run lie, and what they are bound to."""

    path: Path
    binding: Binding

    def write(self, model: Model, asked: Sequence[Asked]) -> dict[str, int | float]:
        """Score the answers with the teacher, shard by shard, skipping shards that are finished.

        Where there are several ranks, each scores a share. Shards of answers that are no longer
        among these are removed. Returns what there is now: answers, tokens, and bytes a token on
        disk.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        plan = _shards(asked)
        there = {name for name in _index(self.path) if (self.path / name).exists()}
        due = {name: rows for name, rows in plan.items() if name not in there}
        total = _tokens(asked)
        if due:
            left = sum(_tokens(rows) for rows in due.values())
            ranks.together(TargetsFolder.score, self, model, due, total - left)
        self._keep_only(plan.keys())
        size = sum((self.path / name).stat().st_size for name in plan)
        return {"answers": len(asked), "tokens": total, "bytes_per_token": round(size / total, 1)}

    def read(self, asked: Sequence[Asked]) -> dict[str, PackedTargets]:
        """The targets of these answers by answer id, each held to its answer's tokens.

        Raises InputError naming the shard that is damaged or missing, the binding that differs,
        or the answer whose tokens do.
        """
        found: dict[str, PackedTargets] = {}
        wanted = {answer.id: (prompt, answer) for prompt, answer in asked}
        for line in _index(self.path).values():
            for targets, ids in self._read_shard(line):
                found[targets.answer_id] = targets
                one = wanted.get(targets.answer_id)
                if one and not np.array_equal(ids, one[1].token_ids):
                    raise InputError(
                        f"{self.path}: the targets for {one[0].source} are of other tokens than "
                        f"the stored answer's. Remove {self.path} and run again."
                    )
        for prompt, answer in asked:
            if answer.id not in found:
                raise InputError(
                    f"{self.path}: no targets for the answer to {prompt.source}. "
                    f"Remove {self.path} and run again to score them."
                )
        return found

    def score(self, model: Model, due: Mapping[str, Sequence[Asked]], done: int) -> None:
        """Score and store this rank's share of the shards that are due; `done` tokens are not."""
        names, bound = list(due)[ranks.rank() :: ranks.world()], self.binding
        left = sum(_tokens(due[name]) for name in names)
        with stage_bar("targets", done + left, "tokens", done) as meter:
            for name in names:
                rows = due[name]
                scored = model.score(rows, bound.top_k, bound.temperature, bound.tail_samples)
                self._write_shard(name, list(scored))
                meter.advance(rows=_tokens(rows), tokens=_tokens(rows))

    def _write_shard(self, name: str, scored: list[Targets]) -> None:
        from safetensors.numpy import save_file

        lengths = [len(t.token_ids) for t in scored]
        tensors = pack(scored, self.binding.vocabulary) | {"lengths": np.array(lengths, np.int32)}
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
            "tokens": sum(lengths),
        }
        with full_disk_named(path), (self.path / "index.jsonl").open("a") as index:
            fcntl.flock(index, fcntl.LOCK_EX)  # other ranks add their lines too
            index.write(json.dumps(line) + "\n")

    def _keep_only(self, names: Set[str]) -> None:
        """Forget and remove every other shard."""
        lines = _index(self.path)
        if lines.keys() - names:
            kept = [json.dumps(line) + "\n" for name, line in lines.items() if name in names]
            write_text(self.path / "index.jsonl", "".join(kept))
        for path in self.path.glob("*.safetensors"):
            if path.name not in names:
                path.unlink()

    def _read_shard(
        self, line: dict[str, Any]
    ) -> Iterator[tuple[PackedTargets, NDArray[np.int64]]]:
        """Each answer's targets, with the tokens that they are of."""
        from safetensors import safe_open

        path, bound = self.path / line["shard"], self.binding
        if not path.exists() or sha256_file(path) != line["sha256"]:
            state = "missing" if not path.exists() else "damaged: its sha256 is not the indexed one"
            raise InputError(f"{path} is {state}. Remove {self.path} and run again to score it.")
        with safe_open(path, framework="np") as file:
            told = file.metadata()
            self._check(path, told)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        lengths, answers = tensors.pop("lengths").tolist(), json.loads(told["answers"])
        ids = token_ids(tensors, bound.vocabulary)[:, 0]
        stop = 0
        for answer_id, length in zip(answers, lengths, strict=True):
            rows = slice(stop, stop := stop + length)
            targets = PackedTargets(
                answer_id, tensors, rows, bound.vocabulary, bound.temperature, bound.tokenizer
            )
            yield targets, ids[rows]

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


def holders(folder: Path) -> dict[str, str]:
    """Which finished shard of a targets folder holds an answer's targets, by answer id."""
    found: dict[str, str] = {}
    for name in _index(folder):
        from safetensors import safe_open

        if not (folder / name).exists():
            raise InputError(f"{folder / name} is missing. Remove {folder} and run again.")
        with safe_open(folder / name, framework="np") as file:
            found |= dict.fromkeys(json.loads(file.metadata()["answers"]), name)
    return found


def _index(folder: Path) -> dict[str, dict[str, Any]]:
    """The finished shards by name; a last line cut short by a crash does not count."""
    path = folder / "index.jsonl"
    if not path.exists():
        return {}
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    try:
        return {line["shard"]: line for line in map(json.loads, whole.splitlines())}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}). Remove {folder} and run again.") from None


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
