import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from heads import Case, case_of, gap, grads_of, head_of, learn, oracle
from limbeck.models.head import Head
from limbeck.models.outcomes import sparse_targets
from limbeck.recipe import Divergence
from limbeck.train import fused
from limbeck.train.fused import Live, Sparse, fused_loss
from limbeck.train.losses import divergence
from small import network

KINDS: tuple[Divergence, ...] = get_args(Divergence)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_teacher = pytest.mark.parametrize("teacher", ["sparse", "sampled", "live"])
quick = settings(max_examples=15, deadline=None)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    v = draw(st.integers(2, 40))
    return case_of(
        n=draw(st.integers(1, 9)),
        v=v,
        h=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 2**16)),
        k=draw(st.sampled_from([1, v, draw(st.integers(1, v))])),
        samples=draw(st.integers(1, 6)),
        temperature=draw(st.sampled_from([0.5, 1.0, 3.0])),
        beta=draw(st.floats(0.05, 0.95)),
        skew=draw(st.sampled_from([0.0, 0.1, 0.7])),
        text_weight=draw(st.sampled_from([0.0, 0.5])),
        bias=draw(st.booleans()),
        cap=draw(st.sampled_from([None, 5.0])),
        scale=draw(st.sampled_from([None, 0.25])),
        padding=draw(st.sampled_from([0, 3])),
    )


@every_teacher
@every_kind
@quick
@given(case=cases())
def test_equals_the_dense_oracle(kind: Divergence, teacher: str, case: Case) -> None:
    values, kls, grads = oracle(case, kind, teacher)
    for dtype, loose in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        same = case.to(dtype)
        out = learn(same, kind, teacher)
        assert out.values.dtype == out.kls.dtype == out.total.dtype == dtype
        least = 0.05 * max(1, case.temperature**2)
        assert gap(out.total.detach(), values.sum() / 7, least) <= loose
        assert gap(out.values, values, least) <= loose
        assert gap(out.kls, kls) <= loose
        for found, expected in zip(grads_of(same), grads, strict=True):
            assert gap(found, expected) <= 2 * loose
    assert not out.values.requires_grad and not out.kls.requires_grad


@quick
@given(case=cases())
def test_without_a_divergence_it_is_the_cross_entropy_of_the_text(case: Case) -> None:
    values, kls, grads = oracle(case, None, "sparse")
    for text_weight in (0.0, 3.0):  # it is the weight beside a divergence
        out = fused_loss(
            case.states, case.head, None, None, **case.options(text_weight=text_weight)
        )
        torch.testing.assert_close(out.values, values.detach())
        assert torch.equal(out.kls, torch.zeros_like(kls))
        found = torch.autograd.grad(out.total, [case.states, *case.head.project.parameters()])
        torch.testing.assert_close(list(found), grads)


@every_teacher
@every_kind
def test_in_bfloat16(kind: Divergence, teacher: str) -> None:
    case = case_of(n=128, v=900, h=64, k=16, samples=12, bias=True, text_weight=0.1)
    case = case.to(torch.bfloat16)
    values, _, grads = oracle(case, kind, teacher)
    for chunk in (None, 32):
        out = learn(case, kind, teacher, token_chunk=chunk)
        assert out.total.dtype == torch.float32
        assert gap(out.total.detach(), values.sum() / 7) <= 2e-3
        for found, expected in zip(grads_of(case), grads, strict=True):
            assert found.dtype == torch.bfloat16
            assert gap(found, expected) <= 1e-2


@every_teacher
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "adaptive_kl"])  # w is a constant
@pytest.mark.parametrize("changes", [{}, {"temperature": 2.0, "text_weight": 0.3, "cap": 4.0}])
def test_gradient(kind: Divergence, teacher: str, changes: dict[str, Any]) -> None:
    case = case_of(n=3, v=7, bias=True, padding=2, **changes)
    targets, project = case.targets(teacher), case.head.project

    def total(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # Not through a parameter of its own: gradients are wanted with respect to these.
        project._parameters["weight"], project._parameters["bias"] = weight, bias
        return fused_loss(states, case.head, targets, kind, **case.options()).total

    inputs = (case.states, *(p.detach().clone().requires_grad_() for p in project.parameters()))
    assert torch.autograd.gradcheck(total, inputs)


@every_teacher
@every_kind
def test_chunks_change_nothing_but_rounding(
    kind: Divergence, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(n=11, v=30, bias=True, text_weight=0.2)
    whole, grads = learn(case, kind, teacher), [g.clone() for g in grads_of(case)]
    for chunk, block in ((1, 1), (3, 60), (4, 31), (100, 1)):
        monkeypatch.setattr(fused, "_BLOCK", block)
        part = learn(case, kind, teacher, token_chunk=chunk)
        torch.testing.assert_close(part.values, whole.values, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(part.kls, whole.kls, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(grads_of(case), grads, rtol=1e-11, atol=1e-14)


@every_teacher
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_again_is_the_same_to_the_bit(teacher: str, dtype: torch.dtype) -> None:
    case = case_of(n=40, v=300, h=16, k=8, text_weight=0.2).to(dtype)
    first = learn(case, "jsd", teacher, token_chunk=16)
    grads = [g.clone() for g in grads_of(case)]
    other = case_of(n=60, v=320, h=16, k=8, seed=1).to(dtype)
    learn(other, "jsd", teacher)  # leaves something else in the buffers
    again = learn(case, "jsd", teacher, token_chunk=16)
    assert torch.equal(first.values, again.values) and torch.equal(first.kls, again.kls)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_of(case), strict=True))


@every_teacher
@every_kind
def test_is_never_negative_and_zero_at_the_teacher(kind: Divergence, teacher: str) -> None:
    if teacher == "sampled":
        pytest.skip("an unbiased estimate has either sign")
    for dtype, slack in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        case = case_of(n=60, v=50, k=9).to(dtype)
        same = case._replace(states=case.teacher.states, head=case.teacher.head)
        near = same._replace(states=same.states + 1e-3)
        for one in (case, near, same):
            targets = one.targets(teacher)
            out = fused_loss(one.states, one.head, targets, kind, **one.options())
            assert min(out.values.min(), out.kls.min()) >= -slack
        assert max(out.values.abs().max(), out.kls.abs().max()) <= slack


@pytest.mark.parametrize("samples", [4, 16])
def test_sampled_targets_are_unbiased(samples: int) -> None:
    """Means over many draws lie about the dense gradient by as much as their errors say."""
    times = 4000
    case = case_of(n=1, v=40, k=3, samples=samples)
    values, _, (expected, _) = oracle(case, "forward_kl", "live")
    many = case._replace(
        states=case.states.detach().expand(times, -1).clone().requires_grad_(),
        teacher=Live(case.teacher.states.expand(times, -1), case.teacher.head),
    )
    out = learn(many, "forward_kl", "sampled")
    assert many.states.grad is not None
    for found, dense in ((many.states.grad, expected), (out.values[:, None], values[:, None])):
        for part in (found[: times // 16], found):
            error = part.std(0) / len(part) ** 0.5
            assert ((part.mean(0) - dense).abs() <= 4 * error).all()
    wrong = learn(many, "forward_kl", "sparse").values - values
    assert (wrong.abs() > 20 * out.values.std() / times**0.5).all(), "one bucket is not"


def test_samples_that_are_the_whole_tail_give_the_live_gradient() -> None:
    case = case_of(n=4, v=9, k=2)
    logits = torch.tensor([[3.0, 2.5, *[math.log(c) for c in (1, 1, 2, 4, 1, 3, 2)]]]).double()
    logits = logits.expand(4, -1)
    top_ids, logprobs, tail = sparse_targets(logits, 2, 1.0)
    drawn = torch.tensor([[2, 3, 4, 4, 5, 5, 5, 5, 6, 7, 7, 7, 8, 8]]).expand(4, -1)
    p = logits.softmax(-1).scatter(-1, top_ids, 0.0)
    stored = Sparse(top_ids, logprobs, tail, drawn, torch.special.entr(p).sum(-1))
    live = Live(torch.eye(9, dtype=torch.float64)[:4], head_of(logits[0][:, None].repeat(1, 9)))
    found: list[tuple[Tensor, ...]] = []
    for targets in (stored, live):
        out = fused_loss(case.states, case.head, targets, "forward_kl", normaliser=2)
        grads = torch.autograd.grad(out.total, [case.states, case.head.project.weight])
        found.append((out.values, out.kls, *grads))
    torch.testing.assert_close(*found)


@every_kind
@pytest.mark.parametrize("of", ["sparse", "sampled"])
def test_equals_the_plain_path(kind: Divergence, of: str) -> None:
    case = case_of(n=8, v=25, k=5, temperature=2.0)
    targets = case.targets(of)
    assert isinstance(targets, Sparse)
    found = learn(case, kind, of).values
    expected = divergence(
        case.head(case.states),
        targets.top_ids,
        targets.logprobs,
        targets.tail,
        kind,
        temperature=2.0,
        tail_ids=targets.tail_ids,
        tail_entropy=targets.tail_entropy,
    )
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Gemma2", {"final_logit_softcapping": 3.0, "attn_implementation": "eager"}),
        ("Granite", {"logits_scaling": 4.0}),
        ("Phi", {}),  # its head has a bias
    ],
)
def test_whole_networks_learn_as_by_their_own_logits(kind: str, changes: dict[str, Any]) -> None:
    made = network(kind, **changes).double()
    head, ids = Head(made, 60), torch.arange(24)[None] % 60
    targets = case_of(n=24, v=60).targets("sparse")
    assert isinstance(targets, Sparse)
    states = head.body(input_ids=ids, use_cache=False).last_hidden_state[0]
    fused_loss(states, head, targets, "jsd", normaliser=24).total.backward()
    found = {name: p.grad for name, p in made.named_parameters()}
    made.zero_grad()
    logits = made(input_ids=ids, use_cache=False).logits[0, :, :60]
    values = divergence(logits, targets.top_ids, targets.logprobs, targets.tail, "jsd")
    (values.sum() / 24).backward()
    torch.testing.assert_close(found, {name: p.grad for name, p in made.named_parameters()})


def test_what_is_frozen_gets_no_gradient() -> None:
    case = case_of(bias=True)
    case.head.project.requires_grad_(False)
    whole = learn(case, "forward_kl", "sparse")
    assert case.states.grad is not None and len(grads_of(case)) == 1
    expected = case.states.grad
    case.head.project.requires_grad_(True)
    learn(case, "forward_kl", "sparse")
    torch.testing.assert_close(case.states.grad, expected)
    body = case._replace(states=case.states.detach())
    out = learn(body, "forward_kl", "sparse")
    assert len(grads_of(body)) == 2 and torch.equal(out.values, whole.values)


def test_without_gradients_it_only_measures() -> None:
    case = case_of(n=9, v=33).to(torch.float32)
    expected = learn(case, "reverse_kl", "live")
    with torch.inference_mode():
        out = fused_loss(case.states, case.head, case.teacher, "reverse_kl", **case.options())
    assert not out.total.requires_grad
    assert torch.equal(out.values, expected.values)
    learn(case, "reverse_kl", "live")  # the buffers are of use outside of inference mode


def test_micro_batches_add_up() -> None:
    case = case_of(n=8, bias=True)
    learn(case, "skew_kl", "sparse")
    whole = [g.clone() for g in grads_of(case)]
    for parameter in (case.states, *case.head.project.parameters()):
        parameter.grad = None
    targets = case.targets("sparse")
    assert isinstance(targets, Sparse)
    for rows in (slice(0, 3), slice(3, 8)):
        options = case.options(labels=None)
        part = fused_loss(case.states[rows], case.head, targets.rows(rows), "skew_kl", **options)
        part.total.backward()
    torch.testing.assert_close(grads_of(case), whole)


def test_the_gradient_follows_what_is_made_of_the_total() -> None:
    case = case_of()
    learn(case, "forward_kl", "sparse")
    expected = [-3 * g for g in grads_of(case)]
    case.states.grad = case.head.project.weight.grad = None
    out = fused_loss(case.states, case.head, case.targets("sparse"), "forward_kl", **case.options())
    (2 - 3 * out.total).backward()
    torch.testing.assert_close(grads_of(case), expected)


class Largest(TorchDispatchMode):
    """The most elements that any result of an operation has."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, Tensor) and not func._schema.name.startswith("aten::expand"):
                self.most = max(self.most, one.numel())
        return out


@every_teacher
def test_never_makes_a_tensor_of_all_logits(teacher: str) -> None:
    case = case_of(n=64, v=500, h=4, text_weight=0.2).to(torch.float32)
    targets = case.targets(teacher)
    options = case.options(token_chunk=8)
    with Largest() as largest:
        out = fused_loss(case.states, case.head, targets, "jsd", **options)
        out.total.backward()
    assert largest.most == 8 * 500
