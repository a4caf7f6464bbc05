from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from limbeck.errors import InputError
from limbeck.records import Verdict
from limbeck.validate.verdict import (
    Against,
    Measured,
    Test,
    from_json,
    judge,
    passed,
    table,
    to_json,
    word,
)

Array = np.ndarray
SUPERIOR: Mapping[Against, Test] = {"control": "superior"}
NON_INFERIOR: Mapping[Against, Test] = {"control": "non_inferior"}
REPORT: Mapping[Against, Test] = {"control": "report"}


def measured(
    student: Array,
    control: Array | None = None,
    teacher: Array | None = None,
    test: Mapping[Against, Test] = SUPERIOR,
    **changes: Any,
) -> Measured:
    given: dict[str, Any] = {"metric": "rouge_l", "better": "higher", "weights": None} | changes
    return Measured(student=student, control=control, teacher=teacher, test=test, **given)


def judged(*given: Measured, margin: float = 0.05, seed: int = 0) -> tuple[Verdict, ...]:
    return judge(given, margin=margin, confidence=0.95, resamples=1000, seed=seed)


def row(**changes: Any) -> Verdict:
    base = Verdict(
        "rouge_l", "control", 0.9, 0.5, 0.4, 0.1, (0.08, 0.12), 0.0, 90, True, "higher", True
    )
    return dataclasses.replace(base, **changes)


def pair(shift: float, n: int = 120, seed: int = 0) -> tuple[Array, Array]:
    """Student and control whose prompts differ far more than the two of them do."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(0, 1, n)
    return ease + shift + rng.normal(0, 0.04, n), ease + rng.normal(0, 0.04, n)


def test_recovers_a_known_shift_with_its_means():
    student, control = pair(0.2)
    (found,) = judged(measured(student, control, control + 1))
    assert found.interval[0] < 0.2 < found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.03
    assert found.delta == pytest.approx(np.mean(student) - np.mean(control))
    means = (found.student, found.control, found.teacher)
    assert means == pytest.approx((student.mean(), control.mean(), control.mean() + 1))
    assert (found.n, found.passed, found.gate, found.margin) == (120, True, True, 0.0)


def test_pairing_finds_what_two_samples_would_miss():
    student, control = pair(0.03)
    unpaired_error = np.sqrt((student.var(ddof=1) + control.var(ddof=1)) / len(student))
    assert student.mean() - control.mean() < 0.5 * unpaired_error
    (found,) = judged(measured(student, control))
    assert found.passed is True
    shuffled = np.random.default_rng(1).permutation(control)
    (found,) = judged(measured(student, shuffled))
    assert found.passed is False


def test_superiority_at_no_difference_is_claimed_at_the_one_sided_rate():
    rng = np.random.default_rng(9)
    runs, claims = 500, 0
    for seed in range(runs):
        student, control = rng.normal(size=(2, 40))
        rows = judge(
            [measured(student, control)], margin=0.05, confidence=0.95, resamples=500, seed=seed
        )
        claims += passed(rows)
    fewest, most = stats.binom.interval(0.999, runs, 0.025)
    assert fewest <= claims <= most


def test_non_inferiority_is_superiority_to_a_control_worse_by_the_margin():
    outcomes = set()
    for seed in range(20):
        student, control = pair(-0.042, n=30, seed=seed)
        (near,) = judged(measured(student, control, test=NON_INFERIOR), seed=seed)
        (better,) = judged(measured(student, control - 0.05), seed=seed)
        assert near.passed is better.passed
        assert near.margin == 0.05
        outcomes.add(near.passed)
    assert outcomes == {True, False}


@pytest.mark.parametrize(
    ("delta", "test", "margin", "holds"),
    [
        (0.0, "superior", 0.05, False),
        (1e-9, "superior", 0.05, True),
        (-1e-9, "superior", 0.05, False),
        (-0.25, "non_inferior", 0.25, True),
        (np.nextafter(-0.25, -1), "non_inferior", 0.25, False),
        (0.0, "non_inferior", 0.0, True),
        (-1e-9, "non_inferior", 0.0, False),
        (9.0, "report", 0.25, None),
    ],
)
@pytest.mark.parametrize("better", ["higher", "lower"])
def test_lines_are_drawn_where_they_are_said_to_be(
    delta: float, test: Test, margin: float, holds: bool | None, better: str
):
    student = np.full(8, delta if better == "higher" else -delta)
    given = measured(student, np.zeros(8), test={"control": test}, better=better)
    (found,) = judged(given, margin=margin)
    assert found.passed is holds
    assert found.gate is (holds is not None)
    assert found.margin == {"superior": 0.0, "non_inferior": margin, "report": None}[test]


@pytest.mark.parametrize("test", ["superior", "non_inferior"])
def test_lower_is_better_mirrors_higher_is_better(test: Test):
    straddled = 0
    for shift in (-0.1, -0.05, 0.0, 0.05, 0.1):
        student, control = pair(shift, n=50)
        (high,) = judged(measured(student, control, test={"control": test}))
        (low,) = judged(measured(-student, -control, test={"control": test}, better="lower"))
        assert low.passed is high.passed is (shift > (0 if test == "superior" else -0.05))
        assert low.interval == pytest.approx((-high.interval[1], -high.interval[0]))
        straddled += high.interval[0] < 0 < high.interval[1]
    assert straddled  # where the wrong end of the interval would tell


def test_an_interval_about_zero_is_neither_better_nor_not_worse():
    student, control = np.random.default_rng(3).normal(size=(2, 30))
    found = judged(measured(student, control), measured(student, control, test=NON_INFERIOR))
    assert found[0].interval[0] < 0 < found[0].interval[1]
    assert [r.passed for r in found] == [False, False]
    assert [word(r) for r in found] == ["not shown", "not shown"]


def test_too_few_prompts_show_nothing():
    shift = np.array([0.3, 0.31, 0.29, 0.3, 0.32, 0.28])
    (six,) = judged(measured(shift, np.zeros(6)))
    (five,) = judged(measured(shift[:5], np.zeros(5)))
    assert five.interval[0] > 0
    assert (six.passed, five.passed) == (True, False)


def test_weights_turn_the_mean_into_the_tokens_mean():
    student = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    weights = np.array([1, 90, 2, 80, 1, 99, 3, 70])
    control = np.full(8, 0.4)
    (plain,) = judged(measured(student, control))
    (found,) = judged(measured(student, control, weights=weights))
    assert plain.delta == pytest.approx(0.1)
    assert found.delta == pytest.approx(7 / 346 - 0.4)
    assert found.student == pytest.approx(7 / 346)
    assert found.interval[1] < 0 < plain.interval[1]
    (spared,) = judged(measured(student, control, weights=weights * (np.arange(8) < 7)))
    assert spared.n == 7


def test_one_row_a_comparison_and_gates_only_where_something_is_claimed():
    student, control = pair(0.2)
    both: Mapping[Against, Test] = {"control": "non_inferior", "teacher": "report"}
    rows = judged(
        measured(student, control, student + 1, both, metric="a"),
        measured(student, None, student - 1, {"teacher": "superior"}, metric="b"),
        measured(student, control, test={}, metric="c"),
    )
    assert [(r.metric, r.against, r.gate) for r in rows] == [
        ("a", "control", True),
        ("a", "teacher", False),
        ("b", "teacher", True),
    ]
    assert rows[1].delta == pytest.approx(-1)
    assert rows[1].passed is None
    assert rows[2].control is None


def test_repeats_by_seed():
    given = measured(*pair(0.01))
    assert judged(given, seed=4) == judged(given, seed=4) != judged(given, seed=5)


def test_passes_when_every_gate_does_and_there_is_one():
    reported = row(passed=None, gate=False, margin=None)
    assert passed([row(), reported])
    assert not passed([row(), row(passed=False)])
    assert not passed([reported])
    assert not passed([])


def test_counts_need_one_value_and_other_metrics_more():
    one, two = np.array([81.4e6]), np.array([134.5e6])
    test: Mapping[Against, Test] = {"teacher": "superior"}
    (found,) = judged(measured(one, None, two, test, metric="parameters", better="lower"))
    assert found.interval == (-53.1e6, -53.1e6)
    assert found.passed is True
    with pytest.raises(InputError, match=r"rouge_l against teacher: .*at least 2"):
        judged(measured(one, None, two, test))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (measured(np.zeros(8)), "kl against control: there are no control values"),
        (measured(np.zeros(8), np.zeros(7)), "control has 7 values for the student's 8"),
        (measured(np.zeros(8), np.zeros(8), np.zeros(1)), "teacher has 1 values"),
        (measured(np.zeros(8), np.zeros(8), weights=np.ones(9)), "weights has 9 values"),
        (measured(np.zeros(8), np.full(8, np.nan)), "kl against control: .*prompt 0 is nan"),
    ],
)
def test_refuses_values_that_do_not_fit(given: Measured, complaint: str):
    with pytest.raises(InputError, match=complaint):
        judged(dataclasses.replace(given, metric="kl"))


@pytest.mark.parametrize("margin", [-0.1, float("nan")])
def test_refuses_a_margin_that_is_none(margin: float):
    with pytest.raises(InputError, match="margin"):
        judged(measured(*pair(0)), margin=margin)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (row(), "better than control"),
        (row(against="teacher"), "better than teacher"),
        (row(margin=0.05), "not worse (margin 0.05)"),
        (row(margin=0.0, interval=(0.0, 0.0)), "not worse (margin 0)"),
        (row(better="lower", interval=(-0.2, -0.1)), "better than control"),
        (row(passed=False), "not shown"),
        (row(passed=None, margin=None, gate=False), "reported"),
    ],
)
def test_words_say_no_more_than_the_interval(given: Verdict, said: str):
    assert word(given) == said


def rendered(rows: tuple[Verdict, ...], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table(rows, 0.95))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    return text


def usual_rows() -> tuple[Verdict, ...]:
    rng = np.random.default_rng(0)
    base, rise = rng.gamma(2, 0.2, 200), rng.normal(0.3, 0.3, 200)
    weights = rng.integers(5, 128, 200)
    both: Mapping[Against, Test] = {"control": "superior", "teacher": "report"}
    speed: Mapping[Against, Test] = {"teacher": "superior"}
    size: Mapping[Against, Test] = {"teacher": "report"}
    fast = rng.normal(1400, 100, (2, 12)) * [[1], [0.6]]
    counts = np.array([[81.4e6], [134.5e6]])
    return judged(
        measured(base, base + rise, metric="kl", better="lower", weights=weights),
        measured(1 - base / 9, 1 - base / 5, metric="agreement", weights=weights),
        measured(1 - base / 9, 1 - base / 9 - rise / 99, metric="acceptance", weights=weights),
        measured(-base - 1, -base - rise - 1, -base * 0.9, both, metric="teacher_logprob"),
        measured(base, base + rise / 99, test=NON_INFERIOR),
        measured(fast[0], None, fast[1], speed, metric="tokens_per_s"),
        measured(fast[0] / 90, None, fast[1] / 90, speed, metric="answers_per_s"),
        measured(counts[0], None, counts[1], size, metric="parameters", better="lower"),
        measured(counts[0] * 2, None, counts[1] * 2, size, metric="bytes", better="lower"),
        measured(base, None, base + rise, size, metric="my_[red]metric[/red]"),
    )


def test_table_fits_100_columns_whole():
    text = rendered(usual_rows(), 100)
    for said in (
        *("kl (nats/token)", "agreement (top-1)", "acceptance (1 − TVD)", "teacher log-prob"),
        *("ROUGE-L (F1)", "tokens/s", "answers/s", "my_[red]metric[/red]"),
        *("81.4M", "−53.1M", "163 MB", "269 MB", "−106 MB"),
        *("better than control", "better than teacher", "not worse (margin 0.05)", "reported"),
        *("delta [interval]", "student − control", "student − teacher"),
        *("95 % intervals", "n = 12 to 200"),
    ):
        assert said in text
    assert text.count("[+") + text.count("[−") == 9  # an interval for each sampled comparison


def test_table_numbers_are_the_rows_numbers():
    found = row(
        metric="kl",
        better="lower",
        teacher=None,
        student=0.39412,
        control=0.68751,
        delta=-0.29339,
        interval=(-0.33604, -0.25103),
    )
    line = next(s for s in rendered((found,), 100).splitlines() if s.startswith("kl"))
    wanted = ["–", "0.394", "0.688", "−0.293", "[−0.336,", "−0.251]", "better", "than", "control"]
    assert line.split()[2:] == wanted


@pytest.mark.parametrize("width", [80, 100])
def test_table_never_drops_a_digit(width: int):
    huge = row(
        metric="tokens_per_s",
        teacher=104_321.5,
        student=98_765.4,
        control=87_654.3,
        delta=-11_111.1,
        interval=(-12_345.6, -9_876.5),
        margin=0.05,
    )
    text = rendered((huge,), width)
    for number in ("104322", "98765", "87654", "−11111 [−12346, −9876]"):
        assert number in text
    verdict = [line[text.index("verdict") :].strip() for line in text.splitlines()[1:-1]]
    assert " ".join(filter(None, verdict)) == "not worse (margin 0.05)"


def test_table_says_when_there_were_too_few():
    few = judged(measured(np.ones(3), np.zeros(3)))
    assert "n < 6 can show nothing" in rendered(few, 100)
    assert "can show nothing" not in rendered(usual_rows(), 100)
    assert "95 %" in rendered((), 100)


def test_json_round_trip_is_strict():
    rows = usual_rows()
    text = json.dumps(to_json(rows), allow_nan=False)
    assert from_json(json.loads(text)) == rows
    absent = row(teacher=float("nan"), control=None)
    (written,) = to_json([absent])
    assert written["teacher"] is None
    assert from_json([written]) == (row(teacher=None, control=None),)


@pytest.mark.parametrize("broken", [{"delta": float("nan")}, {"interval": (0.0, float("inf"))}])
def test_json_refuses_a_claim_without_numbers(broken: dict[str, Any]):
    with pytest.raises(InputError, match="rouge_l against control"):
        to_json([row(**broken)])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"delta": None}, "row 2: 'delta'"),
        ({"delta": float("nan")}, "NaN"),
        ({"passed": "yes"}, "row 2: 'passed'"),
        ({"against": "nobody"}, "row 2: 'against'"),
        ({"interval": [0.1]}, "row 2: 'interval"),
        ({"parity": True}, "row 2: unknown key 'parity'"),
    ],
)
def test_json_that_does_not_fit_is_named(change: dict[str, Any], complaint: str):
    first, second = to_json([row(), row()])
    with pytest.raises(InputError, match=complaint):
        from_json([first, second | change])


def test_json_that_lacks_a_key_is_named():
    (written,) = to_json([row()])
    del written["gate"]
    with pytest.raises(InputError, match="row 1: 'gate'"):
        from_json([written])
