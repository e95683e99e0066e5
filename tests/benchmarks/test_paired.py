"""Paired tests against all sign flips, SciPy and hand-computed cases."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom

from benchmarks.scoring.measures import MEASURES
from benchmarks.stats.intervals import RESAMPLES
from benchmarks.stats.paired_tests import compare_scores, holm, mcnemar_p, sign_flip_p


def differences(*parts: tuple[float, int]) -> NDArray[np.float64]:
    """Concatenate differences: `(0.5, 3)` are three queries with a difference of 0.5."""
    return np.concatenate([np.full(count, value) for value, count in parts])


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (0, 6, 2 / 64),
        (3, 1, 2 * 5 / 16),  # 4 or 3 of 4, and as few
        (7, 7, 1.0),
    ],
)
def test_hand_computed_mcnemar(won: int, lost: int, p: float) -> None:
    assert mcnemar_p(differences((1.0, won), (-1.0, lost), (0.0, 50))) == pytest.approx(p)


def all_flips_p(parts: list[NDArray[np.float64]]) -> float:
    """p value of the permutation test with every combination of signs."""
    weights = np.concatenate([part / len(part) for part in parts])
    nonzero = weights[weights != 0]
    sums = [abs(np.dot(signs, nonzero)) for signs in product([1, -1], repeat=len(nonzero))]
    return float(np.mean(np.array(sums) >= abs(nonzero.sum()) - 1e-9))


SIZES = st.sampled_from([-1.0, -0.6, -0.2, 0.0, 0.2, 0.25, 0.5, 1.0])


@settings(max_examples=40, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=6), st.lists(SIZES, min_size=1, max_size=6))
def test_random_sign_flips_approximate_all_of_them(first: list[float], second: list[float]) -> None:
    parts = [np.array(first), np.array(second)]
    exact = all_flips_p(parts)
    assert sign_flip_p(parts) == pytest.approx(exact, abs=5 * np.sqrt(0.25 / RESAMPLES) + 1 / RESAMPLES)


def test_sign_flips_of_one_domain_are_mcnemars_test() -> None:
    domain = differences((1.0, 15), (-1.0, 5), (0.0, 100))
    assert mcnemar_p(domain) == pytest.approx(2 * binom.cdf(5, 20, 0.5))
    assert sign_flip_p([domain]) == pytest.approx(mcnemar_p(domain), abs=0.01)


def test_chance_is_significant_one_time_in_twenty() -> None:
    rng = np.random.default_rng(3)
    steps = np.array([-0.4, -0.2, 0.0, 0.0, 0.0, 0.2, 0.4])
    p_values = [sign_flip_p([rng.choice(steps, size) for size in (15, 80, 300)]) for _ in range(250)]
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.09


def test_hand_computed_holm() -> None:
    # 0.01 x 4; 0.02 x 3; then 0.03 x 2, and never less than the previous value.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_rejects_step_by_step(p_values: list[float]) -> None:
    rejected = set()
    for left, index in zip(range(len(p_values), 0, -1), np.argsort(p_values, kind="stable"), strict=True):
        if p_values[index] * left > 0.05:
            break
        rejected.add(int(index))
    assert {index for index, p in enumerate(holm(p_values)) if p <= 0.05} == rejected


def rows(r_at_1: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([r_at_1, r_at_1 / 2], axis=1)  # (queries, 2)


def test_a_difference_is_significant_if_there_are_enough_queries() -> None:
    # `big`: 40 of 200 lost, none won. `small`: 2 of 4 lost. `same`: nothing nonzero.
    big, small, same = np.ones(200), np.ones(4), np.ones(50)
    before = {"big": rows(big), "small": rows(small), "same": rows(same)}
    after = {
        "big": rows(np.where(np.arange(200) < 40, 0.0, big)),
        "small": rows(np.array([0.0, 0.0, 1.0, 1.0])),
        "same": rows(same),
    }
    domains, mean = compare_scores(before, after, MEASURES)
    pair = domains["big"]["R@1"]
    assert (pair.a, pair.b, pair.change) == pytest.approx((1.0, 0.8, -0.2))
    assert pair.p == pytest.approx(3 * 2 / 2**40)  # the smallest of three tests
    assert pair.significant
    # Hand-computed: the share lost is binomial(200, 0.2) / 200.
    ends = [-binom.ppf(tail, 200, 0.2) / 200 for tail in (0.975, 0.025)]
    assert [pair.difference.low, pair.difference.high] == pytest.approx(ends, abs=0.006)
    assert not domains["small"]["R@1"].significant  # 50 points, but p = 1/2
    assert not domains["same"]["mMP@5"].significant
    assert domains["same"]["R@1"].p == 1.0
    assert mean["R@1"].change == pytest.approx((-0.2 - 0.5) / 3)
    assert mean["mMP@5"].change == pytest.approx((-0.1 - 0.25) / 3)


def test_pairs_detect_differences_that_two_intervals_do_not() -> None:
    # Half of 400 queries are right; the second run loses eight of them and wins none.
    before = np.repeat([1.0, 0.0], 200)
    after = before.copy()
    after[:8] = 0.0
    domains, mean = compare_scores({"a": rows(before)}, {"a": rows(after)}, MEASURES)
    pair = domains["a"]["R@1"]
    assert pair.b_interval.high > pair.a_interval.low  # the intervals overlap widely
    assert pair.difference.high < 0
    assert pair.significant
    assert mean["R@1"].significant


def test_a_measure_that_is_binary_in_one_domain_only_is_tested_with_sign_flips() -> None:
    rng = np.random.default_rng(0)
    a = {"a": rng.integers(0, 2, (40, 1)).astype(float), "b": rng.random((40, 1))}
    b = {"a": np.ones((40, 1)), "b": rng.random((40, 1))}
    domains, _ = compare_scores(a, b, ["m"])
    p_values = [sign_flip_p([b[domain][:, 0] - a[domain][:, 0]]) for domain in a]
    assert [pairs["m"].p for pairs in domains.values()] == holm(p_values)
    domains, _ = compare_scores({"a": a["a"]}, {"a": b["a"]}, ["m"])
    assert domains["a"]["m"].p == mcnemar_p(b["a"][:, 0] - a["a"][:, 0])
