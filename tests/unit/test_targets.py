from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from limbeck.collect import targets as module
from limbeck.collect.packing import ARRAYS, pack, together, unpack
from limbeck.collect.targets import Binding, TargetsFolder
from limbeck.errors import InputError
from limbeck.files import sha256_file
from limbeck.models.outcomes import sampled_targets, tail_offsets
from limbeck.models.protocol import Asked, Model
from limbeck.recipe import TrainSection
from limbeck.records import Answer, Message, Prompt, Sampling, Targets, Usage

BINDING = Binding("teacher", "tokenizer", "template", 500, 8, 3, 1.5)
LENGTHS = [7, 3, 12, 1, 9, 9, 4, 15]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_TOKENS", 20)


def asked(lengths: Sequence[int] = LENGTHS, vocabulary: int = 500) -> list[Asked]:
    rng = np.random.default_rng(0)
    rows: list[Asked] = []
    for number, length in enumerate(lengths):
        messages = (Message("user", f"question {number}"),)
        prompt = Prompt(Prompt.identify(messages), messages, f"p.jsonl:{number + 1}", "train")
        ids = rng.integers(0, vocabulary, length).tolist()
        answer = Answer(
            id=f"answer {number}", prompt_id=prompt.id, model="teacher", route="local",
            sampling=Sampling(), text="…", reasoning="", tool_calls=(), token_ids=tuple(ids),
            finish_reason="stop", usage=Usage(1, length), outcome="kept",
        )  # fmt: skip
        rows.append((prompt, answer))
    return rows


class Scorer:
    """Scores with random logits that only the answer decides; breaks down after some answers."""

    def __init__(self, vocabulary: int = 500, most: int = 10**9) -> None:
        self.vocabulary, self.most = vocabulary, most
        self.scored: list[str] = []

    def score(
        self, rows: Sequence[Asked], top_k: int, temperature: float, tail_samples: int = 0
    ) -> Iterator[Targets]:
        for _, answer in rows:
            if len(self.scored) == self.most:
                raise KeyboardInterrupt
            self.scored.append(answer.id)
            generator = torch.Generator().manual_seed(int(answer.id.split()[1]))
            shape = (len(answer.token_ids), self.vocabulary)
            logits = 4 * torch.randn(shape, generator=generator, dtype=torch.float64)
            offsets = torch.from_numpy(tail_offsets(answer.id, len(logits)))
            found = sampled_targets(logits, top_k, temperature, tail_samples, offsets)
            yield Targets(
                answer_id=answer.id,
                token_ids=np.array(answer.token_ids),
                top_ids=found.top_ids.numpy(),
                logprobs=found.logprobs.numpy().astype(np.float32),
                tail=found.tail.numpy().astype(np.float32),
                tail_ids=found.tail_ids.numpy(),
                tail_entropy=found.tail_entropy.numpy().astype(np.float32),
                temperature=temperature,
                tokenizer_hash="tokenizer",
            )


def write(path: Path, rows: list[Asked], binding: Binding = BINDING, most: int = 10**9) -> Scorer:
    scorer = Scorer(binding.vocabulary, most)
    TargetsFolder(path, binding).write(cast(Model, scorer), rows)
    return scorer


def shards(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


@pytest.mark.parametrize(
    "vocabulary, k, samples",
    [(500, 8, 3), (500, 500, 0), (65536, 3, 2), (70000, 3, 12), (300_000, 2, 1), (9, 1, 0)],
)
def test_what_was_written_is_read_as_it_was_packed(
    tmp_path: Path, vocabulary: int, k: int, samples: int
) -> None:
    binding = replace(BINDING, vocabulary=vocabulary, top_k=k, tail_samples=samples)
    rows = asked(vocabulary=vocabulary)
    write(tmp_path, rows, binding)
    assert len(shards(tmp_path)) > 2
    found = TargetsFolder(tmp_path, binding).read(rows)
    assert found.keys() == {a.id for _, a in rows}
    for wanted in Scorer(vocabulary).score(rows, k, 1.5, samples):
        packed = found[wanted.answer_id]
        assert (packed.answer_id, packed.vocabulary) == (wanted.answer_id, vocabulary)
        assert (packed.temperature, packed.tokenizer_hash) == (1.5, "tokenizer")
        got, through = together([packed]), unpack(pack([wanted], vocabulary), vocabulary)
        assert all(np.array_equal(got[name], through[name]) for name in ARRAYS)
        for name in ("token_ids", "top_ids", "tail_ids"):
            assert np.array_equal(got[name], getattr(wanted, name))
    together_at_once = together([found[a.id] for _, a in rows])
    assert together_at_once["token_ids"].tolist() == [i for _, a in rows for i in a.token_ids]


@pytest.mark.parametrize("vocabulary", [49_152, 151_936, 2**18])
def test_a_token_takes_64_bytes_at_most_on_disk_and_in_memory(
    tmp_path: Path, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # shards of the usual size
    keys = TrainSection.model_validate({"steps": 1})
    binding = replace(
        BINDING, vocabulary=vocabulary, top_k=keys.top_k, tail_samples=keys.tail_samples
    )
    rows = asked([40] * 6, vocabulary)
    rows = [(p, replace(a, id=f"answer {n:025}")) for n, (p, a) in enumerate(rows)]
    folder = TargetsFolder(tmp_path, binding)
    facts = folder.write(cast(Model, Scorer(vocabulary)), rows)
    (shard,) = shards(tmp_path)
    assert facts == {"answers": 6, "tokens": 240, "bytes_per_token": facts["bytes_per_token"]}
    assert facts["bytes_per_token"] == round(shard.stat().st_size / 240, 1)
    header = int.from_bytes(shard.read_bytes()[:8], "little")
    # The header is per shard but for the answers' ids: 36 bytes each.
    assert (shard.stat().st_size - 8 - header + 6 * 36) / 240 <= 64
    found = folder.read(rows)
    held = {id(a): a.nbytes for t in found.values() for a in t.tensors.values()}
    assert sum(held.values()) / 240 <= 64


def test_a_flipped_byte_is_found_wherever_it_is(tmp_path: Path) -> None:
    rows = asked()
    write(tmp_path, rows)
    rng = np.random.default_rng(3)
    for shard in shards(tmp_path):
        content = shard.read_bytes()
        for at in [0, len(content) - 1, *rng.integers(0, len(content), 6).tolist()]:
            changed = bytearray(content)
            changed[at] ^= 1 << int(rng.integers(8))
            shard.write_bytes(changed)
            with pytest.raises(InputError, match=f"{shard.name} is damaged: its sha256"):
                TargetsFolder(tmp_path, BINDING).read(rows)
        shard.write_bytes(content[:-1])
        with pytest.raises(InputError, match=f"{shard.name} is damaged"):
            TargetsFolder(tmp_path, BINDING).read(rows)
        shard.write_bytes(content)
    assert len(TargetsFolder(tmp_path, BINDING).read(rows)) == len(rows)


@pytest.mark.parametrize(
    "other",
    [
        {"teacher": "another"},
        {"tokenizer": "another"},
        {"template": "another"},
        {"vocabulary": 501},
        {"top_k": 9},
        {"tail_samples": 4},
        {"temperature": 1.0},
    ],
)
def test_targets_of_other_making_are_named(tmp_path: Path, other: dict[str, Any]) -> None:
    rows = asked()
    write(tmp_path, rows)
    ((key, now),) = other.items()
    was = getattr(BINDING, key)
    with pytest.raises(InputError, match=rf"made with another {key} \({was}, now {now}\)"):
        TargetsFolder(tmp_path, replace(BINDING, **other)).read(rows)


@pytest.mark.parametrize("change", [{"version": "1"}, {"format": "other"}])
def test_another_format_is_named(tmp_path: Path, change: dict[str, str]) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    rows = asked([5])
    write(tmp_path, rows)
    (shard,) = shards(tmp_path)
    with safe_open(shard, framework="np") as file:
        told = file.metadata() | change
    save_file(load_file(shard), shard, told)
    line = json.loads((tmp_path / "index.jsonl").read_text()) | {"sha256": sha256_file(shard)}
    (tmp_path / "index.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=r"reads limbeck-targets version 2\. Remove .* again"):
        TargetsFolder(tmp_path, BINDING).read(rows)


def test_tokens_that_differ_are_named(tmp_path: Path) -> None:
    rows = asked()
    write(tmp_path, rows)
    prompt, answer = rows[4]
    rows[4] = (prompt, replace(answer, token_ids=(*answer.token_ids[:-1], 499)))
    with pytest.raises(InputError, match=r"targets for p\.jsonl:5 are of other tokens"):
        TargetsFolder(tmp_path, BINDING).read(rows)
    more = [*asked(), *asked([5] * 9)[8:]]
    with pytest.raises(InputError, match=r"no targets for the answer to p\.jsonl:9"):
        TargetsFolder(tmp_path, BINDING).read(more)
    with pytest.raises(InputError, match=r"no targets for the answer to p\.jsonl:1"):
        TargetsFolder(tmp_path / "none", BINDING).read(more)


def content(path: Path) -> dict[str, Any]:
    """Metadata (which safetensors writes in any order) and data of each shard."""
    found: dict[str, Any] = {}
    for shard in shards(path):
        size = int.from_bytes(shard.read_bytes()[:8], "little")
        header = shard.read_bytes()[8 : 8 + size]
        found[shard.name] = json.loads(header), shard.read_bytes()[8 + size :]
    return found


def test_writing_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    rows = asked()
    write(tmp_path / "whole", rows)
    for most in range(len(rows)):
        path = tmp_path / str(most)
        with pytest.raises(KeyboardInterrupt):
            write(path, rows, most=most)
        done = content(path)
        second = write(path, rows)
        assert content(path) == content(tmp_path / "whole")
        lines = [json.loads(line) for line in open_index(path)]
        assert len(lines) == len(shards(path)) == len({line["shard"] for line in lines})
        finished = sum(line["answers"] for line in lines if line["shard"] in done)
        assert len(second.scored) == len(rows) - finished
        assert write(path, rows).scored == []


def open_index(path: Path) -> list[str]:
    return (path / "index.jsonl").read_text().splitlines()


def lose_line(path: Path) -> None:
    (path / "index.jsonl").write_text("\n".join(open_index(path)[:-1]) + "\n")


def cut_line(path: Path) -> None:
    (path / "index.jsonl").write_text((path / "index.jsonl").read_text()[:-20])


def lose_newline(path: Path) -> None:
    (path / "index.jsonl").write_text((path / "index.jsonl").read_text()[:-1])


def lose_shard(path: Path) -> None:
    (path / json.loads(open_index(path)[-1])["shard"]).unlink()


@pytest.mark.parametrize("crash", [lose_line, cut_line, lose_newline, lose_shard])
def test_what_a_crash_left_unfinished_is_scored_again(
    tmp_path: Path, crash: Callable[[Path], None]
) -> None:
    rows = asked()
    write(tmp_path / "whole", rows)
    path = Path(shutil.copytree(tmp_path / "whole", tmp_path / "crashed"))
    last = json.loads(open_index(path)[-1])
    crash(path)
    assert len(write(path, rows).scored) == last["answers"]
    assert content(path) == content(tmp_path / "whole")
    assert len(TargetsFolder(path, BINDING).read(rows)) == len(rows)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    rows = asked()
    write(tmp_path, rows)
    lose_shard(tmp_path)
    with pytest.raises(InputError, match=r"\.safetensors is missing\. Remove .* run again"):
        TargetsFolder(tmp_path, BINDING).read(rows)


@pytest.mark.parametrize("line", ["{", "[]", "{}", "3"])
def test_an_index_that_is_damaged_is_named(tmp_path: Path, line: str) -> None:
    rows = asked()
    write(tmp_path, rows)
    lines = open_index(tmp_path)
    (tmp_path / "index.jsonl").write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    with pytest.raises(InputError, match=r"index\.jsonl is damaged"):
        TargetsFolder(tmp_path, BINDING).read(rows)


def test_the_order_of_the_answers_does_not_matter(tmp_path: Path) -> None:
    rows = asked()
    write(tmp_path, rows)
    assert write(tmp_path, rows[::-1]).scored == []
    assert TargetsFolder(tmp_path, BINDING).read(rows[2:4]).keys() >= {"answer 2", "answer 3"}
