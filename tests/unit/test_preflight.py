from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hub import Handler, Hub, hub  # noqa: F401

from limbeck import dryrun
from limbeck.collect.packing import stored_bytes
from limbeck.collect.targets import Binding, TargetsFolder
from limbeck.distill import Walk
from limbeck.dryrun import Rehearsal, rehearse
from limbeck.errors import GateError, InputError
from limbeck.models.shape import Shape, read_shape
from limbeck.models.weights import Weights, find, headers_on_hub
from limbeck.preflight import fit, probe
from limbeck.preflight.fit import Free, change, need
from limbeck.preflight.memory import BASE, Job, activations, disk, memory
from limbeck.preflight.work import Work, count
from limbeck.recipe import Recipe, parse_recipe
from limbeck.run import Run, Stage, open_run
from provider import Behaviour, Provider
from small import asked, load, network, prompts, save

LLAMA: dict[str, Any] = {
    "vocab_size": 312,
    "hidden_size": 96,
    "intermediate_size": 256,
    "head_dim": 48,
}
ALL: frozenset[Stage] = frozenset(
    {"collect", "targets", "student", "train", "control", "validate", "export"}
)


def recipe(**sections: dict[str, Any]) -> Recipe:
    usual: dict[str, dict[str, Any]] = {
        "teacher": {"model": "somewhere", "max_tokens": 40, "batch_size": 96},
        "prompts": {"source": "prompts.jsonl"},
        "student": {"layers": 24},
        "train": {"steps": 28, "micro_tokens": 1024, "batch_tokens": 1024},
    }
    named = {k: {**usual.get(k, {}), **sections.get(k, {})} for k in {*usual, *sections}}
    return parse_recipe({"name": "demo", **named})


def work(**changes: Any) -> Work:
    """960 prompts of 31 tokens, answered with 24."""
    usual = Work(960, 960, 170, 31.5, 45, 44, 0, 24.2, 19.7, 0.77, counted=True)
    return replace(usual, **changes)


SMOL = Shape(30, 576, 1536, 9, 3, 64, 49152, 8192, 1152, 3_540_096, 28_312_128)


def job(student: int = 24, itemsize: int = 4, **sections: dict[str, Any]) -> Job:
    return Job(recipe(**sections), SMOL, SMOL.cut(student), work(), itemsize, 6)


# -- shapes from headers ---------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Gemma3Text"])
def test_headers_tell_what_the_network_has(kind: str, tied: bool, tmp_path: Path) -> None:
    made = network(kind, **LLAMA, tie_word_embeddings=tied)
    shape = read_shape(Weights("made", save(made, tmp_path / "made"), None, "", None, ""))
    layers = made.base_model.layers
    assert shape.parameters == sum(p.numel() for p in made.parameters())
    assert shape.layer_parameters == sum(p.numel() for p in layers[0].parameters())
    assert (shape.layers, shape.hidden, shape.vocabulary) == (len(layers), 96, 312)
    assert (shape.inner, shape.head_dim, shape.kv_heads) == (256, 48, 1)


def write_gguf(path: Path, *, layers: int = 3, hidden: int = 8, licence: str = "mit") -> Path:
    """A GGUF of which the tensors are named and sized, and filled as far as they are small."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license(licence)
    writer.add_block_count(layers)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(4 * hidden)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(99)
    writer.add_token_list([f"<{n}>".encode() for n in range(50)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 50)
    writer.add_tensor("token_embd.weight", np.zeros((50, hidden), np.float32))
    for n in range(layers):
        writer.add_tensor(f"blk.{n}.attn_norm.weight", np.zeros(hidden, np.float32))
        writer.add_tensor(f"blk.{n}.ffn_up.weight", np.zeros((4 * hidden, hidden), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_s_header_is_read_or_what_it_became(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "made.gguf")
    weights = Weights("made", tmp_path, path, "abc", None, "")
    shape = read_shape(weights)
    assert (shape.layers, shape.hidden, shape.inner, shape.context) == (3, 8, 32, 99)
    assert (shape.heads, shape.kv_heads, shape.vocabulary) == (4, 2, 50)
    assert shape.parameters == 50 * 8 + 3 * (8 + 32 * 8)
    whole = path.read_bytes()
    for cut in (3, 40, 400):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"made\.gguf is no GGUF that can be read"):
            read_shape(weights)
    save(network("Llama", **LLAMA), tmp_path / "cache" / "models" / "abc")
    assert read_shape(weights).vocabulary == 312


def test_headers_that_do_not_tell_are_named(tmp_path: Path) -> None:
    folder = save(network(), tmp_path / "made")
    weights = Weights("made", folder, None, "", None, "")
    (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match="made: its headers do not tell"):
        read_shape(weights)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"model\.safetensors is no safetensors file"):
        read_shape(weights)


# -- what is counted ---------------------------------------------------------------------------


def test_tokens_are_counted_and_stored_answers_are_taken(tiny: Path) -> None:
    teacher = load(tiny)
    rows = asked(teacher, prompts(12))
    there = [a for _, a in rows[:8]]
    lengths = [len(teacher.tokenizer.prompt_ids(p)) for p, _ in rows]
    found = count(recipe(), [p for p, _ in rows], there, teacher.tokenizer)
    assert (found.prompts, found.due, found.counted) == (12, 4, True)
    assert found.prompt_tokens == np.mean(lengths) and found.longest_prompt == max(lengths)
    assert found.answer_tokens == np.mean([len(a.token_ids) for a in there])
    guessed = count(recipe(), [p for p, _ in rows], scale=10)
    assert (guessed.prompts, guessed.due, guessed.counted) == (120, 120, False)
    assert guessed.prompt_tokens == pytest.approx(found.prompt_tokens, rel=0.5)


@pytest.mark.parametrize("k, drawn", [(1, 0), (6, 5)])
def test_targets_take_the_bytes_that_they_are_said_to(
    tiny: Path, tmp_path: Path, k: int, drawn: int
) -> None:
    teacher = load(tiny)
    rows = asked(teacher, prompts(12))
    tokenizer = teacher.tokenizer
    binding = Binding(
        "t", tokenizer.hash, tokenizer.template_hash, len(tokenizer.inner), k, drawn, 1.0
    )
    TargetsFolder(tmp_path, binding).write(teacher, rows)
    size = sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))
    tokens = sum(len(a.token_ids) for _, a in rows)
    header = int.from_bytes(next(tmp_path.glob("*.safetensors")).read_bytes()[:8], "little") + 8
    assert size - header - 4 * len(rows) == tokens * stored_bytes(k, drawn, len(tokenizer.inner))


# -- memory ------------------------------------------------------------------------------------


def saved(body: Any, rows: int, width: int) -> int:
    """Bytes that autograd keeps of a forward pass, parameters apart."""
    own = {p.data_ptr() for p in body.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor
        return tensor

    visible = torch.ones(rows, 1, width, width, dtype=torch.bool).tril()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        body(
            input_ids=torch.zeros(rows, width, dtype=torch.long),
            attention_mask=visible,
            position_ids=torch.arange(width).expand(rows, width),
            use_cache=False,
        )
    return sum(t.untyped_storage().nbytes() for t in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Gemma3Text"])
def test_activations_are_what_autograd_keeps(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    rows, width = 3, 40
    made = [network(kind, **LLAMA, num_hidden_layers=n).to(dtype).train() for n in (1, 4)]
    a_layer = (saved(made[1].base_model, rows, width) - saved(made[0].base_model, rows, width)) / 3
    shape = read_shape(Weights("made", save(made[1], tmp_path / "made"), None, "", None, ""))
    section = {"micro_tokens": rows * width, "row_tokens": width, "batch_tokens": rows * width}
    estimate = activations(
        Job(
            recipe(train={"steps": 1} | section, teacher={"max_tokens": 1}),
            shape,
            shape,
            work(longest_prompt=5),
            dtype.itemsize,
            6,
        )
    )
    assert estimate / 4 == pytest.approx(a_layer, rel=0.25)


TRAINING = """
import sys
from pathlib import Path
import numpy as np
from limbeck.recipe import TrainSection
from limbeck.records import Example, Targets
from limbeck.train.learner import Learner, Lesson

class Silent:
    def advance(self, *_): pass

folder, micro, k = Path(sys.argv[1]), int(sys.argv[2]), 32
rng, made = np.random.default_rng(0), []
for n in range(2 * micro // 64):
    ids, mask = rng.integers(0, 312, 64), np.arange(64) >= 40
    top = np.stack([rng.permutation(312)[:k] for _ in range(24)])
    told = Targets("", ids[40:], top, np.full((24, k), np.log(0.9 / k), np.float32),
                   np.full(24, 0.1, np.float32), np.full((24, 2), 7),
                   np.full(24, 0.1, np.float32), 1.0, "")
    made.append(Example("", ids, mask, told))
section = TrainSection.model_validate({"steps": 2, "batch_tokens": micro * int(sys.argv[3]),
    "micro_tokens": micro, "row_tokens": 256, "precision": "float32"})
learner = Learner(Lesson("student", folder, made, (), section, 0, 2))
for step in learner.steps():
    learner.learn(step, Silent())
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("micro, batches", [(4096, 1), (2048, 2)])
def test_training_takes_the_memory_that_it_is_said_to(
    micro: int, batches: int, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6}
    made = network(**LLAMA | sizes, num_attention_heads=4, num_key_value_heads=2)
    folder = save(made, tmp_path / "made")
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(folder), str(micro), str(batches)],
        capture_output=True,
        text=True,
        check=True,
    )
    shape = read_shape(Weights("made", folder, None, "", None, ""))
    train = {"micro_tokens": micro, "batch_tokens": micro * batches, "row_tokens": 256}
    rows = 2 * micro // 64
    there = Work(rows, 0, 0, 40, 40, 40, 0, 24, 24, 1.0, counted=True)
    told = recipe(train={"steps": 2} | train, teacher={"max_tokens": 24})
    estimate = memory(Job(told, shape, shape, there, 4, 6), {"train"})["train"]
    assert estimate == pytest.approx(int(done.stdout) * 1024, rel=0.25)
    assert estimate > 1.3 * BASE, "or else nothing but the libraries was measured"


def test_a_second_checkpoint_is_written_before_the_first_goes() -> None:
    sizes = disk(job())
    parameters = SMOL.cut(24).parameters
    assert sizes["train"].peak == 2 * 12 * parameters
    assert sizes["train"].left == sizes["export"].left == 2 * parameters
    assert (
        need(job(), ALL).disk
        == sum(sizes[s].left for s in ("collect", "targets", "student", "train"))
        + 2 * 12 * parameters
    )


# -- what fits ---------------------------------------------------------------------------------


def test_what_fits_is_let_be() -> None:
    found = need(job(), ALL)
    assert found.fits(Free(found.memory, found.disk), error=1.0)
    assert not found.fits(Free(found.memory - 1, found.disk), error=1.0)
    assert not found.fits(Free(found.memory, found.disk - 1), error=1.0)
    assert found.fits(Free(None, found.disk), error=1.0)
    assert need(job(), frozenset()).fits(Free(0, 0))


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.35, 0.99), micro=st.sampled_from([1024, 8192, 50_000]))
def test_the_change_is_the_largest_that_fits(share: float, micro: int) -> None:
    asked_for = job(train={"steps": 3, "micro_tokens": micro, "batch_tokens": micro})
    free = Free(round(need(asked_for, ALL).memory * share), 10**15)

    def fits(one: Job) -> bool:
        return need(one, ALL).fits(free, error=1.0)

    found = change(asked_for, fits)
    if found is None:
        assert not fits(replace(asked_for, student=SMOL.cut(1)))
        return
    key, value = re.fullmatch(r"([a-z._]+) = (\d+)", found).groups()  # pyright: ignore
    section, name = key.split(".")
    verdicts: list[bool] = []
    for number in (int(value), int(value) + 1):
        if name == "layers":
            one = replace(asked_for, student=SMOL.cut(number))
        else:
            changed = getattr(asked_for.recipe, section).model_copy(update={name: number})
            told = asked_for.recipe.model_copy(update={section: changed})
            one = replace(asked_for, recipe=told)
        verdicts.append(fits(one))
    assert verdicts == [True, False]


def test_less_is_asked_of_micro_batches_before_layers_go() -> None:
    large = job(train={"steps": 3, "micro_tokens": 50_000, "batch_tokens": 50_000})
    free = Free(need(job(), ALL).memory, 10**15)
    found = change(large, lambda one: need(one, ALL).fits(free, error=1.0))
    assert found is not None and found.startswith("train.micro_tokens = ")
    many = job(teacher={"batch_size": 4000, "max_tokens": 4000, "model": "somewhere"})
    many = replace(many, work=work(prompts=4000))
    found = change(many, lambda one: need(one, frozenset({"collect"})).fits(free, error=1.0))
    assert found is not None and found.startswith("teacher.batch_size = ")


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "_CGROUP", tmp_path)
    whole = fit.free_memory()
    if whole is None:
        pytest.skip("memory is read from /proc")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000000\n")
    assert fit.free_memory() == pytest.approx(whole, rel=0.2)
    (tmp_path / "memory.max").write_text("6000000\n")
    assert fit.free_memory() == 1_000_000


# -- what is timed -----------------------------------------------------------------------------


def test_a_cost_is_recovered_from_its_timings() -> None:
    wanted = probe.Cost(0.3, 0.0, 0.002, 0.0001)
    at = [(1, 50.0), (1, 400.0), (4, 50.0), (4, 400.0)]
    found = probe.fit({(n, u): wanted(n, u) for n, u in at})
    assert found(30, 1000) == pytest.approx(wanted(30, 1000))
    scaled = probe.fit({(n, u): wanted(n, u) for n, u in at}, outside=3.0)
    assert scaled(30, 1000) - found(30, 1000) == pytest.approx(2 * (0.3 + 0.002 * 1000))
    noisy = probe.fit({(1, 1.0): 2.0, (6, 1.0): 1.0})
    assert min(noisy.fixed, noisy.layer, noisy.unit, noisy.both) >= 0


# -- the dry run -------------------------------------------------------------------------------


@pytest.fixture
def sums(tiny: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """`sums(section={key: value})`: a recipe for the tiny teacher."""
    source = tmp_path / "prompts.jsonl"
    rows = [{"prompt": p.messages[0].content} for p in prompts()]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made(**sections: dict[str, Any]) -> Recipe:
        usual = {
            "teacher": {"model": str(tiny), "max_tokens": 16},
            "prompts": {"source": str(source), "held_out": 0.25, "near_duplicates": 1.0},
            "student": {"layers": 2},
            "train": {"steps": 2, "batch_tokens": 200, "micro_tokens": 100, "top_k": 8},
        }
        named = {k: {**usual.get(k, {}), **sections.get(k, {})} for k in {*usual, *sections}}
        return parse_recipe({"name": "sums", **named})

    return made


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def test_a_dry_run_estimates_and_writes_nothing(
    sums: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "sums"
    rehearse(sums(), folder, as_json=True)
    found = told(capsys)
    assert not folder.parent.exists()
    assert found["fits"] and found["work"]["prompts"] == 48
    rows = {row["stage"]: row for row in found["stages"]}
    assert not any(row["done"] for stage, row in rows.items() if stage != "permit")
    for stage in ALL:
        assert rows[stage]["seconds"] > 0
    assert found["totals"]["seconds"] == pytest.approx(sum(r["seconds"] for r in rows.values()))
    rehearse(sums(), folder, as_json=False)
    assert "in all" in capsys.readouterr().out


def test_what_is_there_is_not_counted(
    sums: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "sums"
    with open_run(sums(), folder) as run:
        Walk(run).until("targets")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    capsys.readouterr()
    rehearse(sums(), folder, as_json=True)
    found = told(capsys)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    there = [row["stage"] for row in found["stages"] if row["done"]]
    assert there == ["permit", "prompts", "collect", "targets"]
    assert found["work"]["counted"]
    assert all(row["seconds"] == row["disk"] == 0 for row in found["stages"] if row["done"])
    with pytest.raises(InputError, match=r"differ in train\.top_k"):
        rehearse(sums(train={"top_k": 9, "steps": 2}), folder, as_json=True)


def test_what_cannot_fit_is_refused_before_anything_is_timed(
    sums: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(dryrun, "free_memory", lambda: BASE // 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(probe, "measure", lambda *_: pytest.fail("it was timed"))
    folder = tmp_path / "runs" / "sums"
    with pytest.raises(GateError, match=r"does not fit: \w+ needs about [\d.]+ GB of memory"):
        rehearse(sums(), folder, as_json=False)
    assert "–" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        rehearse(sums(), folder, as_json=True)
    found = told(capsys)
    assert (ended.value.code, found["fits"], found["exit_code"]) == (1, False, 1)
    assert not folder.parent.exists()


def test_the_check_of_a_real_run_names_the_change(
    sums: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "has_gpu", lambda: False)
    folder = tmp_path / "runs" / "sums"
    wide = sums(train={"steps": 2, "micro_tokens": 10**6, "batch_tokens": 10**6})
    with open_run(wide, folder) as run:
        monkeypatch.setattr(fit, "free_memory", lambda: BASE // 2)
        with pytest.raises(GateError, match=r"sums does not fit: .* No single change"):
            Walk(run).until("targets")
        monkeypatch.setattr(fit, "free_memory", lambda: 10**10)
        Walk(run).until("targets")
        monkeypatch.setattr(fit, "free_disk", lambda _: 10**5)
        with pytest.raises(GateError, match=r"GB|MB of disk"):
            Walk(run).until("train")


def test_prompts_of_a_large_file_are_scaled_up(
    sums: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dryrun, "LARGE", 100)
    monkeypatch.setattr(dryrun, "ROWS", 12)
    found, scale = dryrun._read(sums().prompts)  # pyright: ignore[reportPrivateUsage]
    assert (len(found), scale) == (12, 4.0)
    fewer = sums(prompts={"source": sums().prompts.source, "limit": 24})
    assert dryrun._read(fewer.prompts)[1] == 2.0  # pyright: ignore[reportPrivateUsage]


def test_a_teacher_on_the_hub_is_known_by_its_headers(
    hub: Hub,  # noqa: F811
    sums: Callable[..., Recipe],
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class OfModels(Handler):
        """Addresses of models lack a first part, and may name a branch."""

        def do_GET(self) -> None:  # noqa: N802
            if not self.path.startswith("/api"):
                self.path = "/models" + self.path.replace("/resolve/main/", f"/resolve/{1:040x}/")
            super().do_GET()

        do_HEAD = do_GET  # noqa: N815

    hub.RequestHandlerClass = OfModels
    files = {p.name: p.read_bytes() for p in tiny.iterdir()}
    hub.repos["someone/tiny"] = {"main": files}
    there = Rehearsal(Run(tmp_path / "run", sums(teacher={"model": "someone/tiny"})), tmp_path)
    assert there.permission.decision == "allow"
    assert there.remote is not None
    ours = read_shape(Weights("tiny", tiny, None, "", None, ""))
    assert read_shape(there.weights, there.remote.tensors) == ours
    size = (tiny / "model.safetensors").stat().st_size
    assert 0.9 * size < there.remote.size < size
    assert not list(tmp_path.rglob("*.safetensors"))
    assert find("someone/tiny").licence == "mit"
    assert headers_on_hub("someone/tiny", None) is None, "the weights are here now"


# -- a teacher behind a service ----------------------------------------------------------------


@pytest.fixture
def asks(tmp_path: Path) -> Iterator[Callable[..., Recipe]]:
    """`asks(limit=80, dollars=…)`: a recipe for a provider on loopback; answers are shared."""
    source, permission = tmp_path / "prompts.jsonl", tmp_path / "permission.toml"
    rows = [{"prompt": f"What is the square of {n}, and of {n + 7}?"} for n in range(200)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    permission.write_text(
        'teacher = "teacher"\nallowed_by = "us"\nuntil = 2999-12-31\npurpose = "product"\n'
    )
    with Provider(Behaviour()) as provider:

        def made(limit: int, **budget: float) -> Recipe:
            table: dict[str, Any] = {
                "teacher": {"model": "teacher", "url": provider.url, "max_tokens": 64},
                "prompts": {"source": str(source), "limit": limit, "near_duplicates": 1.0},
                "student": {"layers": 2},
                "train": {"steps": 1},
                "permit": {"permission": str(permission)},
                "budget": {"input": 2.0, "output": 8.0, **budget},
            }
            table["teacher"]["answers"] = str(tmp_path / "answers.sqlite")
            return parse_recipe({"name": "asks", **table})

        made.provider = provider  # pyright: ignore[reportFunctionMemberAccess]
        yield made


def test_a_service_s_answers_cost_what_was_said(
    asks: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(asks(60), tmp_path / "some") as run:
        Walk(run).until("collect")
    counts = asks.provider.counts
    before = (counts.requests, counts.tokens_in, counts.tokens_out)
    folder = tmp_path / "all"
    capsys.readouterr()
    rehearse(asks(200), folder, as_json=True)
    found = told(capsys)
    assert counts.requests == before[0] and not folder.exists()
    assert found["asking"]["questions"] == 140
    assert found["totals"]["seconds"] is None
    with open_run(asks(200), folder) as run:
        Walk(run).until("collect")
    cost = 2e-6 * (counts.tokens_in - before[1]) + 8e-6 * (counts.tokens_out - before[2])
    assert found["totals"]["dollars"] == pytest.approx(cost, rel=0.25)
    assert found["asking"]["most_dollars"] > cost
    capsys.readouterr()
    rehearse(asks(200), folder, as_json=True)
    again = told(capsys)
    assert again["stages"][-1]["done"] and again["totals"]["dollars"] == 0


@pytest.mark.parametrize("cap", ["dollars", "tokens"])
def test_a_budget_that_will_not_do_is_refused(
    asks: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], cap: str
) -> None:
    whole = {"dollars": 1.0, "tokens": 10**6}[cap]
    rehearse(asks(200, **{cap: whole}), tmp_path / "run", as_json=True)
    needed = told(capsys)["asking"][cap]
    third = {cap: round(needed / 3, 6) if cap == "dollars" else int(needed / 3)}
    with pytest.raises(GateError, match=rf"about [\d.]+ {cap}, .* or with prompts.limit") as error:
        rehearse(asks(200, **third), tmp_path / "run", as_json=False)
    change = dict(re.findall(r"([a-z]+\.[a-z]+) = ([\d.]+)(?=, or|\.$)", str(error.value)))
    assert float(change[f"budget.{cap}"]) >= needed
    assert 55 <= int(change["prompts.limit"]) <= 67
    rehearse(asks(int(change["prompts.limit"]), **third), tmp_path / "run", as_json=False)
    assert asks.provider.counts.requests == 0
