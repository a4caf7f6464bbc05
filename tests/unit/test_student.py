from __future__ import annotations

import copy
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.errors import InputError
from limbeck.models.head import Head
from limbeck.models.weights import find
from limbeck.records import Example
from limbeck.sections import StudentSection
from limbeck.train.student import (
    choose_layers,
    drop_layers,
    layers_wanted,
    start_from_layers,
    start_from_model,
)
from small import LENGTHS, asked, examples_of, load, log_softmax, network, prompts, save
from tiny import make_tokenizer

# Two kinds of attention layers with rotary embeddings of their own.
MIXED = {
    "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
    "sliding_window": 64,
}
KINDS = [("Llama", {}), ("Qwen3", {}), ("Gemma3Text", MIXED)]
each_kind = pytest.mark.parametrize("kind, changes", KINDS)


def weakened(kind: str, weak: dict[int, float], **changes: Any) -> Any:
    """A network of which some layers do less than the others, by these factors."""
    made = network(kind, **changes)
    for i, factor in weak.items():
        made.model.layers[i].self_attn.o_proj.weight.data *= factor
        made.model.layers[i].mlp.down_proj.weight.data *= factor
    return made


def logits_of(made: Any, example: Example) -> np.ndarray:
    with torch.no_grad():
        out = made(input_ids=torch.from_numpy(example.token_ids)[None], use_cache=False)
    return out.logits[0, :-1][torch.from_numpy(example.loss_mask[1:])].double().numpy()


def kl(teacher: Any, student: Any, examples: list[Example]) -> float:
    """Mean forward KL over the learnt tokens, one example at a time, in float64."""
    rows: list[np.ndarray] = []
    for example in examples:
        log_p, log_q = (log_softmax(logits_of(one, example)) for one in (teacher, student))
        rows.append((np.exp(log_p) * (log_p - log_q)).sum(-1))
    return float(np.concatenate(rows).mean())


def passing(made: Any, gone: set[int]) -> Any:
    """A copy of the network in which these layers hand on what they are given."""
    made = copy.deepcopy(made)
    for i in gone:
        made.model.layers[i].forward = lambda states, *_, **__: states
    return made


def dropped(made: Any, kept: list[int]) -> Any:
    made = copy.deepcopy(made)
    drop_layers(made, kept)
    return made


@each_kind
@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [0, 3], [1, 2], [2], [1, 3]])
def test_dropping_is_as_if_the_layers_handed_on_their_input(
    kind: str, changes: dict[str, Any], kept: list[int]
) -> None:
    made = network(kind, **changes)
    ids = torch.tensor([[9, 41, 3, 63, 0, 17, 22, 5]])
    less = dropped(made, kept)
    assert (less.config.num_hidden_layers, len(less.model.layers)) == (len(kept), len(kept))
    with torch.no_grad():
        states = less.model(input_ids=ids).last_hidden_state
        wanted = passing(made, set(range(4)) - set(kept)).model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(states, wanted, rtol=1e-6, atol=1e-6)


@each_kind
def test_generation_after_dropping_keeps_its_cache_straight(
    kind: str, changes: dict[str, Any]
) -> None:
    less = dropped(network(kind, **changes), [1, 3])
    ids = torch.tensor([[9, 41, 3, 63]])
    plain = ids
    for _ in range(12):
        with torch.no_grad():
            token = less(input_ids=plain, use_cache=False).logits[:, -1:].argmax(-1)
        plain = torch.cat([plain, token], -1)
    out = less.generate(input_ids=ids, do_sample=False, max_new_tokens=12, use_cache=True)
    assert out.tolist() == plain.tolist()


@each_kind
def test_a_dropped_network_is_the_same_after_saving(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    less = dropped(network(kind, **changes | {"vocab_size": 312}), [0, 3])
    again = load(save(less, tmp_path))
    (example,) = examples_of([20])
    np.testing.assert_allclose(
        logits_of(again.network, example), logits_of(less, example), atol=1e-5
    )


@pytest.mark.parametrize("kept", [[3, 0], [0, 0], [0, 4], [-1, 2]])
def test_layers_that_are_not_there_cannot_be_kept(kept: list[int]) -> None:
    with pytest.raises(InputError, match="cannot be kept of 4"):
        drop_layers(network(), kept)


def test_layers_that_do_nothing_go_first() -> None:
    made = weakened("Llama", {1: 0, 4: 0}, num_hidden_layers=6)
    costs: list[float] = []
    choice = choose_layers(Head(made, 64), examples_of(LENGTHS), 3, costs.append)
    assert set(choice.kept) < {0, 2, 3, 5}
    assert costs[:2] == pytest.approx([0, 0], abs=1e-6) and costs[2] > 0.01
    assert choice.kl == costs[2]


@each_kind
def test_the_choice_costs_what_it_says(kind: str, changes: dict[str, Any]) -> None:
    made, examples = weakened(kind, {0: 0}, **changes), examples_of(LENGTHS)
    for layers in (3, 2, 1):
        choice = choose_layers(Head(made, 64), examples, layers)
        assert len(choice.kept) == layers and 0 not in choice.kept
        expected = kl(made, dropped(made, list(choice.kept)), examples)
        assert choice.kl == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_first_layer_to_go_is_the_cheapest_of_all() -> None:
    examples = examples_of(LENGTHS)
    for weak in range(4):
        made = weakened("Llama", {weak: 0.5})
        threes = combinations(range(4), 3)
        costs = {kept: kl(made, dropped(made, list(kept)), examples) for kept in threes}
        choice = choose_layers(Head(made, 64), examples, 3)
        assert choice.kept == min(costs, key=lambda kept: costs[kept])


def test_a_cost_in_bfloat16_is_summed_in_float32() -> None:
    made, examples = network().bfloat16(), examples_of(LENGTHS)
    choice = choose_layers(Head(made, 64), examples, 3)
    expected = kl(made, dropped(made, list(choice.kept)), examples)
    assert choice.kl == pytest.approx(expected, rel=2e-3)


@each_kind
def test_choosing_leaves_the_network_as_it_was(kind: str, changes: dict[str, Any]) -> None:
    made, examples = network(kind, **changes), examples_of(LENGTHS)
    before = [logits_of(made, e) for e in examples]
    config, layers = copy.deepcopy(made.config), list(made.model.layers)
    choose_layers(Head(made, 64), examples, 1)
    assert list(made.model.layers) == layers
    assert made.config.to_dict() == config.to_dict()
    for example, wanted in zip(examples, before, strict=True):
        assert np.array_equal(logits_of(made, example), wanted)
    assert not any(layer._forward_hooks for layer in layers)

    def fail(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        choose_layers(Head(made, 64), examples, 1, fail)
    assert np.array_equal(logits_of(made, examples[0]), before[0])


def section(**size: Any) -> StudentSection:
    return StudentSection.model_validate(size)


@pytest.mark.parametrize("tied", [False, True])
def test_as_many_layers_as_the_parameters_have_room_for(tied: bool) -> None:

    def wide(layers: int) -> Any:
        return network(
            vocab_size=4000,
            hidden_size=96,
            intermediate_size=400,
            tie_word_embeddings=tied,
            num_hidden_layers=layers,
        )

    sizes = [sum(p.numel() for p in wide(n).parameters()) for n in range(1, 6)]
    made = wide(5)
    for layers, size in enumerate(sizes, 1):
        room = f"{np.ceil(size / 1e4) / 100:.2f}M"
        assert layers_wanted(section(parameters=room), made) == layers
    assert layers_wanted(section(parameters=f"{sizes[4] / 1e9 + 0.01:.6f}B"), made) == 5
    assert layers_wanted(section(parameters="1B"), made) == 5
    with pytest.raises(InputError, match=r"parameters = 0\.1M leaves room for no layer"):
        layers_wanted(section(parameters="0.1M"), made)


def test_more_layers_than_there_are_cannot_be_wanted() -> None:
    assert layers_wanted(section(layers=4), network()) == 4
    with pytest.raises(InputError, match=r"student\.layers = 5, but the teacher has 4"):
        layers_wanted(section(layers=5), network())


def test_a_student_starts_as_the_teacher_without_some_layers(tiny: Path, tmp_path: Path) -> None:
    teacher = load(tiny)
    rows = asked(teacher, prompts(6))
    facts = start_from_layers(teacher, section(layers=2), rows, tmp_path / "start")
    start = load(tmp_path / "start")
    kept = [int(i) for i in str(facts["layers_kept"]).split(",")]
    example = examples_of([24])[0]
    np.testing.assert_allclose(
        logits_of(start.network, example),
        logits_of(passing(teacher.network, {0, 1, 2, 3} - set(kept)), example),
        atol=1e-5,
    )
    assert (facts["layers"], facts["of"], start.layers) == (2, 4, 2)
    assert facts["parameters"] == start.parameters
    assert start.tokenizer.hash == teacher.tokenizer.hash
    assert start.tokenizer.template_hash == teacher.tokenizer.template_hash
    assert teacher.layers == len(teacher.network.model.layers) == 4


def test_a_student_may_start_from_another_model_of_the_same_tokenizer(
    tiny: Path, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ 'another' }}"
    base = save(network(vocab_size=len(tokenizer)), tmp_path / "base", tokenizer)
    facts = start_from_model(find(str(base)), find(str(tiny)), tmp_path / "start")
    start = load(tmp_path / "start")
    theirs = network(vocab_size=len(tokenizer)).state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in start.network.state_dict().items())
    assert start.tokenizer.template_hash == load(tiny).tokenizer.template_hash
    assert (facts["layers"], facts["parameters"]) == (4, start.parameters)


def test_another_tokenizer_is_refused_even_at_the_same_size(tiny: Path, tmp_path: Path) -> None:
    other = make_tokenizer(["completely different words, of which it has learnt others"] * 9)
    base = save(network(vocab_size=len(other)), tmp_path / "base", other)
    with pytest.raises(InputError, match=r"student\.base base has another tokenizer") as caught:
        start_from_model(find(str(base)), find(str(tiny)), tmp_path / "start")
    assert not (tmp_path / "start").exists() and "\n" not in str(caught.value)
