import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor

from definitions import Case, bucketed, cases, oracle, plain, softmax
from limbeck.errors import InputError
from limbeck.models import outcomes
from limbeck.models.outcomes import dense_targets, sparse_targets
from limbeck.recipe import Divergence
from limbeck.train.losses import cross_entropy, divergence

KINDS: tuple[Divergence, ...] = get_args(Divergence)
every_kind = pytest.mark.parametrize("kind", KINDS)
# Adaptive KL is a mixture of two whose weights depend on p and q.
every_single_kind = pytest.mark.parametrize("kind", [k for k in KINDS if k != "adaptive_kl"])
quick = settings(max_examples=30, deadline=None)


def ours(case: Case, kind: Divergence, dtype: torch.dtype = torch.float64) -> Tensor:
    targets = sparse_targets(torch.tensor(case.teacher, dtype=dtype), case.k, case.temperature)
    return divergence(torch.tensor(case.student, dtype=dtype), *targets, kind, **case.options())


def value_and_grad(
    student: Tensor, targets: tuple[Tensor, Tensor, Tensor], kind: Divergence
) -> tuple[Tensor, Tensor]:
    leaf = student.clone().requires_grad_()
    value = divergence(leaf, *targets, kind)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def random_logits(n: int, v: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, v, generator=generator, dtype=torch.float64) * scale


@every_kind
@quick
@given(case=cases())
def test_equals_the_definition_over_the_outcomes(kind: Divergence, case: Case) -> None:
    ids = sparse_targets(torch.tensor(case.teacher), case.k, case.temperature)[0].numpy()
    np.testing.assert_allclose(ours(case, kind), oracle(case, ids, kind), rtol=1e-9, atol=1e-10)


@every_kind
@quick
@given(case=cases())
def test_dense_targets_give_the_full_divergence(kind: Divergence, case: Case) -> None:
    targets = dense_targets(torch.tensor(case.teacher), case.temperature)
    value = divergence(torch.tensor(case.student), *targets, kind, **case.options())
    full = oracle(case, targets[0].numpy(), kind)
    np.testing.assert_allclose(value, full, rtol=1e-9, atol=1e-10)


@every_kind
@quick
@given(case=cases())
def test_is_never_negative_and_zero_at_the_teacher(kind: Divergence, case: Case) -> None:
    same = case._replace(student=case.teacher + 3.0)
    near = case._replace(student=case.teacher + 1e-3 * case.student)
    for dtype, slack in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        slack *= max(1.0, case.temperature**2)
        assert ours(same, kind, dtype).abs().max() <= slack
        for one in (case, near):
            assert ours(one, kind, dtype).min() >= -slack


@every_kind
def test_targets_that_lost_some_mass_give_no_negative_value(kind: Divergence) -> None:
    teacher = random_logits(8, 30)
    top_ids, logprobs, tail = sparse_targets(teacher, 5, 1.0)
    assert divergence(teacher, top_ids, logprobs - 1e-3, tail, kind).min() >= 0


@every_kind
@quick
@given(case=cases())
def test_does_not_depend_on_how_the_vocabulary_is_numbered(kind: Divergence, case: Case) -> None:
    order = np.random.default_rng(case.k).permutation(case.teacher.shape[1])
    top_ids, logprobs, tail = sparse_targets(torch.tensor(case.teacher), case.k, 1.0)
    renumbered = torch.tensor(order.argsort())[top_ids]
    value = divergence(torch.tensor(case.student[:, order]), renumbered, logprobs, tail, kind)
    expected = divergence(torch.tensor(case.student), top_ids, logprobs, tail, kind)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)


@every_single_kind
@settings(quick, max_examples=10)
@given(case=cases(scales=(0.5, 3.0)))
def test_grows_with_k_up_to_the_full_divergence(kind: Divergence, case: Case) -> None:
    vocabulary = case.teacher.shape[1]
    by_k = torch.stack([ours(case._replace(k=k), kind) for k in range(1, vocabulary + 1)])
    assert torch.diff(by_k, dim=0).min() >= -1e-9
    full = oracle(case, np.tile(np.arange(vocabulary), (len(case.teacher), 1)), kind)
    np.testing.assert_allclose(by_k[-1], full, rtol=1e-9, atol=1e-10)


@every_kind
@quick
@given(case=cases(scales=(0.5, 5.0)))
def test_float32_is_float64_rounded(kind: Divergence, case: Case) -> None:
    # Below −87.3 the teacher's log-probabilities are floored in float32, and only there.
    assume(np.log(softmax(case.teacher / case.temperature)).min() > -80)
    wide, narrow = ours(case, kind), ours(case, kind, torch.float32)
    assert narrow.dtype == torch.float32
    slack = 1e-5 * max(1.0, case.temperature**2)
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=slack)


@every_single_kind
@pytest.mark.parametrize("k", [1, 4, 11, 12])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradient(kind: Divergence, k: int, temperature: float) -> None:
    targets = sparse_targets(random_logits(3, 12, seed=1), k, temperature)
    student = random_logits(3, 12, seed=2)
    student[0, 5] += 20.0
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: divergence(z, *targets, kind, temperature=temperature), student
    )


@every_kind
def test_float32_gradient_survives_students_that_leave_no_tail(kind: Divergence) -> None:
    teacher, student = random_logits(4, 50, seed=3), random_logits(4, 50, seed=4)
    student[torch.arange(4), sparse_targets(teacher, 1, 1.0)[0][:, 0]] += 100.0
    value, grad = value_and_grad(student.float(), sparse_targets(teacher.float(), 8, 1.0), kind)
    _, expected = value_and_grad(student, sparse_targets(teacher, 8, 1.0), kind)
    assert value.isfinite().all()
    torch.testing.assert_close(grad.double(), expected, rtol=1e-3, atol=1e-6)
    if kind == "forward_kl":  # the others are flat there, as their definitions say
        assert expected.abs().max() > 0.1


@every_kind
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_teacher_tail_of_zero_stays_finite(kind: Divergence, scale: float) -> None:
    top_ids = torch.tensor([[0, 1, 2], [4, 2, 0]])
    logprobs = torch.tensor([[0.5, 0.3, 0.2], [0.98, 0.01, 0.01]]).log()
    student = random_logits(2, 6, scale=scale).float()
    value, grad = value_and_grad(student, (top_ids, logprobs, torch.zeros(2)), kind)
    assert value.isfinite().all() and grad.isfinite().all()
    if kind in ("reverse_kl", "adaptive_kl"):
        return  # infinite by definition; the floor makes them finite
    p = np.hstack([logprobs.double().exp().numpy(), np.zeros((2, 1))])
    q = softmax(student.numpy())
    for i, ids in enumerate(top_ids.numpy()):
        expected = plain(p[i], bucketed(q[i], ids), kind, beta=0.5, skew=0.1)
        assert value[i].item() == pytest.approx(expected, rel=1e-5)


@every_single_kind
def test_sees_a_student_that_is_wrong_only_in_the_tail(kind: Divergence) -> None:
    # Teacher .5 .25 | .25; the student keeps 2 : 1 on top and puts .85 on the tail. Targets that
    # are renormalised over the top 2 cannot tell them apart.
    teacher = torch.tensor([[0.5, 0.25, 0.15, 0.1]], dtype=torch.float64).log()
    student = torch.tensor([[0.1, 0.05, 0.45, 0.4]], dtype=torch.float64).log()
    value = divergence(student, *sparse_targets(teacher, 2, 1.0), kind)
    two = plain(np.array([0.75, 0.25]), np.array([0.15, 0.85]), kind, beta=0.5, skew=0.1)
    assert value.item() == pytest.approx(two, rel=1e-12, abs=0)
    assert value.item() > 0.1


def test_jsd_is_symmetric_at_one_half_and_at_most_ln_2() -> None:
    a, b = random_logits(6, 20, seed=5), random_logits(6, 20, seed=6, scale=30.0)
    there = divergence(b, *dense_targets(a, 1.0), "jsd")
    back = divergence(a, *dense_targets(b, 1.0), "jsd")
    torch.testing.assert_close(there, back, rtol=1e-10, atol=1e-12)
    assert there.max() <= math.log(2)


def test_jsd_vanishes_towards_both_ends_as_the_kl_of_that_end() -> None:
    targets = sparse_targets(random_logits(4, 20, seed=7, scale=1.0), 6, 1.0)
    student = random_logits(4, 20, seed=8, scale=1.0)
    ends: tuple[tuple[float, Divergence], ...] = ((0.0, "forward_kl"), (1.0, "reverse_kl"))
    for end, kind in ends:
        value = divergence(student, *targets, "jsd", beta=abs(end - 1e-6)) / 1e-6
        expected = divergence(student, *targets, kind)
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=0)
    for beta in (0.0, 1.0):
        assert divergence(student, *targets, "jsd", beta=beta).abs().max() < 1e-15


def test_skew_is_the_teachers_share() -> None:
    targets = sparse_targets(random_logits(4, 20, seed=7), 6, 1.0)
    student = random_logits(4, 20, seed=8, scale=40.0)
    unskewed = divergence(student, *targets, "skew_kl", skew=0.0)
    torch.testing.assert_close(unskewed, divergence(student, *targets, "forward_kl"))
    for skew in (0.1, 0.5):
        assert divergence(student, *targets, "skew_kl", skew=skew).max() <= math.log(1 / skew)
    assert divergence(student, *targets, "skew_kl", skew=1.0).abs().max() == 0


@every_single_kind
def test_the_temperatures_factor_keeps_the_scale(kind: Divergence) -> None:
    # Softened far enough, every smooth divergence is its curvature f''(1) times the variance of the
    # logit difference under the uniform distribution, over T², halved; total variation is the mean
    # absolute deviation over T, halved.
    teacher, student = random_logits(5, 16, seed=9), random_logits(5, 16, seed=10)
    targets = dense_targets(teacher, 1e4)
    value = divergence(student, *targets, kind, beta=0.3, skew=0.2, temperature=1e4)
    gap = teacher - student
    if kind == "tvd":
        expected = (gap - gap.mean(-1, keepdim=True)).abs().mean(-1) / 2
    else:
        curvature = {"jsd": 0.3 * 0.7, "skew_kl": 0.8**2, "skew_reverse_kl": 0.8**2}.get(kind, 1.0)
        expected = curvature * gap.var(-1, unbiased=False) / 2
    torch.testing.assert_close(value, expected, rtol=1e-2, atol=0)


def test_adaptive_kl_mixes_two_gradients_by_the_heads_share_of_the_gap() -> None:
    targets, student = sparse_targets(random_logits(9, 30, seed=1), 6, 1.0), random_logits(9, 30)
    ends = [value_and_grad(student, targets, k) for k in ("forward_kl", "reverse_kl")]
    value, grad = value_and_grad(student, targets, "adaptive_kl")
    (forward, its), (reverse, other) = ends
    share = ((value - reverse) / (forward - reverse))[:, None]
    assert share.min() > 0 and share.max() < 1 and share.std() > 0.05
    torch.testing.assert_close(grad, share * its + (1 - share) * other)


def test_a_flat_teachers_head_reaches_beyond_the_first_tokens_looked_at() -> None:
    teacher, student = random_logits(3, 9000, scale=0.3), random_logits(3, 9000, seed=1, scale=0.3)
    teacher[0, :4] += 12  # and this one's does not
    case = Case(teacher.numpy(), student.numpy(), 9000, 1.0, 0.5, 0.1)
    ids = np.tile(np.arange(9000), (3, 1))
    expected = oracle(case, ids, "adaptive_kl")
    np.testing.assert_allclose(ours(case, "adaptive_kl"), expected, rtol=1e-9)


@every_kind
def test_targets_without_sampled_tokens_are_not_read_as_if_they_had_them(kind: Divergence) -> None:
    teacher, student = random_logits(4, 20, seed=1), random_logits(4, 20, seed=2)
    targets = sparse_targets(teacher, 5, 1.0)
    drawn, entropy = torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4)
    value = divergence(student, *targets, kind, tail_ids=drawn, tail_entropy=entropy)
    same = torch.equal(value, divergence(student, *targets, kind))
    assert same == (kind != "forward_kl"), "only forward KL has an unbiased estimate"


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampled_tail_tokens_that_are_the_whole_tail_give_the_full_kl(temperature: float) -> None:
    # Four tokens outside the top two, as likely as 1 : 1 : 2 : 4, each sampled as often.
    p = torch.tensor([[0.3, 0.5, 0.025, 0.025, 0.05, 0.1]], dtype=torch.float64)
    drawn = torch.tensor([[2, 3, 4, 4, 5, 5, 5, 5]])
    entropy = -(p * p.log())[:, 2:].sum(-1)
    targets = (torch.tensor([[1, 0]]), p[:, [1, 0]].log(), p[:, 2:].sum(-1))
    student = random_logits(1, 6).requires_grad_()
    options: dict[str, Any] = {"temperature": temperature}
    dense = divergence(student, *dense_targets(p.log(), 1.0), "forward_kl", **options)
    sampled = divergence(
        student, *targets, "forward_kl", tail_ids=drawn, tail_entropy=entropy, **options
    )
    torch.testing.assert_close(sampled, dense)
    grads = [torch.autograd.grad(x.sum(), student)[0] for x in (sampled, dense)]
    torch.testing.assert_close(*grads)


@every_kind
def test_bfloat16_logits_are_computed_in_float32(kind: Divergence) -> None:
    targets = sparse_targets(random_logits(4, 200, seed=11), 16, 1.0)
    student = random_logits(4, 200, seed=12).bfloat16()
    value, grad = value_and_grad(student, targets, kind)
    expected, expected_grad = value_and_grad(student.double(), targets, kind)
    assert (value.dtype, grad.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-2, atol=1e-5)


@every_kind
def test_blocks_of_rows_change_nothing(kind: Divergence, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = sparse_targets(random_logits(7, 30, seed=13), 5, 1.0)
    student = random_logits(7, 30, seed=14)
    whole = value_and_grad(student, targets, kind)
    for block in (1, 60, 100):
        monkeypatch.setattr(outcomes, "_BLOCK", block)
        part = value_and_grad(student, targets, kind)
        torch.testing.assert_close(part, whole, rtol=1e-13, atol=1e-15)


@every_kind
def test_keeps_no_tensor_of_the_size_of_the_logits(kind: Divergence) -> None:
    student = random_logits(4, 1000).requires_grad_()
    targets = sparse_targets(random_logits(4, 1000, seed=1), 8, 1.0)
    kept: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        if tensor.numel() >= student.numel():
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        divergence(student, *targets, kind)
    assert kept == {student.untyped_storage().data_ptr()}


@every_kind
@pytest.mark.parametrize("k", [3, 8])
def test_descent_recovers_the_teacher(kind: Divergence, k: int) -> None:
    teacher = random_logits(3, 8, seed=15, scale=1.5)
    top_ids, logprobs, tail = sparse_targets(teacher, k, 2.0)
    student = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([student], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-5, 400)  # tvd has a kink
    for _ in range(400):
        optimizer.zero_grad()
        divergence(student, top_ids, logprobs, tail, kind, temperature=2.0).sum().backward()
        optimizer.step()
        scheduler.step()
    learnt = (student.detach() / 2.0).softmax(-1).gather(-1, top_ids)
    rtol, atol = (1e-3, 1e-4) if kind == "tvd" else (1e-4, 1e-5)
    torch.testing.assert_close(learnt, logprobs.exp(), rtol=rtol, atol=atol)
    torch.testing.assert_close(1 - learnt.sum(-1), tail, rtol=rtol, atol=atol)


def test_no_rows_give_no_values() -> None:
    none = torch.zeros(0, 9)
    value, grad = value_and_grad(none, sparse_targets(none, 3, 1.0), "forward_kl")
    assert (value.shape, grad.shape) == ((0,), (0, 9))


def test_rows_that_do_not_match_are_refused() -> None:
    targets = sparse_targets(random_logits(3, 9), 4, 1.0)
    with pytest.raises(ValueError, match="rows differ: 4 of logits, 3 of top_ids"):
        divergence(random_logits(4, 9), *targets, "forward_kl")


@quick
@given(case=cases())
def test_sparse_targets_are_the_likeliest_and_the_rest(case: Case) -> None:
    top_ids, logprobs, tail = sparse_targets(torch.tensor(case.teacher), case.k, case.temperature)
    p = softmax(case.teacher / case.temperature)
    np.testing.assert_allclose(logprobs.exp().sum(-1) + tail, 1.0, rtol=0, atol=1e-12)
    assert (torch.diff(logprobs, dim=-1) <= 0).all()
    for i, ids in enumerate(top_ids.numpy()):
        assert len(set(ids)) == case.k
        expected = bucketed(p[i], ids)
        np.testing.assert_allclose(logprobs[i].exp(), expected[:-1], rtol=1e-9)
        np.testing.assert_allclose(tail[i], expected[-1], rtol=1e-9)
        assert p[i][ids].min() >= np.delete(p[i], ids).max(initial=0)


def test_small_tail_keeps_its_digits_in_float32() -> None:
    # 1 − Σp would read 0 here: the tail is far below the resolution of 1 in float32.
    teacher = torch.full((1, 1000), -40.0)
    teacher[0, 17] = 0.0
    top_ids, _, tail = sparse_targets(teacher, 1, 1.0)
    assert top_ids.item() == 17
    assert tail.dtype == torch.float32
    assert tail.item() == pytest.approx(999 * math.exp(-40), rel=1e-5, abs=0)


def test_sparse_targets_of_the_whole_vocabulary_are_dense() -> None:
    teacher = random_logits(5, 12)
    top_ids, logprobs, tail = sparse_targets(teacher, 12, 2.0)
    dense_ids, dense, none = dense_targets(teacher, 2.0)
    torch.testing.assert_close(logprobs, dense.gather(-1, top_ids))
    assert torch.equal(top_ids.sort(-1).values, dense_ids)
    assert not tail.any() and not none.any()


@pytest.mark.parametrize("k", [0, 13])
def test_k_outside_the_vocabulary_is_the_users_mistake(k: int) -> None:
    with pytest.raises(InputError, match=rf"top_k = {k} .* vocabulary of 12 tokens.* 1 to 12"):
        sparse_targets(random_logits(2, 12), k, 1.0)


@quick
@given(case=cases())
def test_cross_entropy_is_minus_the_log_probability(case: Case) -> None:
    token_ids = np.abs(case.teacher).argmax(-1)
    value = cross_entropy(torch.tensor(case.student), torch.tensor(token_ids))
    expected = -np.log(softmax(case.student)[np.arange(len(token_ids)), token_ids])
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)


def test_cross_entropy_gradient_is_that_of_torch() -> None:
    logits, token_ids = random_logits(6, 40).requires_grad_(), torch.arange(6)
    (ours_,) = torch.autograd.grad(cross_entropy(logits, token_ids).sum(), logits)
    theirs = torch.nn.functional.cross_entropy(logits, token_ids, reduction="sum")
    torch.testing.assert_close(ours_, torch.autograd.grad(theirs, logits)[0])
