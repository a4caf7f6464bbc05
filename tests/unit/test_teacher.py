import math
from typing import Any

import pytest
import torch

from heads import Case, case_of, head_of
from limbeck.errors import InputError
from limbeck.recipe import Divergence
from limbeck.train.fused import Live, Sparse, fused_loss
from limbeck.train.teacher import TargetError


def bad_row(**changes: Any) -> tuple[Case, Sparse]:
    case = case_of(n=4, v=12, k=3)
    targets = case.targets("sampled")
    assert isinstance(targets, Sparse)
    fields = {n: getattr(targets, n).clone() for n in targets.__slots__}
    for name, value in changes.items():
        fields[name][2] = value
    return case, Sparse(**fields)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"logprobs": -1e4, "tail": 0.0}, "token 2 of the batch adds up to 0, not 1"),
        ({"logprobs": -2.0, "tail": 0.1}, "token 2 .* adds up to 0.506"),
        ({"logprobs": math.nan}, "token 2 .* no distribution has"),
        ({"logprobs": -math.inf}, "token 2 .* no distribution has"),
        ({"tail": math.nan}, "token 2 .* no distribution has"),
        ({"tail": -0.01}, "token 2 .* no distribution has"),
        ({"tail_entropy": math.inf}, "token 2 .* no distribution has"),
    ],
)
def test_a_row_that_is_no_distribution_is_named(changes: dict[str, Any], says: str) -> None:
    case, targets = bad_row(**changes)
    with pytest.raises(TargetError, match=says) as caught:
        fused_loss(case.states, case.head, targets, "forward_kl", normaliser=1)
    assert caught.value.row == 2 and caught.value.exit_code == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_a_live_teacher_that_computes_no_numbers_is_named(kind: Divergence, value: float) -> None:
    case = case_of(n=7)
    options = case.options(token_chunk=2)
    case.teacher.states[5, 0] = value
    with pytest.raises(TargetError, match=r"token 5 .* has a logit that is no number") as caught:
        fused_loss(case.states, case.head, case.teacher, kind, **options)
    assert caught.value.row == 5


def test_a_student_that_diverged_is_not_blamed_on_its_teacher() -> None:
    case = case_of(n=7)
    with torch.no_grad():
        case.states[5, 0] = math.nan
    for teacher in ("sparse", "live"):
        out = fused_loss(case.states, case.head, case.targets(teacher), "jsd", normaliser=1)
        assert out.values.isnan().tolist() == [i == 5 for i in range(7)]


def test_more_tokens_kept_than_there_are() -> None:
    case = case_of(n=2, v=5)
    many = Sparse(torch.arange(6).expand(2, 6), torch.full((2, 6), -math.log(6)), torch.zeros(2))
    with pytest.raises(InputError, match=r"hold 6 tokens a position.* only has 5.*train.top_k"):
        fused_loss(case.states, case.head, many, "forward_kl", normaliser=1)


@pytest.mark.parametrize("name", ["top_ids", "tail_ids"])
def test_tokens_outside_the_vocabulary(name: str) -> None:
    case, targets = bad_row(**{name: 12})
    with pytest.raises(InputError, match=r"name tokens .* to 12.* ends at 11.*another tokenizer"):
        fused_loss(case.states, case.head, targets, "forward_kl", normaliser=1)


def test_labels_outside_the_vocabulary() -> None:
    case = case_of()
    with pytest.raises(InputError, match="another tokenizer"):
        fused_loss(case.states, case.head, None, None, **case.options(labels=case.labels - 50))


def test_every_position_masked() -> None:
    case = case_of()
    none = Sparse(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3), torch.zeros(0))
    with pytest.raises(InputError, match="every position of the batch is masked"):
        fused_loss(case.states[:0], case.head, none, "forward_kl", normaliser=1)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_head_of_another_size(whose: str) -> None:
    case = case_of(h=4)
    if whose == "student":
        case = case._replace(head=head_of(torch.zeros(12, 5)))
    else:
        case = case._replace(teacher=Live(case.teacher.states[:, 1:], case.teacher.head))
    with pytest.raises(InputError, match=f"The {whose}'s head takes states of size"):
        fused_loss(case.states, case.head, case.teacher, "forward_kl", normaliser=1)


def test_a_head_that_is_more_than_linear() -> None:
    case = case_of()
    case.head.project = torch.nn.Sequential(case.head.project)
    with pytest.raises(InputError, match="student's head is a Sequential"):
        fused_loss(case.states, case.head, case.teacher, "forward_kl", normaliser=1)


def test_a_live_teacher_with_another_vocabulary() -> None:
    case = case_of(v=12)
    case.teacher.head.vocabulary = 11
    with pytest.raises(InputError, match="teacher's vocabulary has 11 tokens, the student's 12"):
        fused_loss(case.states, case.head, case.teacher, "forward_kl", normaliser=1)


@pytest.mark.parametrize(
    ("kind", "options"), [(None, {}), ("forward_kl", {}), ("forward_kl", {"text_weight": 0.5})]
)
def test_what_is_missing_is_refused(kind: Any, options: dict[str, Any]) -> None:
    case = case_of()
    targets = case.targets("sparse") if options else None
    with pytest.raises(ValueError, match="needs targets, and cross-entropy needs labels"):
        fused_loss(case.states, case.head, targets, kind, normaliser=1, **options)


def test_rows_that_do_not_match_are_refused() -> None:
    case = case_of(n=5)
    with pytest.raises(ValueError, match="rows differ: 4 of states, 5 of targets"):
        fused_loss(case.states[:4], case.head, case.targets("sparse"), "tvd", normaliser=1)
