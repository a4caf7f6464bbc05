"""The statistics of guard: known parameters recovered, nulls that hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from limbeck.guard import cohorts, link, score


def _sums(x: np.ndarray, n: np.ndarray) -> list[np.ndarray]:
    terms = (np.ones_like(x), x, x * x, n, x * n, n * n)
    return [np.array([float(term.sum())]) for term in terms]


def test_unevenness_recovers_cv2_of_overdispersed_counts() -> None:
    rng = np.random.default_rng(0)
    for cv2 in (0.5, 2.0):
        rates = 20 * rng.gamma(1 / cv2, cv2, 40_000)
        value, clear = score.unevenness(*_sums(rng.poisson(rates).astype(float), np.ones(40_000)))
        assert np.exp(value[0]) == pytest.approx(cv2, rel=0.05)
        assert clear[0]


def test_unevenness_of_a_division_is_near_nothing_even_where_accounts_are_replaced() -> None:
    rng = np.random.default_rng(1)
    days = rng.integers(1, 15, 3000).astype(float)
    value, _ = score.unevenness(*_sums(rng.poisson(4 * days).astype(float), days))
    assert np.exp(value[0]) < 0.03


def test_few_calls_prove_no_evenness() -> None:
    rng = np.random.default_rng(2)
    value, clear = score.unevenness(*_sums(rng.poisson(0.3, 15).astype(float), np.ones(15)))
    assert np.exp(value[0]) > 1
    assert not clear[0]


def test_membership_finds_members_and_spares_honest_users() -> None:
    rng = np.random.default_rng(3)
    honest, members = 40_000, 800
    calls = np.maximum(1, rng.lognormal(4, 1, honest + members)).astype(int)
    calls[honest:] = rng.poisson(100, members)
    hits = np.zeros(honest + members, int)
    users = rng.random(honest) < 0.001
    hits[:honest][users] = rng.binomial(calls[:honest][users], rng.beta(0.3, 1.5, users.sum()))
    hits[honest:] = rng.binomial(calls[honest:], 0.25)
    found = score.membership(hits, calls, 0.05, (0.3, 1.5))
    assert found.members == pytest.approx(members / (honest + members), rel=0.05)
    assert found.mean == pytest.approx(25, rel=0.05)
    assert (found.p[honest:] <= 1e-4).mean() > 0.85
    assert (found.p[:honest] <= 1e-4).mean() <= 1e-4


def test_p_values_of_honest_users_hold_in_the_model() -> None:
    rng = np.random.default_rng(4)
    calls = rng.integers(20, 200, 60_000)
    users = rng.random(60_000) < 0.3
    hits = np.where(users, rng.binomial(calls, rng.beta(0.5, 3, 60_000)), 0)
    members = rng.random(60_000) < 0.02
    hits[members] = rng.poisson(30, members.sum())
    found = score.membership(hits, calls, 0.02, (0.5, 3.0))
    for level in (0.01, 0.003):
        assert (found.p[~members] <= level).mean() <= 1.3 * level


@given(st.integers(0, 2**32 - 1))
def test_benjamini_hochberg_is_the_textbook_step_up(seed: int) -> None:
    p = np.random.default_rng(seed).random(30) ** 2
    ours = link.benjamini_hochberg(p, 0.2)
    assert (ours == (stats.false_discovery_control(p) <= 0.2)).all()


def test_edges_are_few_under_the_null_and_found_where_planted() -> None:
    import pyarrow as pa

    rng = np.random.default_rng(5)
    aid = rng.integers(0, 3000, 6000)
    key = rng.integers(0, 120, 6000)
    planted = np.repeat(np.arange(3000, 3060), 4)
    aid = np.concatenate([aid, planted])
    key = np.concatenate([key, 120 + rng.integers(0, 12, len(planted))])
    votes = np.unique(np.stack([aid, key]), axis=1)
    by: dict[int, list[int]] = {}
    for a, k in votes.T.tolist():
        by.setdefault(a, []).append(k)
    counts: dict[tuple[int, int], int] = {}
    for keys in by.values():
        for i, one in enumerate(keys):
            for other in keys[i + 1 :]:
                counts[one, other] = counts.get((one, other), 0) + 1
    pairs = [(one, other, n) for (one, other), n in counts.items() if n >= 2]
    table = pa.table(
        dict(zip(("one", "other", "both"), map(list, zip(*pairs, strict=True)), strict=True))
    )
    found = link.edges(table, pa.table({"aid": votes[0], "key": votes[1]}))
    inside = (found.one >= 120) & (found.other >= 120)
    assert inside.sum() > 40
    assert (~inside).sum() <= 0.05 * len(inside) + 1
    family = cohorts.families(np.arange(132), found)
    assert len(set(family[120:].tolist())) == 1
    assert family[120] not in family[:120]


def test_a_family_nobody_honest_uses_costs_no_false_alarms() -> None:
    p = np.array([[1e-6, 2e-5, 1.0], [1.0, 1.0, 5e-5]])
    clean = score.over_all(p, np.array([1e-7, 1e-2]))
    assert clean == pytest.approx([1e-6 + 1e-7, 2e-5 + 1e-7, 5e-5 + 1e-7])
