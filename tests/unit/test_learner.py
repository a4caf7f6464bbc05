from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import InputError, ServiceError
from limbeck.models.local import load_network
from limbeck.train.examples import render
from limbeck.train.learner import Learner, Learns
from limbeck.train.loop import train
from school import School, after, interrupt, lines, oracle, same, stop_after, untimed
from small import asked, load, network, prompts, save

pytestmark = pytest.mark.usefixtures("determinism_left_as_it_was")

NARROW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}


@pytest.mark.parametrize(
    "role, keys",
    [
        ("student", {}),
        ("student", {"temperature": 2.0, "text_weight": 0.3}),
        ("control", {}),
    ],
)
def test_a_step_is_the_mean_over_its_tokens_however_it_is_cut(
    school: School, role: Learns, keys: dict[str, Any]
) -> None:
    numbers = list(range(8))
    whole = school.lesson(role, clip=1e9, **keys)
    loss, kl, wanted = oracle(whole, numbers)
    norm = math.sqrt(sum((g**2).sum().item() for g in wanted.values()))
    for step in ([numbers], [[i] for i in numbers], [[5, 0, 7], [1], [2, 3, 6, 4]]):
        for row_tokens in (1, 70, 1000):
            learner = Learner(school.lesson(role, clip=1e9, row_tokens=row_tokens, **keys))
            row, gradient = after(learner, step)
            assert row["loss"] == pytest.approx(loss, rel=1e-5)
            assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
            assert row["kl"] == (pytest.approx(kl, rel=1e-4) if role == "student" else None)
            same(gradient, wanted, 1e-5)


def test_a_network_that_reads_packed_rows_wrongly_is_refused(
    school: School, tmp_path: Path
) -> None:
    narrow = save(network("Qwen2", vocab_size=312, **NARROW), tmp_path / "narrow")
    with pytest.raises(InputError, match="attention window is shorter than an example"):
        Learner(school._replace(start=narrow).lesson())


@pytest.mark.parametrize("divergence", ["forward_kl", "jsd", "tvd"])
def test_a_teacher_at_hand_teaches_as_its_whole_distribution_does(
    school: School, tiny: Path, divergence: str
) -> None:
    """Dense stored targets and the live teacher: the same step."""
    teacher = load(tiny)
    rows = [(p, a) for p, a in asked(teacher, prompts())][::2]
    dense = {t.answer_id: t for t in teacher.score(rows, teacher.head.vocabulary, 2.0, 0)}
    keys: dict[str, Any] = {"divergence": divergence, "temperature": 2.0, "text_weight": 0.3}
    lesson = replace(school.lesson(**keys), held_out=())
    stored = replace(lesson, examples=render(rows, teacher.tokenizer, dense))
    live = replace(lesson, examples=render(rows, teacher.tokenizer), teacher=teacher)
    assert Learner(live).self_check() < 1e-5
    told = [after(one, next(one.steps())) for one in (Learner(stored), Learner(live))]
    (row, gradient), (other, same_gradient) = told
    assert other["loss"] == pytest.approx(row["loss"], rel=1e-5)
    assert other["kl"] == pytest.approx(row["kl"], rel=1e-5)
    same(gradient, same_gradient, 1e-4)


def crowded(patch: pytest.MonkeyPatch, most: int) -> None:
    """A network that asks the allocator for more than there is, in the middle of its second pass
    and of every later one over more than `most` tokens."""
    passes = 0

    def ask(_: Any, states: tuple[Tensor, ...]) -> None:
        nonlocal passes
        if not torch.is_grad_enabled():
            return
        passes += 1
        if passes > 1 and states[0].shape[:2].numel() > most:
            torch.empty(1 << 60, dtype=torch.uint8)

    def loaded(*arguments: Any, **options: Any) -> Any:
        made = load_network(*arguments, **options)
        made.base_model.layers[1].register_forward_pre_hook(ask)
        return made

    patch.setattr("limbeck.train.learner.load_network", loaded)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_out_of_memory_once_halves_the_passes_and_goes_on(
    school: School,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    precision: str,
) -> None:
    lesson = school.lesson(steps=4, precision=precision)
    train(lesson, tmp_path / "usual", tmp_path / "usual.jsonl", torch.float32)
    assert "out of memory" not in capsys.readouterr().err
    crowded(monkeypatch, 70)
    train(lesson, tmp_path / "crowded", tmp_path / "crowded.jsonl", torch.float32)
    told = capsys.readouterr().err
    assert told.count("out of memory in step 1: going on with train.micro_tokens = 50") == 1
    loose = 1e-5 if precision == "float32" else 2e-2
    rows = lines(tmp_path / "usual.jsonl")
    for row, its in zip(rows, lines(tmp_path / "crowded.jsonl"), strict=True):
        for key in row.keys() & {"loss", "grad_norm", "held_out_kl"}:
            assert its[key] == pytest.approx(row[key], rel=loose), key


def test_half_the_passes_are_kept_when_training_goes_on(
    school: School,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lesson = school.lesson(steps=4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        crowded(patch, 70)
        stop_after(2, interrupt, patch)
        train(lesson, tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
    capsys.readouterr()
    crowded(monkeypatch, 70)
    train(lesson, tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
    assert "out of memory" not in capsys.readouterr().err


def test_out_of_memory_twice_says_what_to_lower(
    school: School, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowded(monkeypatch, 0)
    with pytest.raises(
        ServiceError, match=r"in step 1 .*Lower train\.micro_tokens \(now 50\)"
    ) as e:
        train(school.lesson(), tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
    assert "\n" not in str(e.value)
    monkeypatch.undo()
    fewer = school.lesson(micro_tokens=30, row_tokens=30, checkpoint_activations=True)
    assert train(fewer, tmp_path / "run", tmp_path / "m.jsonl", torch.float32).step == 5


def test_other_errors_of_a_step_are_not_taken_for_want_of_memory(
    school: School, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        torch.mm(torch.ones(2, 3), torch.ones(2, 3))

    monkeypatch.setattr("limbeck.train.objective.Objective.forward", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        train(school.lesson(), tmp_path / "run", tmp_path / "m.jsonl", torch.float32)


@pytest.mark.parametrize("role", ["student", "control"])
def test_activations_that_are_computed_again_give_the_same_gradient(
    school: School, role: Learns
) -> None:
    step, found = [[0, 1, 2], [3, 4]], []
    for again in (False, True):
        learner = Learner(school.lesson(role, checkpoint_activations=again))
        kept: list[int] = []  # the bytes that a forward pass keeps for the backward one

        def note(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            row, gradient = after(learner, step)
        found.append((row["loss"], gradient, sum(kept)))
    (loss, wanted, all_kept), (its, gradient, fewer) = found
    assert its == pytest.approx(loss, rel=1e-6)
    same(gradient, wanted, 1e-6)
    assert fewer < all_kept


@pytest.mark.slow
def test_compiled_layers_learn_the_same(
    school: School, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = torch.nn.Module.compile  # inductor takes minutes where much else runs
    patched: Any = lambda *a, **k: plain(*a, **k, backend="aot_eager")  # noqa: E731
    monkeypatch.setattr(torch.nn.Module, "compile", patched)
    counters = torch._dynamo.utils.counters["stats"]  # pyright: ignore[reportAttributeAccessIssue]
    learners = Learner(school.lesson()), Learner(school.lesson(compile=True))
    graphs = counters["unique_graphs"]
    (row, gradient), (its, same_gradient) = (after(one, [[0, 1, 2], [3, 4]]) for one in learners)
    assert counters["unique_graphs"] > graphs, "the learner's own layers, not only the one tried"
    assert its["loss"] == pytest.approx(row["loss"], rel=1e-6)
    same(same_gradient, gradient, 1e-5)
    assert "not compiled" not in capsys.readouterr().err


def test_without_a_compiler_it_goes_on_and_says_why(
    school: School,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr(inductor.cpp, "cxx", (None, "no-such-compiler"))
    row, gradient = after(Learner(school.lesson(compile=True)), [[0, 1, 2], [3, 4]])
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "not compiled" in x]
    assert "no-such-compiler" in line or "C++ compiler" in line
    wanted, same_gradient = after(Learner(school.lesson()), [[0, 1, 2], [3, 4]])
    assert row["loss"] == wanted["loss"]
    assert all(torch.equal(gradient[key], value) for key, value in same_gradient.items())


class TestAdapters:
    """Low-rank adapters in place of all weights."""

    @pytest.fixture(autouse=True)
    def peft(self, needs: Callable[[object, str], None]) -> None:
        needs(find_spec("peft"), "peft")

    def test_the_adapters_learn_and_are_merged(self, school: School, tmp_path: Path) -> None:
        lesson = school.lesson(steps=12, lora_rank=4, learning_rate=1e-2)
        train(lesson, tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
        rows = lines(tmp_path / "m.jsonl")
        held_out_kl = [row["held_out_kl"] for row in rows if "held_out_kl" in row]
        assert held_out_kl[-1] < held_out_kl[0] / 2
        start, final = load(school.start).network, load(tmp_path / "run/final").network
        before, after = dict(start.named_parameters()), dict(final.named_parameters())
        assert before.keys() == after.keys(), "an ordinary folder"
        for name, weight in after.items():
            change = (weight - before[name]).detach()
            if "proj" in name:
                values = torch.linalg.svdvals(change)
                assert values[3] > 100 * values[4], "a change of rank 4"
            else:
                assert not change.any(), name
        held_out = school._replace(start=tmp_path / "run/final", examples=school.held_out)
        _, kl, _ = oracle(held_out.lesson(), list(range(len(school.held_out))))
        assert held_out_kl[-1] == pytest.approx(kl, rel=1e-4)

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_stopping_changes_no_bit(
        self, school: School, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
    ) -> None:
        lesson = school.lesson(steps=3, lora_rank=2, precision=precision)
        train(lesson, tmp_path / "whole", tmp_path / "whole.jsonl", torch.float32)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_after(1, interrupt, patch)
            train(lesson, tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
        (kept,) = (tmp_path / "run").glob("step-*/state.safetensors")
        assert kept.stat().st_size < (school.start / "model.safetensors").stat().st_size / 2
        train(lesson, tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
        wanted = (tmp_path / "whole/final/model.safetensors").read_bytes()
        assert (tmp_path / "run/final/model.safetensors").read_bytes() == wanted
        assert untimed(tmp_path / "m.jsonl") == untimed(tmp_path / "whole.jsonl")

    def test_without_peft_it_is_asked_for(
        self, school: School, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(InputError, match=r"needs peft; .*limbeck\[lora\]"):
            Learner(school.lesson(lora_rank=4))
