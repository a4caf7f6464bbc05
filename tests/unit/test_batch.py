from __future__ import annotations

from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.collect.packing import pack as pack_targets
from limbeck.errors import InputError
from limbeck.models.tokenizer import ChatTokenizer
from limbeck.records import PackedTargets, Targets
from limbeck.train.batch import Batch, check_packing, pack, steps, steps_per_epoch
from limbeck.train.examples import render
from small import LENGTHS, asked, examples_of, load, network, prompts

TARGETS = ("top_ids", "logprobs", "tail", "tail_ids", "tail_entropy")


def body(made: Any, batch: Batch) -> torch.Tensor:
    """Logits (N, V) of a packed batch at the states that predict."""
    with torch.no_grad():
        out = made(
            input_ids=batch.token_ids,
            attention_mask=batch.visible,
            position_ids=batch.positions,
            use_cache=False,
        )
    return out.logits.flatten(0, 1)[batch.predicts]


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Cohere"])
@pytest.mark.parametrize("row_tokens", [1, 33, 64, 400])
def test_packed_logits_are_those_of_each_example_alone(kind: str, row_tokens: int) -> None:
    made, examples = network(kind).double(), examples_of(LENGTHS)
    batch = pack(examples, row_tokens)
    packed = body(made, batch)
    for number, example in enumerate(examples):
        with torch.no_grad():
            alone = made(input_ids=torch.from_numpy(example.token_ids)[None]).logits[0, :-1]
        wanted = alone[torch.from_numpy(example.loss_mask[1:])]
        torch.testing.assert_close(packed[batch.owners == number], wanted, rtol=1e-9, atol=1e-9)


def test_an_attention_window_shorter_than_an_example_is_refused() -> None:
    made = network("Mistral", sliding_window=20)
    check_packing(made.base_model, examples_of([19, 12, 7]))
    with pytest.raises(
        InputError, match=r"MistralModel .* shorter than an example of 30"
    ) as caught:
        check_packing(made.base_model, examples_of(LENGTHS))
    assert "\n" not in str(caught.value)


def test_a_state_that_runs_from_one_example_to_the_next_is_refused() -> None:
    made = network("Lfm2", layer_types=["conv", "full_attention"] * 2)
    with pytest.raises(InputError, match=r"Lfm2Model .* carries a state"):
        check_packing(made.base_model, examples_of([9, 8]))


@pytest.mark.parametrize("row_tokens", [1, 33, 64, 400])
def test_every_learnt_token_is_there_once_and_in_its_place(row_tokens: int) -> None:
    examples = examples_of(LENGTHS)
    batch = pack(examples, row_tokens)
    width = batch.token_ids.shape[1]
    flat, spots = batch.token_ids.flatten(), batch.positions.flatten()
    seen: list[tuple[int, int, int]] = []
    assert batch.top_ids is not None and batch.logprobs is not None and batch.tail is not None
    assert batch.tail_ids is not None and batch.tail_entropy is not None
    for n, at in enumerate(batch.predicts.tolist()):
        owner, label, position = int(batch.owners[n]), int(batch.labels[n]), int(spots[at])
        ids, t = examples[owner].token_ids, position + 1
        assert flat[at - position : at - position + len(ids)].tolist() == ids.tolist()
        assert at // width == (at - position) // width == (at - position + len(ids) - 1) // width
        assert batch.top_ids[n].tolist() == [t, owner]
        assert batch.logprobs[n].tolist() == [-t, -label]
        assert batch.tail[n].item() == pytest.approx(owner + t / 100)
        assert batch.tail_ids[n].tolist() == [t, label, owner]
        assert batch.tail_entropy[n].item() == pytest.approx(owner - t / 100)
        seen.append((owner, t, label))
    wanted = [
        (number, t, int(token))
        for number, one in enumerate(examples)
        for t, token in enumerate(one.token_ids)
        if one.loss_mask[t]
    ]
    assert sorted(seen) == wanted


@pytest.mark.parametrize("row_tokens", [1, 33, 64])
def test_every_token_sees_itself_and_nothing_later(row_tokens: int) -> None:
    batch = pack(examples_of(LENGTHS), row_tokens)
    rows, width = batch.token_ids.shape
    assert batch.visible.shape == (rows, 1, width, width)
    assert batch.visible.diagonal(dim1=-2, dim2=-1).all(), "padding too, or it turns to NaN"
    assert not batch.visible.triu(1).any()


def test_rows_are_filled_to_the_brim() -> None:
    batch = pack(examples_of([30, 20, 14, 10, 6]), 40)
    assert batch.token_ids.shape == (2, 40)
    assert pack(examples_of([30, 20]), 1000).token_ids.shape == (1, 50)
    assert pack(examples_of([70]), 40).token_ids.shape == (1, 70)


def test_without_targets_there_are_none() -> None:
    batch = pack(examples_of(LENGTHS, targets=False), 64)
    assert all(getattr(batch, name) is None for name in TARGETS)
    assert len(batch.labels) == len(pack(examples_of(LENGTHS), 64).labels)


def test_without_draws_the_tail_is_one_bucket() -> None:
    drawn = examples_of(LENGTHS)
    none = [
        replace(e, targets=replace(e.targets, tail_ids=e.targets.tail_ids[:, :0]))
        for e in drawn
        if isinstance(e.targets, Targets)
    ]
    batch, with_draws = pack(none, 64), pack(drawn, 64)
    assert batch.tail_ids is None and batch.tail_entropy is None
    for name in TARGETS[:3]:
        assert torch.equal(getattr(batch, name), getattr(with_draws, name))


def test_packed_targets_make_the_batch_that_unpacked_ones_make(tiny: Path) -> None:
    model = load(tiny)
    rows = asked(model, prompts(9))
    targets = list(model.score(rows, 4, 1.0, 3))
    vocabulary, stop = len(model.tokenizer.inner), 0
    tensors = pack_targets(targets, vocabulary)
    packed: dict[str, Targets | PackedTargets] = {}
    for one in targets:
        part = slice(stop, stop := stop + len(one.token_ids))
        packed[one.answer_id] = PackedTargets(
            one.answer_id, tensors, part, vocabulary, 1.0, model.tokenizer.hash
        )
    batch = pack(render(rows, model.tokenizer, packed), 40)
    plain = pack(render(rows, model.tokenizer, {t.answer_id: t for t in targets}), 40)
    for name in Batch.__slots__:
        one, other = getattr(batch, name), getattr(plain, name)
        loose = {"logprobs": 0.08, "tail": 2e-3, "tail_entropy": 2e-3}.get(name, 0)
        torch.testing.assert_close(one, other, rtol=loose, atol=loose)
    assert batch.labels.tolist() != sorted(batch.labels.tolist()), "order matters here"


def test_a_moved_batch_is_the_same_batch() -> None:
    batch = pack(examples_of(LENGTHS), 64)
    moved = batch.to(torch.device("meta"))
    for name in Batch.__slots__:
        there = getattr(moved, name)
        assert there.device.type == "meta" and there.shape == getattr(batch, name).shape


def epochs(lengths: list[int], batch_tokens: int, micro_tokens: int, seed: int, n: int) -> Any:
    """The first n epochs, each a list of steps of micro-batches, cut where all were seen."""
    order, found = steps(lengths, batch_tokens, micro_tokens, seed), []
    for _ in range(n):
        epoch: list[list[list[int]]] = []
        while sum(len(micro) for step in epoch for micro in step) < len(lengths):
            epoch.append(next(order))
        found.append(epoch)
    return found


@pytest.mark.parametrize("batch_tokens, micro_tokens", [(60, 25), (1000, 40), (1, 1), (64, 1000)])
def test_every_example_is_taken_once_an_epoch_within_the_limits(
    batch_tokens: int, micro_tokens: int
) -> None:
    lengths = np.random.default_rng(1).integers(2, 40, 50).tolist()

    def tokens(numbers: list[int]) -> int:
        return sum(lengths[i] for i in numbers)

    found = epochs(lengths, batch_tokens, micro_tokens, 3, 4)
    for epoch in found:
        assert sorted(i for step in epoch for micro in step for i in micro) == list(range(50))
        for step in epoch:
            numbers = [i for micro in step for i in micro]
            assert tokens(numbers) <= batch_tokens or len(numbers) == 1
            assert all(tokens(micro) <= micro_tokens or len(micro) == 1 for micro in step)
        for one, after in pairwise(epoch):
            first = after[0][0]
            assert tokens([i for micro in one for i in micro]) + lengths[first] > batch_tokens
    assert len(found[0]) == steps_per_epoch(lengths, batch_tokens, 3)


def test_order_is_decided_by_seed_and_epoch() -> None:
    lengths = [10] * 40

    def flat(seed: int) -> list[list[int]]:
        return [
            [i for step in epoch for micro in step for i in micro]
            for epoch in epochs(lengths, 100, 50, seed, 3)
        ]

    assert flat(3) == flat(3)
    orders = [*flat(3), *flat(4)]
    assert len({tuple(order) for order in orders}) == 6
    whole = list(islice(steps(lengths, 100, 50, 3), 12))
    assert list(islice(steps(lengths, 100, 50, 3), 7, 12)) == whole[7:]


def test_how_a_step_is_cut_into_micro_batches_does_not_move_examples() -> None:
    lengths = np.random.default_rng(1).integers(2, 40, 30).tolist()

    def flat(micro_tokens: int) -> list[list[int]]:
        some = islice(steps(lengths, 100, micro_tokens, 0), 20)
        return [[i for micro in step for i in micro] for step in some]

    assert flat(1) == flat(50) == flat(1000)


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(InputError, match="no example to train on: no answer was kept"):
        next(steps([], 10, 10, 0))


def test_an_example_is_prompt_and_answer_and_learns_the_answer(tiny: Path) -> None:
    model = load(tiny)
    rows = asked(model, prompts(5))
    targets = {t.answer_id: t for t in model.score(rows, 4, 1.0)}
    for (prompt, answer), example in zip(
        rows, render(rows, ChatTokenizer(tiny), targets), strict=True
    ):
        text = model.tokenizer.inner.decode(example.token_ids)
        asked_for = prompt.messages[0].content
        assert text == (
            f"<|im_start|>user\n{asked_for}<|im_end|>\n<|im_start|>assistant\n"
            f"{answer.text}<|im_end|>"
        )
        learnt = model.tokenizer.inner.decode(example.token_ids[example.loss_mask])
        assert learnt == f"{answer.text}<|im_end|>"
        assert example.targets is targets[answer.id]
        assert len(targets[answer.id].tail) == example.loss_mask.sum()
    assert all(e.targets is None for e in render(rows, model.tokenizer))


def test_targets_of_another_tokenizer_are_refused(tiny: Path) -> None:
    model = load(tiny)
    rows = asked(model, prompts(2))
    targets = {t.answer_id: t for t in model.score(rows, 4, 1.0)}
    model.tokenizer.hash = "another"
    with pytest.raises(InputError, match=r"prompts\.jsonl:1 were made with another tokenizer"):
        render(rows, model.tokenizer, targets)
