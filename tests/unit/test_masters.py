from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.recipe import TrainSection
from limbeck.train.masters import Masters

STEPS = 40


def section(**keys: Any) -> TrainSection:
    return TrainSection.model_validate({"steps": 1, "weight_decay": 0.0, "clip": 1e9, **keys})


class Small(torch.nn.Module):
    """One matrix and one vector, of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.ones(3, 4))
        self.vector = torch.nn.Parameter(torch.ones(5))


def push(made: Small, masters: Masters, matrix: Tensor, vector: Tensor) -> None:
    """One micro-batch whose gradients are these."""
    loss = (made.matrix.float() * matrix).sum() + (made.vector.float() * vector).sum()
    loss.backward()
    masters.gather()


def gradients(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)


def adamw(steps: int, rate: float, decay: float) -> tuple[Tensor, Tensor]:
    """The masters after these steps, by AdamW's definition in float64; only the matrix decays."""
    ends: list[Tensor] = []
    for which, shape in enumerate([(3, 4), (5,)]):
        w, m, v = (torch.full(shape, fill, dtype=torch.float64) for fill in (1.0, 0.0, 0.0))
        for t in range(1, steps + 1):
            g = gradients(t)[which].double()
            w = w * (1 - rate * decay * (which == 0))
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
            w = w - rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        ends.append(w)
    return ends[0], ends[1]


def run(dtype: torch.dtype, rate: float, decay: float = 0.0) -> tuple[Small, Masters]:
    made = Small()
    masters = Masters(made, section(weight_decay=decay), dtype)
    for t in range(1, STEPS + 1):
        push(made, masters, *gradients(t))
        masters.step(rate)
    return made, masters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_masters_follow_adamw(dtype: torch.dtype, decay: float) -> None:
    made, masters = run(dtype, 1e-2, decay)
    assert made.matrix.dtype == made.vector.dtype == dtype
    state = masters.state()
    for name, wanted in zip(("matrix", "vector"), adamw(STEPS, 1e-2, decay), strict=True):
        master, live = state[f"master.{name}"], getattr(made, name)
        assert master.dtype == torch.float32
        # A gradient that came through bfloat16 has 8 bits.
        loose = 1e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(master.double(), wanted, rtol=loose, atol=loose)
        assert torch.equal(live, master.to(dtype))


def test_updates_below_the_resolution_of_bfloat16_are_kept() -> None:
    made, masters = Small(), None
    masters = Masters(made, section(), torch.bfloat16)
    plain = Small().bfloat16()
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-4, weight_decay=0.0)
    for _ in range(STEPS):
        push(made, masters, torch.ones(3, 4), torch.ones(5))
        masters.step(1e-4)
        (plain.matrix.sum() + plain.vector.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (plain.matrix == 1).all(), "without masters every one of these steps is lost"
    state = masters.state()
    torch.testing.assert_close(state["master.matrix"], torch.full((3, 4), 1 - STEPS * 1e-4))
    for _ in range(2 * STEPS):
        push(made, masters, torch.ones(3, 4), torch.ones(5))
        masters.step(1e-4)
    assert (made.matrix < 1).all(), "the network sees them once they add up"


def test_gradients_of_micro_batches_are_added_up_in_float32() -> None:
    made = Small()
    masters = Masters(made, section(), torch.bfloat16)
    push(made, masters, torch.ones(3, 4), torch.ones(5))
    for _ in range(64):
        push(made, masters, torch.full((3, 4), 2**-10), torch.full((5,), 2**-10))
    norm = masters.step(0.0)
    assert norm == pytest.approx(17**0.5 * (1 + 64 * 2**-10), rel=1e-6)
    assert made.matrix.grad is None or not made.matrix.grad.any()
    push(made, masters, torch.ones(3, 4), torch.ones(5))
    assert masters.step(0.0) == pytest.approx(17**0.5, rel=1e-6), "a step begins from nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_the_gradient_is_clipped_as_a_whole(dtype: torch.dtype, clip: float) -> None:
    made = Small()
    masters = Masters(made, section(clip=clip), dtype)
    push(made, masters, torch.full((3, 4), 2.0), torch.full((5,), -4.0))
    whole = (12 * 2**2 + 5 * 4**2) ** 0.5
    assert masters.step(1e-3) == pytest.approx(whole, rel=1e-6), "the norm before clipping"
    shrunk = min(1.0, clip / whole)
    state = masters.state()  # the first moment is a tenth of the first gradient
    torch.testing.assert_close(state["exp_avg.matrix"], torch.full((3, 4), 0.2 * shrunk))
    torch.testing.assert_close(state["exp_avg.vector"], torch.full((5,), -0.4 * shrunk))


def put_back(masters: Masters, kept: dict[str, Tensor]) -> None:
    state = masters.state()
    assert state.keys() == kept.keys()
    for key, value in kept.items():
        state[key].copy_(value)
    masters.hand_over()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_restored_goes_on_bit_for_bit(dtype: torch.dtype) -> None:
    made, masters = run(dtype, 1e-2, 0.1)
    kept = {key: value.clone() for key, value in masters.state().items()}
    assert {key.split(".")[0] for key in kept} == {"master", "step", "exp_avg", "exp_avg_sq"}
    other = Small()
    restored = Masters(other, section(weight_decay=0.1), dtype)
    put_back(restored, kept)
    assert torch.equal(other.matrix, made.matrix)
    for t in range(5):
        for one, its in ((made, masters), (other, restored)):
            push(one, its, *gradients(100 + t))
            its.step(1e-2)
    ours, theirs = restored.state(), masters.state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(other.vector, made.vector)


def test_a_state_from_before_the_first_step_can_be_restored() -> None:
    made = Small()
    masters = Masters(made, section(), torch.float32)
    put_back(masters, {key: value.clone() + 1 for key, value in masters.state().items()})
    assert (made.matrix == 2).all() and (made.vector == 2).all()


def test_what_is_frozen_stays_and_has_no_master() -> None:
    made = Small()
    made.vector.requires_grad_(False)
    masters = Masters(made, section(), torch.bfloat16)
    assert {key.partition(".")[2] for key in masters.state()} == {"matrix"}
    assert [name for name, _ in masters.whole()] == ["matrix"]
    made.matrix.float().sum().backward()
    masters.gather()
    masters.step(1e-2)
    assert (made.matrix < 1).all() and (made.vector == 1).all()
    assert made.vector.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_that_are_forgotten_leave_no_trace(dtype: torch.dtype) -> None:
    made = Small()
    masters = Masters(made, section(), dtype)
    push(made, masters, torch.full((3, 4), 7.0), torch.full((5,), 7.0))
    (made.matrix.float() * 3).sum().backward()  # a pass that did not come to its end
    masters.forget()
    push(made, masters, torch.ones(3, 4), torch.ones(5))
    assert masters.step(0.0) == pytest.approx(17**0.5, rel=1e-6)


def test_buffers_keep_their_precision() -> None:
    made = Small()
    frequencies = torch.full((4,), 1 + 2**-20)
    made.register_buffer("frequencies", frequencies.clone())
    Masters(made, section(), torch.bfloat16)
    assert made.matrix.dtype == torch.bfloat16
    assert torch.equal(made.get_buffer("frequencies"), frequencies)
