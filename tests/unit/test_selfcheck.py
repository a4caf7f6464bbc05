from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.collect.packing import ARRAYS
from limbeck.errors import GateError
from limbeck.models.head import Head
from limbeck.models.outcomes import log_outcomes, sampled_targets
from limbeck.progress import Meter
from limbeck.recipe import Divergence, TrainSection
from limbeck.records import Example, Targets
from limbeck.train import learner as room
from limbeck.train import loop, losses, objective
from limbeck.train.batch import Batch
from limbeck.train.fused import Fused
from limbeck.train.learner import Learner, Learns, Lesson
from limbeck.train.oracle import KINDS, Rule, divergence
from limbeck.train.teacher import Sparse
from small import network, save

VOCABULARY, LENGTHS = 312, (19, 12, 40, 9, 30)
pack, gather = room.pack, Learner._gather  # pyright: ignore[reportPrivateUsage]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(network(vocab_size=VOCABULARY), tmp_path_factory.mktemp("selfcheck") / "start")


@pytest.fixture(autouse=True)
def determinism_left_as_it_was() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@torch.no_grad()
def examples(temperature: float = 1.0, k: int = 6) -> list[Example]:
    """Random prompts and answers with the targets of another network."""
    rng, made = np.random.default_rng(3), []
    teacher = network(vocab_size=VOCABULARY, seed=1)
    for number, length in enumerate(LENGTHS):
        ids = rng.integers(0, VOCABULARY, length)
        mask = np.arange(length) >= rng.integers(2, length - 4)
        at = np.flatnonzero(mask)
        logits = teacher(input_ids=torch.from_numpy(ids)[None]).logits[0][at - 1]
        drawn = 0 if k == VOCABULARY else 5
        offsets = torch.from_numpy(rng.random(len(at)))
        rows = sampled_targets(logits, k, temperature, drawn, offsets)
        top, logprobs, tail, drawn_ids, entropy = (t.numpy() for t in rows)
        told = Targets(
            str(number), ids[at], top, logprobs, tail, drawn_ids, entropy, temperature, ""
        )
        made.append(Example(str(number), ids, mask, told))
    return made


def learner(start: Path, role: Learns = "student", k: int = 6, **keys: Any) -> Learner:
    section = TrainSection.model_validate({"steps": 2, "precision": "float32"} | keys)
    return Learner(Lesson(role, start, examples(section.temperature, k), (), section, 7, 2))


@pytest.mark.parametrize("kind", get_args(Divergence))
@pytest.mark.parametrize("k", [1, 6, VOCABULARY])
def test_what_is_right_passes(start: Path, kind: Divergence, k: int) -> None:
    keys: dict[str, Any] = {"divergence": kind, "beta": 0.3, "temperature": 2.0, "text_weight": 0.4}
    assert learner(start, k=k, **keys).self_check() < 1e-5


@pytest.mark.parametrize("precision, close", [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("role", get_args(Learns))
def test_both_students_pass_in_both_precisions(
    start: Path, role: Learns, precision: str, close: float
) -> None:
    for row_tokens in (1, 64):
        made = learner(start, role, precision=precision, row_tokens=row_tokens)
        assert made.self_check() < close


def test_a_capped_and_padded_head_passes(tmp_path: Path) -> None:
    capped = network("Gemma3Text", vocab_size=VOCABULARY + 8, final_logit_softcapping=3.0)
    assert learner(save(capped, tmp_path / "capped")).self_check() < 1e-5


def test_it_changes_nothing(start: Path) -> None:
    class Silent:
        def advance(self, *_: object, **__: object) -> None:
            pass

    rows: list[dict[str, Any]] = []
    for checked in (False, True):
        made = learner(start)
        if checked:
            made.self_check()
        row = made.learn(next(made.steps()), cast(Meter, Silent()))
        rows.append({k: row[k] for k in ("loss", "kl", "grad_norm", "tokens")})
        assert made.network.training
    assert rows[0] == rows[1]


# -- mistakes, each made in the real path ------------------------------------------------------


def packed(change: Callable[[Batch], Batch]) -> Callable[..., Batch]:
    return lambda some, row_tokens: change(pack(some, row_tokens))


def unshifted(some: Sequence[Example], row_tokens: int) -> Batch:
    """The mask stands where the labels stood before they were shifted."""
    moved: list[Example] = []
    for one in some:
        told = one.targets
        mask = np.append(False, one.loss_mask[:-1])
        assert told is not None
        rows = {k: getattr(told, k)[1:] for k in ARRAYS}
        moved.append(replace(one, loss_mask=mask, targets=replace(told, **rows)))
    return pack(moved, row_tokens)


def leaking(batch: Batch) -> Batch:
    width = batch.token_ids.shape[1]
    return replace(batch, visible=torch.ones(width, width, dtype=torch.bool).tril()[None, None])


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b) + log_b.exp() - log_a.exp()).sum(-1)


def by(divergence: Callable[..., Tensor]) -> Callable[..., Fused]:
    """A loss in place of the fused one, from a divergence of logits."""

    def loss(
        states: Tensor, head: Head, told: Sparse, kind: Divergence, *, normaliser: int, **keys: Any
    ) -> Fused:
        of_the_text = ("labels", "text_weight")
        keys = {k: v for k, v in keys.items() if k not in of_the_text}
        keys |= {"tail_ids": told.tail_ids, "tail_entropy": told.tail_entropy}
        values = divergence(head(states), told.top_ids, told.logprobs, told.tail, kind, **keys)
        return Fused(values.sum() / normaliser, values.detach(), values.detach())

    return loss


def no_tail(logits: Tensor, top_ids: Tensor, logprobs: Tensor, *_: Any, **keys: Any) -> Tensor:
    log_q = log_outcomes(logits, top_ids, keys["temperature"])[:, :-1]
    return kl(logprobs, log_q) * keys["temperature"] ** 2


def renormalised(logits: Tensor, top_ids: Tensor, logprobs: Tensor, *_: Any, **keys: Any) -> Tensor:
    log_q = (logits.gather(-1, top_ids) / keys["temperature"]).log_softmax(-1)
    return kl(logprobs.log_softmax(-1), log_q) * keys["temperature"] ** 2


def without_temperature(*arguments: Any, **keys: Any) -> Tensor:
    return losses.divergence(*arguments, **keys | {"temperature": 1.0})


def backwards(
    logits: Tensor, top_ids: Tensor, logprobs: Tensor, tail: Tensor, _: str, **keys: Any
) -> Tensor:
    return losses.divergence(logits, top_ids, logprobs, tail, "reverse_kl", **keys)


def other_beta(*arguments: Any, **keys: Any) -> Tensor:
    return losses.divergence(*arguments, **keys | {"beta": 1 - keys["beta"]})


def other_gradient(logits: Tensor, *rest: Any, **keys: Any) -> Tensor:
    """The value of the divergence with the gradient of something else."""
    value = losses.divergence(logits.detach(), *rest, **keys)
    other = logits.float().logsumexp(-1)
    return value + other - other.detach()


IN_THE_BATCH = {
    "shift: a state is held to the token it stands on": packed(
        lambda b: replace(b, predicts=b.predicts + 1)
    ),
    "shift: a state is held two tokens on": packed(
        lambda b: replace(b, predicts=(b.predicts - 1).clamp(min=0))
    ),
    "mask: the first learnt token of an answer is left out": unshifted,
    "packing": packed(leaking),
}
IN_THE_LOSS = {
    "divergence: the temperature is ignored": without_temperature,
    "divergence: the teacher's tail is dropped": no_tail,
    "divergence: both sides are renormalised": renormalised,
    "divergence: it is reverse_kl, not forward_kl": backwards,
    "gradient: it is not the one of this loss": other_gradient,
}


@pytest.mark.parametrize("name", IN_THE_BATCH)
def test_a_wrong_batch_is_named(start: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "pack", IN_THE_BATCH[name])
    with pytest.raises(GateError, match=f"before the first step: {name}"):
        learner(start).self_check()


@pytest.mark.parametrize("name", IN_THE_LOSS)
def test_a_wrong_divergence_is_named(
    start: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "fused_loss", by(IN_THE_LOSS[name]))
    with pytest.raises(GateError, match=f"before the first step: {name}"):
        learner(start, temperature=2.0).self_check()


def test_a_mixture_the_wrong_way_round_is_named(
    start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "fused_loss", by(other_beta))
    with pytest.raises(GateError, match="divergence: beta weighs the wrong side"):
        learner(start, divergence="jsd", beta=0.2).self_check()


@pytest.mark.parametrize("role", get_args(Learns))
def test_a_mean_taken_twice_is_named(
    start: Path, role: Learns, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = objective.Objective.forward

    def mean(self: objective.Objective, *rest: Any) -> Fused:
        found = forward(self, *rest)
        tokens = len(found.values)
        return found._replace(total=found.total / tokens, values=found.values / tokens)

    monkeypatch.setattr(objective.Objective, "forward", mean)
    with pytest.raises(GateError, match="normaliser: divided twice by the number of learnt tokens"):
        learner(start, role).self_check()


def test_a_gradient_divided_once_more_is_named(
    start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss that is logged is right, clipping is inert and Adam hides the rest."""

    def scaled(self: Learner, step: Sequence[Sequence[Example]]) -> tuple[float, float, int]:
        loss, kl, learnt = gather(self, step)
        for parameter in self.network.parameters():
            parameter.grad /= learnt
        return loss, kl, learnt

    monkeypatch.setattr(Learner, "_gather", scaled)
    with pytest.raises(GateError, match="normaliser: the gradient is once more divided by the"):
        learner(start).self_check()


def test_micro_batches_that_count_alike_are_named(
    start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alike(self: Learner, step: Sequence[Sequence[Example]]) -> tuple[float, float, int]:
        found = [gather(self, [micro]) for micro in step]
        return sum(loss for loss, _, _ in found) / len(found), 0.0, sum(n for _, _, n in found)

    monkeypatch.setattr(Learner, "_gather", alike)
    with pytest.raises(GateError, match="normaliser: micro-batches count alike"):
        learner(start).self_check()


def test_what_no_known_mistake_explains_is_still_refused(
    start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slightly_more = by(lambda *a, **k: losses.divergence(*a, **k) * 1.01)
    monkeypatch.setattr(objective, "fused_loss", slightly_more)
    with pytest.raises(GateError, match="no known mistake explains it"):
        learner(start).self_check()


def test_nothing_is_trained_where_it_fails(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "fused_loss", by(no_tail))
    with pytest.raises(GateError, match="tail is dropped"):
        loop.train(learner(start).lesson, tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
    assert not (tmp_path / "run" / "final").exists()
    assert not (tmp_path / "m.jsonl").exists()


def test_a_fresh_run_says_so_and_a_resumed_one_is_not_checked_again(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lesson = learner(start, checkpoint_seconds=1e-9).lesson
    learn = Learner.learn

    def struck(self: Learner, *rest: Any) -> dict[str, Any]:
        if self.progress.step == 1:
            raise RuntimeError("crash")
        return learn(self, *rest)

    place = (tmp_path / "run", tmp_path / "m.jsonl", torch.float32)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(Learner, "learn", struck)
        loop.train(lesson, *place)
    assert capsys.readouterr().err.count("loss agrees with the float64 oracle to") == 1
    loop.train(lesson, *place)
    assert "oracle" not in capsys.readouterr().err


# -- the oracle itself -------------------------------------------------------------------------


def drawn(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n, generator=generator, dtype=torch.float64)).log_softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_divergence_is_0_between_equals_and_above_it_else(kind: str) -> None:
    p, q = drawn(7, 0), drawn(7, 1)
    assert divergence(p, p, Rule(kind), 6).item() == pytest.approx(0, abs=1e-12)
    assert divergence(p, q, Rule(kind), 6).item() > 1e-3


def test_divergences_at_their_limits() -> None:
    p, q = drawn(7, 0), drawn(7, 1)

    def of(kind: str, **keys: float) -> float:
        return divergence(p, q, Rule(kind, **keys), 6).item()

    forward, backward = of("forward_kl"), of("reverse_kl")
    assert of("skew_kl", skew=0.0) == pytest.approx(forward)
    assert of("skew_reverse_kl", skew=0.0) == pytest.approx(backward)
    assert of("jsd", beta=1e-6) / 1e-6 == pytest.approx(forward, rel=1e-3)
    assert of("tvd") == pytest.approx(1 - torch.minimum(p.exp(), q.exp()).sum().item())
    between = (of("adaptive_kl") - backward) / (forward - backward)
    head = p[:6].argsort(descending=True)
    first = next(n for n in range(1, 7) if p[head[:n]].exp().sum() >= 0.5)
    gap = (p.exp() - q.exp()).abs()
    assert between == pytest.approx((gap[head[:first]].sum() / gap.sum()).item())
