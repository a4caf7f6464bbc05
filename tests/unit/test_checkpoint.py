from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from limbeck.errors import InputError
from limbeck.train.checkpoint import Progress, clear, load_newest, save

Tensors = dict[str, torch.Tensor]

TENSORS = {"master.a": torch.randn(3, 4), "step.a": torch.tensor(7.0)}


def load(folder: Path, like: Tensors = TENSORS) -> tuple[Progress, int, Tensors] | None:
    """What is read into tensors that hold something else, or None."""
    into = {key: torch.full_like(value, 9.0) for key, value in like.items()}
    found = load_newest(folder, "plan", into)
    return (*found, into) if found else None


def at(step: int) -> Progress:
    return Progress("plan", step, 10 * step, 5 * step, 0.5 * step)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    tensors = TENSORS | {"exp_avg.a": torch.randn(4, 3).T}  # not contiguous
    save(tmp_path, at(3), tensors)
    assert (found := load(tmp_path, tensors)) is not None
    assert found[:2] == (at(3), 1)
    assert all(torch.equal(found[2][key], tensors[key]) for key in tensors)


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    for step in (8, 9, 10, 100_000_000):
        save(tmp_path, at(step), TENSORS)
        assert (found := load(tmp_path)) and found[0].step == step
    assert len(list(tmp_path.glob("step-*"))) == 1
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert load(tmp_path) is None


def test_saving_that_fails_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, at(3), TENSORS)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("limbeck.train.checkpoint.json.dumps", fail)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, at(4), TENSORS)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000003"]
    assert (found := load(tmp_path)) and found[0] == at(3)


def test_another_plan_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, at(3), TENSORS)
    with pytest.raises(InputError, match="belongs to other answers, targets or settings") as caught:
        load_newest(tmp_path, "another", {})
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("file", ["state.safetensors", "progress.json"])
@pytest.mark.parametrize("how", ["missing", "cut", "other"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, file: str, how: str) -> None:
    path = save(tmp_path, at(3), TENSORS) / file
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif how == "other":
        path.write_text(json.dumps({"plan": "plan", "steps": 1}))
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"step-0000003 is damaged .*Remove it") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path: Path) -> None:
    save(tmp_path, at(3), TENSORS)
    for like in ({"master.a": torch.ones(4, 3)}, TENSORS | {"master.b": torch.ones(2)}):
        with pytest.raises(InputError, match=r"step-0000003 is damaged .*Remove it") as caught:
            load(tmp_path, like)
        assert "\n" not in str(caught.value)
