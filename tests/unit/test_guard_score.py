"""The statistics of guard: known parameters recovered, nulls that hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from limbeck.guard import bags, cohorts, even, groups, link, profile, score


def _even(*families: np.ndarray) -> even.Evenness:
    """Of families of accounts, each with its calls."""
    counts = [np.unique(x[x > 0], return_counts=True) for x in families]
    of = np.repeat(np.arange(len(families)), [len(value) for value, _ in counts])
    value, n = (np.concatenate(part) for part in zip(*counts, strict=True))
    return even.evenness(of, value, n.astype(float))


def _people(rng: np.random.Generator, n: int, sigma: float = 1.0) -> np.ndarray:
    return rng.poisson(np.exp(rng.normal(2, sigma, n)))


def test_an_even_group_shows_among_uneven_users_and_its_size_is_found() -> None:
    rng = np.random.default_rng(0)
    members = rng.poisson(25 * rng.gamma(1 / 0.05, 0.05, 300))
    for honest in (0, 150, 600):
        found = _even(np.concatenate([_people(rng, honest), members]))
        assert found.z[0] > 4.5
        assert found.members[0] == pytest.approx(300, rel=0.35)
        assert found.mean[0] == pytest.approx(25, rel=0.3)


def test_people_alone_show_no_even_group() -> None:
    rng = np.random.default_rng(1)
    z = _even(*(_people(rng, 400, sigma) for sigma in (0.8, 1.0, 1.3) for _ in range(20))).z
    assert score.above(z, score.null(z)).max() < score.EVEN


def test_honest_families_reach_a_p_value_no_oftener_than_it_says() -> None:
    """Log-normal people of many kinds; a normal tail of their z's own spread is too thin."""
    rng = np.random.default_rng(12)
    sizes = np.exp(rng.uniform(np.log(20), np.log(400), 8_000)).astype(int)
    laws = zip(
        rng.uniform(0.5, 3, len(sizes)), rng.uniform(0.8, 1.4, len(sizes)), sizes, strict=True
    )
    told = _even(*(rng.poisson(np.exp(rng.normal(*law))) for law in laws))
    z = score.above(told.z, score.null(told.z))
    middle, spread = score.PRIOR_Z
    for level in (1e-2, 1e-3):
        needed = (stats.norm.isf(level / score.KERNELS) - middle) / spread
        assert (z >= needed).mean() <= level
    assert (z >= score.EVEN).mean() > 3 * stats.norm.sf(score.EVEN)
    assert (score.chance(z) <= 1e-4).mean() <= 3e-4


def test_a_family_of_very_many_people_looks_no_more_even_than_a_small_one() -> None:
    rng = np.random.default_rng(9)
    large = _even(*(rng.poisson(np.exp(rng.normal(1.5, 0.8, 50_000))) for _ in range(6))).z
    middle, spread = score.PRIOR_Z
    assert large.max() < middle + score.EVEN * spread


def test_z_is_that_of_mixtures_fitted_to_the_end() -> None:
    rng = np.random.default_rng(10)
    counts = np.concatenate([_people(rng, 8_000, 0.8), rng.poisson(30, 60)])
    told = _even(counts)
    x, n = np.unique(counts[counts > 0], return_counts=True)
    broad, narrow = (law[even.binned(x)] for law in even.kernels(1.0))
    beside = narrow[:, np.abs(even.GRID - told.mean[0]).argmin()]

    def fitted(laws: np.ndarray) -> float:
        weight = np.full(laws.shape[1], 1 / laws.shape[1])
        for _ in range(20_000):
            weight = weight * (laws.T @ (n / (laws @ weight))) / n.sum()
        return float(n @ np.log(laws @ weight))

    z = np.sqrt(2 * (fitted(np.column_stack([broad, beside])) - fitted(broad)))
    assert abs(told.z[0] - z) < 0.05 * z and even.DOUBT[0] < z


def test_a_family_is_judged_alike_alone_and_among_many() -> None:
    rng = np.random.default_rng(10)
    families = [_people(rng, int(size)) for size in rng.integers(20, 3_000, 40)]
    among = _even(*families)
    first = 0
    for place, family in enumerate(families):
        alone = _even(family)
        assert alone.z[0] == pytest.approx(among.z[place], abs=1e-9)
        last = first + len(alone.belongs)
        np.testing.assert_allclose(alone.belongs, among.belongs[first:last], atol=1e-9)
        first = last
    assert first == len(among.belongs)


def test_threads_and_blocks_change_no_evenness(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(13)
    families = [np.bincount(1 + _people(rng, int(size))) for size in rng.integers(20, 900, 60)]
    of = np.repeat(np.arange(60), [np.count_nonzero(family) for family in families])
    x = np.concatenate([np.flatnonzero(family) for family in families])
    n = np.concatenate([family[family > 0] for family in families]).astype(float)
    whole = even.evenness(of, x, n)
    monkeypatch.setattr(even, "BLOCK", 150)
    parts = even.evenness(of, x, n, threads=3)
    np.testing.assert_allclose(parts.z, whole.z, atol=1e-9)
    np.testing.assert_allclose(parts.belongs, whole.belongs, atol=1e-9)


def test_accounts_that_are_replaced_are_even_by_the_day() -> None:
    rng = np.random.default_rng(2)
    days = (2.0 ** rng.integers(0, 5, 600)).astype(np.float64)
    x = rng.poisson(4 * days)
    one = np.zeros(int((x > 0).sum()), int)
    told = even.either(one, x[x > 0], days[x > 0], np.ones(len(one)))
    assert told.z[0] > 10
    assert _even(x).z[0] < told.z[0]


def test_who_is_replaced_is_told_by_calls_a_day() -> None:
    rng = np.random.default_rng(14)
    days = (2.0 ** rng.integers(0, 5, 600)).astype(np.float64)
    x = np.maximum(rng.poisson(4 * days), 1)
    told = even.either(np.zeros(600, int), x, days, np.ones(600))
    assert told.by_day[0] and told.cv2[0] < 0.02  # of raw counts .8
    group = groups.Group("client", 1, np.arange(600), x, days)
    bump = groups.Bump(group, told.belongs, float(told.members[0]), float(told.mean[0]), 9.0, True)
    calls = np.concatenate([4 * x, rng.integers(1, 400, 9_400)])
    found = groups.by_count(bump, calls)
    assert (found.firm > 0.8).mean() > 0.9
    assert (found.p < 1e-3).mean() > 0.5


def test_turns_spend_no_more_than_the_whole_rate() -> None:
    assert sum(score.spent(turn) for turn in range(1, 100_000)) <= 1


def _membership(
    hits: np.ndarray, calls: np.ndarray, begin: tuple[float, float, float]
) -> score.Membership:
    """Of all accounts, from all users alike; those that never hit are no members, for sure."""
    at = np.flatnonzero(hits)
    first = np.full(len(at), min(begin[0] / len(at), 0.9))
    found = score.membership(hits[at], calls[at], len(hits), begin, first)
    firm, p = np.zeros(len(hits)), np.ones(len(hits))
    firm[at], p[at] = found.firm, found.p
    return replace(found, firm=firm, p=p)


def test_membership_finds_members_and_spares_honest_users() -> None:
    rng = np.random.default_rng(3)
    honest, members = 40_000, 800
    calls = np.maximum(1, rng.lognormal(4, 1, honest + members)).astype(int)
    calls[honest:] = rng.poisson(100, members)
    hits = np.zeros(honest + members, int)
    users = rng.random(honest) < 0.001
    hits[:honest][users] = rng.binomial(calls[:honest][users], rng.beta(0.3, 1.5, users.sum()))
    hits[honest:] = rng.binomial(calls[honest:], 0.25)
    found = _membership(hits, calls, (700.0, 24.0, 0.05))
    assert found.members == pytest.approx(members / (honest + members), rel=0.05)
    assert (found.firm[honest:] >= 0.8).mean() > 0.95
    assert (found.p[honest:] <= 1e-3).mean() > 0.85
    assert (found.p[:honest] <= 1e-4).mean() <= 1e-4


def test_membership_is_its_definition_summed_account_by_account() -> None:
    rng = np.random.default_rng(11)
    calls = np.concatenate([rng.integers(1, 60, 400), rng.integers(40, 64, 30)])
    hits = np.concatenate([rng.binomial(calls[:400], rng.beta(0.4, 2, 400)), rng.poisson(20, 30)])
    hits = np.minimum(hits, calls)
    at, accounts = np.flatnonzero(hits), 2_000
    h, n, mean, uneven = hits[at], calls[at], 20.0, 0.1
    belongs = rng.random(len(at)) * 0.5
    found = score.membership(h, n, accounts, (30.0, mean, uneven), belongs, rounds=12)

    def member(k: np.ndarray) -> np.ndarray:
        return stats.nbinom.pmf(k, 1 / uneven, 1 / (1 + uneven * mean))

    def honest(k: np.ndarray, of: np.ndarray, law: tuple[float, float]) -> np.ndarray:
        return stats.betabinom.pmf(k, of, *law) / (1 - stats.betabinom.pmf(0, of, *law))

    for each in zip(*np.unique(np.stack([h, n]), axis=1), strict=True):  # alike, if all is alike
        same = (h == each[0]) & (n == each[1])
        belongs[same] = belongs[same].mean()
    share, users, law = 30.0 / accounts, 0.0, score.SHARES
    for _ in range(12):
        users = ((1 - belongs).sum() + 1) / accounts
        law = score._beta(h / n, 1 - belongs)  # pyright: ignore
        one, other = share * member(h), (1 - share) * users * honest(h, n, law)
        belongs = one / (one + other)
        never = share * member(np.zeros(1))[0]
        rest = never / (never + (1 - share) * (1 - users))
        share = (belongs.sum() + (accounts - len(at)) * rest) / accounts
    np.testing.assert_allclose(found.firm, belongs, rtol=1e-9)
    for place in range(0, len(at), 7):
        grid = np.arange(1, n[place] + 1)
        use = honest(grid, np.full(len(grid), n[place]), law)
        ratio = member(grid) / use
        p = users * use[ratio >= ratio[h[place] - 1] * (1 - 1e-12)].sum()
        assert found.p[place] == pytest.approx(min(p, 1.0), rel=1e-9)


def test_p_values_of_honest_users_hold_in_the_model() -> None:
    rng = np.random.default_rng(4)
    calls = rng.integers(20, 200, 60_000)
    users = rng.random(60_000) < 0.3
    hits = np.where(users, rng.binomial(calls, rng.beta(0.5, 3, 60_000)), 0)
    members = rng.random(60_000) < 0.02
    hits[members] = rng.poisson(30, members.sum())
    found = _membership(hits, calls, (float(members.sum()), 30.0, 0.02))
    for level in (0.01, 0.003):
        assert (found.p[~members] <= level).mean() <= 1.3 * level


def _bags(rng: np.random.Generator, n: int, alpha: list[float]) -> np.ndarray:
    size = rng.integers(40, 160, n)
    share = rng.dirichlet(alpha, n)
    return np.stack([rng.multinomial(k, p) for k, p in zip(size, share, strict=True)]).astype(float)


def test_bags_of_members_are_told_from_honest_ones_of_every_kind() -> None:
    rng = np.random.default_rng(5)
    kinds = ([20, 1, 0.2, 0.1], [1, 4, 6, 8], [1, 8, 1, 0.3], [30, 3, 0.5, 0.02])
    honest = np.concatenate([_bags(rng, 800, list(kind)) for kind in kinds])
    members = _bags(rng, 300, [24, 1, 2, 5])
    firm = np.zeros(len(honest) + 300, bool)
    firm[len(honest) : len(honest) + 150] = True
    found = bags.belonging(np.concatenate([honest, members]), firm, 50_000)
    assert (found.p[-150:] <= 1e-4).mean() > 0.6
    assert (found.p[: len(honest)] <= 1e-4).sum() <= 5
    assert found.member.sum() == pytest.approx(300, rel=0.2)


def test_a_campaign_larger_than_the_rest_of_its_set_up_teaches_no_honest_law() -> None:
    rng = np.random.default_rng(7)
    honest = np.concatenate([_bags(rng, 200, [20, 1, 0.2, 0.1]), _bags(rng, 200, [1, 4, 6, 8])])
    members = _bags(rng, 3000, [24, 1, 2, 5])
    firm = np.arange(3400) >= 400
    found = bags.belonging(np.concatenate([honest, members]), firm, 50_000)
    assert np.median(found.p[firm]) < 1e-5
    assert np.median(found.p[~firm]) > 1e-3


def test_laws_of_a_large_log_are_learnt_from_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(14)
    honest = np.concatenate([_bags(rng, 6000, [20, 1, 0.2, 0.1]), _bags(rng, 3000, [1, 4, 6, 8])])
    held = np.concatenate([honest, _bags(rng, 4000, [24, 1, 1, 2])])
    firm = np.arange(13_000) >= 10_000
    whole = bags.belonging(held, firm, 100_000)
    monkeypatch.setattr(bags, "SAMPLE", 1_000)
    part = bags.belonging(held, firm, 100_000)
    assert part.member.sum() == pytest.approx(whole.member.sum(), rel=0.05)
    assert ((part.p <= 1e-4) == (whole.p <= 1e-4)).mean() > 0.99
    assert np.corrcoef(np.log(part.p), np.log(whole.p))[0, 1] > 0.99


def test_bags_of_nobody_but_members_give_no_evidence_that_is_no_number() -> None:
    rng = np.random.default_rng(8)
    found = bags.belonging(_bags(rng, 60, [24, 1, 2, 5]), np.ones(60, bool), 1000)
    assert np.isfinite(found.p).all()
    assert np.isfinite(found.member).all()


def test_bags_of_another_campaign_are_neither_honest_nor_learnt_from() -> None:
    rng = np.random.default_rng(9)
    honest = _bags(rng, 1500, [20, 1, 0.2, 0.1])
    members, others = _bags(rng, 100, [24, 1, 2, 5]), _bags(rng, 400, [24, 1, 2, 5])
    held = np.concatenate([honest, others, members])
    firm = np.arange(2000) >= 1900
    known = (np.arange(2000) >= 1500) & ~firm
    without = bags.belonging(held, firm, 10_000, most=0.05)
    told = bags.belonging(held, firm, 10_000, most=0.05, known=known)
    assert np.median(told.p[firm]) < np.median(without.p[firm]) / 10


def test_large_bags_may_be_told_coarsely(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(12)
    size = np.exp(rng.uniform(np.log(1_000), np.log(20_000), 1_300)).astype(int)
    shares = np.concatenate(
        [rng.dirichlet([40, 0.5, 0.02, 0.01], 1_200), rng.dirichlet([40, 0.6, 0.1, 0.06], 100)]
    )
    held = np.stack([rng.multinomial(k, p) for k, p in zip(size, shares, strict=True)]).astype(
        float
    )
    firm = np.arange(1_300) >= 1_240
    told = bags.belonging(held, firm, 10_000)
    monkeypatch.setattr(bags, "FINE", 1 << 20)
    monkeypatch.setattr(bags, "FINEST", 1 << 20)
    exact = bags.belonging(held, firm, 10_000)
    away = np.abs(np.log(told.p) - np.log(exact.p))
    assert np.median(away) < 0.01
    assert ((told.p <= 1e-3) == (exact.p <= 1e-3)).mean() > 0.998


def test_bags_that_tie_have_one_p_value() -> None:
    rng = np.random.default_rng(15)
    same = np.tile([80.0, 8, 4, 8], (60, 1))
    held = np.concatenate(
        [same, _bags(rng, 800, [20, 1, 0.2, 0.1]), _bags(rng, 100, [24, 1, 2, 5])]
    )
    found = bags.belonging(held, np.arange(960) >= 900, 10_000)
    assert len(np.unique(found.p[:60])) == 1


def test_the_order_of_bags_changes_no_order_of_evidence() -> None:
    rng = np.random.default_rng(6)
    held = np.concatenate([_bags(rng, 500, [20, 1, 0.2]), _bags(rng, 100, [24, 2, 5])])
    firm = np.arange(600) >= 550
    told = bags.belonging(held, firm, 10_000)
    again = bags.belonging(held[::-1], firm[::-1], 10_000)
    assert ((again.p[::-1] <= 1e-4) == (told.p <= 1e-4)).mean() > 0.97


def test_a_trait_weighs_the_log_of_how_much_oftener_members_have_it() -> None:
    import pyarrow as pa

    parts = profile.PARTS * 1000
    rows = pa.table(
        {
            "trait": ["client", "client", "way"],
            "value": [7, 8, 3],
            "n": [80_000, 20_000, 50_000],
            "users": [90, 30, 60],
            "mass": [int(0.04 * parts), int(0.2 * parts), int(0.5 * parts)],
        }
    )
    table, others = profile.weights(rows, 100_000, 1000)
    strange = profile.STRANGE
    lifts = np.array([20.0, 1.0, 1.0])
    expected = 1000 * np.log(strange + (1 - strange) * lifts)
    assert table["weight"].to_numpy() == pytest.approx(expected, abs=8)
    assert others["client"] == pytest.approx(1000 * np.log(strange), abs=5)
    assert others["way"] == pytest.approx(0, abs=5)


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
