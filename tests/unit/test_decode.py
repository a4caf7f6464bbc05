from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare

from limbeck.models.decode import Request, decode
from limbeck.models.head import Head
from limbeck.models.protocol import QUIET
from limbeck.records import Sampling
from small import load, log_softmax, network, prompts

SLIDING = {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "vocab_size": 64,
}


def written(
    made: Any, rows: list[list[int]], stops: tuple[int, ...], sampling: Sampling
) -> list[list[int]]:
    requests = [Request(ids, f"key {n}") for n, ids in enumerate(rows)]
    head = Head(made, made.config.vocab_size)
    return decode(made, head, requests, sampling, stops, QUIET)


def alone(made: Any, ids: list[int], stops: tuple[int, ...], most: int) -> list[int]:
    """What transformers' own greedy search writes after one prompt, without any padding."""
    out = made.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=list(stops),
        pad_token_id=0,
    )
    return out[0, len(ids) :].tolist()


def rows_of(lengths: list[int], vocabulary: int = 64, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, n).tolist() for n in lengths]


@pytest.mark.parametrize("kind, changes", [("Llama", {}), ("Gemma3Text", SLIDING)])
@pytest.mark.parametrize("shared", [1, 5, 9])
def test_rows_that_begin_alike_are_answered_as_each_alone(
    kind: str, changes: dict[str, Any], shared: int
) -> None:
    made = network(kind, **changes)
    first, *_ = rows_of([shared], seed=1)
    rows = [first + rest for rest in rows_of([3, 17, 1, 9])] + [[*first, 5], [*first, 5]]
    assert written(made, rows, (), Sampling(20)) == [alone(made, ids, (), 20) for ids in rows]


@pytest.mark.parametrize("kind, changes", [("Llama", {}), ("Gemma3Text", SLIDING)])
def test_greedy_is_transformers_own_row_by_row(kind: str, changes: dict[str, Any]) -> None:
    made = network(kind, **changes)
    rows = rows_of([3, 17, 1, 9, 9, 24, 5, 12])
    free = written(made, rows, (), Sampling(20))
    stops = (free[1][4], free[3][11], free[6][7])
    ours = written(made, rows, stops, Sampling(20))
    assert ours == [alone(made, ids, stops, 20) for ids in rows]
    assert len({len(one) for one in ours}) > 2, "the rows must end at different times"


def test_a_trained_model_in_a_batch_of_mixed_lengths(tiny: Path) -> None:
    model = load(tiny)
    rows = [model.tokenizer.prompt_ids(p) for p in prompts(6)]
    rows += [rows[0] + model.tokenizer.inner(" and more?")["input_ids"], rows[1][5:], rows[2][-1:]]
    requests = [Request(ids, "") for ids in rows]
    ours = decode(model.network, model.head, requests, Sampling(16), model.stops, QUIET)
    assert ours == [alone(model.network, ids, model.stops, 16) for ids in rows]


def test_ends_with_the_first_stop_token_or_at_max_tokens() -> None:
    made, stops = network(), (5, 17, 40)
    for most in (1, 7, 30):
        for one in written(made, rows_of([4, 11, 7, 2, 9]), stops, Sampling(most)):
            assert not set(one[:-1]) & set(stops)
            assert len(one) == most or (one[-1] in stops and len(one) < most)


def test_finished_rows_leave_the_batch() -> None:
    made, stops, told = network(), tuple(range(0, 64, 9)), []
    requests = [Request(ids, "") for ids in rows_of([3, 17, 1, 9, 9, 24])]
    out = decode(made, Head(made, 64), requests, Sampling(20), stops, told.append)
    assert told == [sum(len(one) > t for one in out) for t in range(max(map(len, out)))]
    assert told[-1] < told[0]


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_key_draws_the_same_answer_in_whatever_batch(top_p: float) -> None:
    made, stops = network(), (5, 17, 40)
    sampling = Sampling(12, temperature=1.0, top_p=top_p)
    requests = [Request(ids, f"key {n}") for n, ids in enumerate(rows_of([4, 11, 7, 2, 9, 4]))]

    def draw(some: list[Request]) -> list[list[int]]:
        return decode(made, Head(made, 64), some, sampling, stops, QUIET)

    together = draw(requests)
    assert together == [draw([one])[0] for one in requests]
    assert together[::-1] == draw(requests[::-1])
    again = draw([Request(one.token_ids, "another") for one in requests])
    assert sum(a != b for a, b in zip(again, together, strict=True)) >= 5


def first_tokens(made: Any, ids: list[int], sampling: Sampling, n: int) -> NDArray[np.int64]:
    """How often each token comes first over n keys, (V,)."""
    requests = [Request(ids, f"key {i}") for i in range(n)]
    out = decode(made, Head(made, 64), requests, sampling, (), QUIET)
    return np.bincount([one[0] for one in out], minlength=64)


def likely(counts: NDArray[np.int64], chance: NDArray[np.float64]) -> float:
    """The p-value of counts under chances, rare tokens taken together."""
    expected = chance * counts.sum()
    often = expected >= 8
    seen = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    seen, wanted = (seen, wanted) if wanted[-1] >= 8 else (seen[:-1], wanted[:-1])
    return float(chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue)


def test_first_tokens_are_drawn_from_the_softmax() -> None:
    made, ids = network(), [3, 1, 4]
    with torch.no_grad():
        logits = made(input_ids=torch.tensor([ids])).logits[0, -1].numpy()
    for temperature in (0.7, 1.0):
        counts = first_tokens(made, ids, Sampling(1, temperature), 3000)
        assert likely(counts, np.exp(log_softmax(logits / temperature))) > 1e-3
        assert likely(counts, np.exp(log_softmax(logits / temperature / 1.5))) < 1e-6


@pytest.mark.parametrize("top_p", [0.3, 0.75])
def test_top_p_draws_from_the_nucleus_and_nothing_else(top_p: float) -> None:
    made, ids = network(), [3, 1, 4]
    with torch.no_grad():
        chance = np.exp(log_softmax(made(input_ids=torch.tensor([ids])).logits[0, -1].numpy()))
    nucleus: list[int] = []
    for token in np.argsort(-chance):
        nucleus.append(token)
        if chance[nucleus].sum() >= top_p:
            break
    assert 1 < len(nucleus) < 64
    counts = first_tokens(made, ids, Sampling(1, 1.0, top_p), 2000)
    inside = np.isin(np.arange(64), nucleus)
    assert counts[~inside].sum() == 0
    assert likely(counts, np.where(inside, chance, 0) / chance[inside].sum()) > 1e-3


def test_a_nucleus_of_one_token_is_greedy() -> None:
    made, rows = network(), rows_of([4, 11, 7])
    narrow = Sampling(10, temperature=0.7, top_p=1e-9)
    assert written(made, rows, (5,), narrow) == written(made, rows, (5,), Sampling(10))
