from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from limbeck.errors import InputError
from limbeck.models import local
from limbeck.models.head import Head
from limbeck.models.outcomes import tail_offsets
from limbeck.records import Answer, Message, Prompt, Sampling
from small import asked, dense, load, network, prompt, prompts, save
from tiny import make_tokenizer

SOME = prompts(20)


def untimed(answers: list[Answer]) -> list[Answer]:
    return [replace(a, usage=replace(a.usage, seconds=0.0)) for a in answers]


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose embeddings have 40 rows more than its tokenizer, and they would often win."""
    tokenizer = make_tokenizer()
    made = network(vocab_size=len(tokenizer) + 40, eos_token_id=tokenizer.eos_token_id)
    made.lm_head.weight.data[len(tokenizer) :] *= 6
    return save(made, tmp_path_factory.mktemp("padded"), tokenizer)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_interrupted_run_goes_on_with_the_same_answers(tiny: Path, temperature: float) -> None:
    model = load(tiny, batch_size=6)
    sampling = Sampling(16, temperature)
    batches = [untimed(batch) for batch in model.generate(SOME, sampling)]
    assert [len(batch) for batch in batches] == [6, 6, 6, 2]
    for done in range(1, len(batches)):
        there = {a.prompt_id for batch in batches[:done] for a in batch}
        left = [p for p in reversed(SOME) if p.id not in there]
        assert [untimed(b) for b in model.generate(left, sampling)] == batches[done:]


def test_answers_tell_how_they_came_about(tiny: Path) -> None:
    model = load(tiny)
    (answer,) = next(model.generate([SOME[9]], sampling := Sampling(16)))
    assert answer.text == "It is four."
    assert answer.finish_reason == "stop"
    assert model.tokenizer.inner.decode(answer.token_ids) == "It is four.<|im_end|>"
    assert answer.id == Answer.identify(SOME[9].id, model.fingerprint, "local", sampling)
    assert answer.usage.tokens_in == len(model.tokenizer.prompt_ids(SOME[9]))
    assert answer.usage.tokens_out == len(answer.token_ids)
    assert answer.usage.seconds > 0
    (short,) = next(model.generate([SOME[9]], Sampling(3)))
    assert (short.finish_reason, len(short.token_ids)) == ("length", 3)


def test_the_outcome_does_not_depend_on_the_batch(tiny: Path) -> None:
    one, many = load(tiny, batch_size=1), load(tiny, batch_size=64)
    alone = {a.id: a for b in one.generate(SOME, Sampling(16)) for a in untimed(b)}
    (together,) = many.generate(SOME, Sampling(16))
    assert {a.id: a for a in untimed(together)} == alone


@pytest.mark.parametrize("folder", ["tiny", "padded"])
@pytest.mark.parametrize("top_k, temperature, samples", [(5, 1.0, 6), (20, 2.0, 3), (312, 0.7, 0)])
def test_score_is_the_plain_forward_pass_of_each_row_alone(
    folder: str,
    top_k: int,
    temperature: float,
    samples: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load(request.getfixturevalue(folder))
    rows = asked(model, [SOME[0], prompt("Hi"), *SOME[1:7], prompt("What is one " * 9)])
    monkeypatch.setattr(local, "SCORE_TOKENS", 90)
    monkeypatch.setattr(local, "HEAD_ROWS", 4)
    found = list(model.score(rows, top_k, temperature, samples))
    assert [t.answer_id for t in found] == [a.id for _, a in rows]
    for one, targets in zip(rows, found, strict=True):
        log_p = dense(model, one, temperature)
        assert targets.token_ids.tolist() == list(one[1].token_ids)
        assert targets.top_ids.shape == (len(log_p), top_k)
        kept = np.take_along_axis(log_p, targets.top_ids, -1)
        np.testing.assert_allclose(targets.logprobs, kept, rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(kept, -np.sort(-log_p)[:, :top_k], rtol=0, atol=2e-5)
        assert all(len(set(row)) == top_k for row in targets.top_ids.tolist())
        np.testing.assert_allclose(targets.tail, 1 - np.exp(kept).sum(-1), rtol=1e-4, atol=1e-6)
        rest = np.exp(log_p)
        np.put_along_axis(rest, targets.top_ids, 0, -1)
        entropy = -(rest * log_p).sum(-1)
        np.testing.assert_allclose(targets.tail_entropy, entropy, rtol=1e-4, atol=1e-5)
        points = tail_offsets(targets.answer_id, len(log_p))[:, None] + np.arange(samples)
        ends = rest.cumsum(-1) / rest.sum(-1, keepdims=True) if samples else rest
        assert targets.tail_ids.shape == points.shape
        for row, ids in enumerate(targets.tail_ids):
            low, high = (
                np.searchsorted(ends[row], points[row] / samples + off, side="right")
                for off in (-1e-3, 1e-3)
            )
            assert ((low <= ids) & (ids <= high)).all()
            assert rest[row, ids].all()
        assert (targets.temperature, targets.tokenizer_hash) == (temperature, model.tokenizer.hash)


def test_the_same_tokens_are_drawn_in_any_batch(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny)
    rows = asked(model, SOME)
    together = {t.answer_id: t.tail_ids for t in model.score(rows, 4, 1.0, 12)}
    assert all(ids.max() > 0 for ids in together.values())
    monkeypatch.setattr(local, "HEAD_ROWS", 3)
    for some in ([one] for one in rows[::-1]):
        (alone,) = model.score(some, 4, 1.0, 12)
        assert np.array_equal(alone.tail_ids, together[alone.answer_id])
    other = [(p, replace(a, id=f"another {a.id}")) for p, a in rows]
    drawn = [t.tail_ids for t in model.score(other, 4, 1.0, 12)]
    same = [np.array_equal(d, ids) for d, ids in zip(drawn, together.values(), strict=True)]
    assert not any(same), "another answer, other draws"


@pytest.mark.parametrize("top_k, samples", [(4, 12), (4, 0), (312, 0)])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_numbers_are_named(
    tiny: Path, broken: float, top_k: int, samples: int
) -> None:
    model = load(tiny)
    rows = asked(model, SOME[:4])
    hooked = model.head.project.register_forward_hook(
        lambda module, given, out: out.index_fill(0, torch.tensor([len(out) - 1]), broken)
    )
    with pytest.raises(InputError, match=r"prompts\.jsonl:4: .* are not numbers.*float32"):
        list(model.score(rows, top_k, 1.0, samples))
    hooked.remove()
    assert len(list(model.score(rows, top_k, 1.0, samples))) == 4


def test_rows_that_only_pad_the_vocabulary_are_never_said(padded: Path) -> None:
    model = load(padded)
    size = len(model.tokenizer.inner)
    rows = asked(model, SOME[:8], 24)
    (plain,) = model.network.generate(
        input_ids=torch.tensor([model.tokenizer.prompt_ids(SOME[0])]), max_new_tokens=24
    ).tolist()
    assert max(plain) >= size, "the padding must tempt"
    assert all(max(a.token_ids) < size for _, a in rows)
    for targets in model.score(rows, size, 1.0):
        assert np.exp(targets.logprobs.astype(float)).sum(-1) == pytest.approx(1, abs=1e-5)
        assert targets.top_ids.max() < size
    with pytest.raises(InputError, match=f"top_k = {size + 1} .*vocabulary of {size}"):
        next(model.score(rows, size + 1, 1.0))


def test_a_prompt_that_outgrows_the_context_is_named_before_any_answer(tiny: Path) -> None:
    model = load(tiny, batch_size=1)
    fits = 128 - 16 - len(model.tokenizer.prompt_ids(prompt("")))
    word = len(model.tokenizer.inner(" is is", add_special_tokens=False)["input_ids"]) // 2
    assert word == 1
    largest = prompt(" is" * fits, "rows.csv:7")
    assert len(model.tokenizer.prompt_ids(largest)) + 16 == 128
    assert list(model.generate([largest], Sampling(16)))
    with pytest.raises(InputError, match=r"^rows\.csv:8: .*112.* tokens") as caught:
        some = [SOME[0], replace(largest, source="rows.csv:8")]
        next(model.generate(some, Sampling(17)))
    assert "(128)" in str(caught.value) and "\n" not in str(caught.value)


class Biased(LlamaForCausalLM):
    """Adds to its logits behind its head."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out: Any = super().forward(*args, **kwargs)
        out.logits = out.logits + torch.linspace(0, 2, out.logits.shape[-1])
        return out


def test_head_refuses_what_it_does_not_know_to_be_done_to_logits() -> None:
    made = network()
    Head(made, 64)
    made.__class__ = Biased
    with pytest.raises(InputError, match="Biased does something to its logits") as caught:
        Head(made, 64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("Llama", {}),
        ("Gemma2", {"final_logit_softcapping": 1.5, "attn_implementation": "eager"}),
        ("Gemma3Text", {"final_logit_softcapping": 1.5}),
        ("Granite", {"logits_scaling": 8.0}),
        ("Cohere", {"logit_scale": 0.0625}),
    ],
)
def test_head_does_to_logits_what_the_network_does(kind: str, changes: dict[str, Any]) -> None:
    made = network(kind, **changes)
    head = Head(made, 60)
    ids = torch.tensor([[9, 41, 3, 63, 0, 17, 22]])
    with torch.no_grad():
        theirs = made(input_ids=ids).logits[0]
        states = head.body(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(head(states), theirs[:, :60], rtol=1e-5, atol=1e-5)
        bare = made.get_output_embeddings()(states)
    assert torch.allclose(bare, theirs) == (kind == "Llama"), "the case must tell"


def test_an_architecture_that_cannot_take_a_mask_of_ours_is_refused(tmp_path: Path) -> None:
    # Eager attention adds the mask to the scores: ours, of booleans, would hide nothing.
    made = network("Gemma2", vocab_size=312, attn_implementation="eager")
    with pytest.raises(InputError, match="cannot be loaded as a language model") as caught:
        load(save(made, tmp_path))
    assert "\n" not in str(caught.value)


def test_a_damaged_folder_is_one_line(tiny: Path, tmp_path: Path) -> None:
    made = network(vocab_size=312)
    folder = save(made, tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cannot be loaded as a language model") as caught:
        load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    (folder / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(InputError, match="cannot be loaded"):
        load(folder)


def test_size_is_told(tiny: Path) -> None:
    from safetensors import safe_open

    model = load(tiny)
    with safe_open(tiny / "model.safetensors", framework="np") as file:
        sizes = [int(np.prod(file.get_slice(key).get_shape())) for key in file.keys()]  # noqa: SIM118
    assert model.parameters == sum(sizes)
    assert model.layers == 4


def test_a_conversation_is_answered_at_its_last_turn(tiny: Path) -> None:
    model = load(tiny)
    turns = (Message("user", "Hi"), Message("assistant", "Yes?"), *SOME[3].messages)
    long = Prompt(Prompt.identify(turns), turns, "p:1", "train")
    (one,) = asked(model, [long], 8)
    assert dense(model, one).argmax(-1).tolist() == list(one[1].token_ids)
