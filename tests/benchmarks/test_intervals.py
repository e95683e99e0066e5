"""Intervals against brute force, SciPy and simulation."""

import math
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from benchmarks.stats.intervals import (
    RESAMPLES,
    Interval,
    interval_of,
    percentile_interval,
    percentile_of,
    required_queries,
    resample,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_hand_computed_resamples_of_two_queries() -> None:
    # Draws of two from {0, 1}: 0, 1/2, 1/2, 1 with equal chance; the columns stay together.
    drawn = resample({"a": np.array([[0.0, 0.25], [1.0, 0.75]])}).domains["a"]
    values, counts = np.unique(drawn, axis=0, return_counts=True)
    assert values.tolist() == [[0.0, 0.25], [0.5, 0.5], [1.0, 0.75]]
    assert counts / RESAMPLES == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert interval_of(drawn[:, 1]) == Interval(0.25, 0.75)


def test_domains_are_resampled_separately_and_weigh_the_same() -> None:
    # `b` is constant, so the mean is (a + 1) / 2 for any number of queries in `b`.
    drawn = resample({"a": np.array([[0.0], [1.0]]), "b": np.ones((1000, 1))})
    assert np.array_equal(drawn.mean, (drawn.domains["a"] + 1) / 2)


def test_resampling_is_reproducible(rng: np.random.Generator) -> None:
    rows = {"a": rng.random((50, 2))}
    assert np.array_equal(resample(rows).mean, resample(rows).mean)


@pytest.mark.parametrize("queries", [15, 120, 2059])
def test_the_interval_equals_scipys_bootstrap(queries: int, rng: np.random.Generator) -> None:
    r_at_1 = rng.random(queries) < 0.6
    mmp_at_5 = rng.integers(0, 6, queries) / 5
    for values in (r_at_1.astype(float), mmp_at_5):
        ours = interval_of(resample({"a": values[:, None]}).mean[:, 0])
        theirs = bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=1, batch=1000
        ).confidence_interval
        step = 1 / queries + 0.05 * values.std() / math.sqrt(
            queries
        )  # a query, and what 10,000 draws vary by
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=step)


def test_95_percent_of_intervals_of_a_mean_contain_it(rng: np.random.Generator) -> None:
    shares = {"landmarks": (15, 0.7), "food": (82, 0.25), "icons": (687, 0.23)}
    truth = np.mean([share for _, share in shares.values()])
    covered = []
    for _ in range(250):
        sample = {name: (rng.random((n, 1)) < share).astype(float) for name, (n, share) in shares.items()}
        interval = interval_of(resample(sample).mean[:, 0])
        covered.append(interval.low <= truth <= interval.high)
    # 95% less the undercoverage for a domain of 15, within three standard errors.
    assert 0.90 <= np.mean(covered) <= 0.985


def coverage(interval_ranks: tuple[int, int], n: int, p: float) -> float:
    """Probability that the percentile lies between two ranks, summed over all 2^n outcomes of n values."""
    low, high = interval_ranks
    probability = 0.0
    for below in product([True, False], repeat=n):
        count = sum(below)
        probability += (low <= count < high) * p**count * (1 - p) ** (n - count)
    return probability


@pytest.mark.parametrize(("n", "p"), [(8, 0.5), (12, 0.5), (12, 0.4), (14, 0.6)])
def test_order_statistics_equal_the_sum_over_all_outcomes(n: int, p: float) -> None:
    interval = percentile_interval(np.arange(1.0, n + 1), p)  # each value is its rank
    low, high = int(interval.low), int(interval.high)
    assert coverage((low, high), n, p) >= 0.95
    # Neither end can be narrower: it would miss more than 2.5% on its side.
    assert coverage((low + 1, n + 1), n, p) < 0.975
    assert coverage((0, high - 1), n, p) < 0.975


@pytest.mark.parametrize(
    ("n", "p", "bounded"),
    [(5, 0.5, (False, False)), (6, 0.5, (True, True)), (367, 0.99, (True, False)), (368, 0.99, (True, True))],
)
def test_small_samples_bound_one_side_or_none(
    n: int, p: float, bounded: tuple[bool, bool], rng: np.random.Generator
) -> None:
    interval = percentile_interval(rng.random(n), p)
    assert (math.isfinite(interval.low), math.isfinite(interval.high)) == bounded


def test_95_percent_of_intervals_of_a_p99_contain_it(rng: np.random.Generator) -> None:
    true_p99 = math.log(100)  # of an exponential distribution
    intervals = [percentile_interval(rng.exponential(size=2059), 0.99) for _ in range(2000)]
    assert 0.94 <= np.mean([interval.low <= true_p99 <= interval.high for interval in intervals]) <= 0.975


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=300), st.sampled_from([50, 95, 99]))
def test_a_percentile_lies_in_its_interval(latencies_ms: list[float], percent: int) -> None:
    percentile = percentile_of(np.array(latencies_ms), percent)
    low, high = percentile.interval_ms
    assert low is None or low <= percentile.ms + 1e-6
    assert high is None or percentile.ms - 1e-6 <= high


@pytest.mark.parametrize(("p", "queries"), [(0.9, 24_576), (0.95, 57_344), (0.97, 90_112), (0.99, 270_336)])
def test_required_queries_equal_mlperfs_table(p: float, queries: int) -> None:
    # arXiv 1911.02549, Table IV; 97% is section III-D's "only 90K".
    assert required_queries(p) == queries
    for count in (queries - 1, queries):
        percentile = percentile_of(np.arange(float(count)), round(100 * p))
        assert percentile.enough == ("MLPerf" not in percentile.text) == (count == queries)


def test_a_percentile_as_text() -> None:
    few = percentile_of(np.arange(1.0, 101.0), 99)
    assert few.text == "p99 99.0 ms [97.0, ?]; 100 of the 270,336 queries that MLPerf asks for"
    assert few.interval_ms == [97.0, None]
    many = percentile_of(np.arange(8192.0), 50)
    assert many.text == "p50 4095.5 ms [4006.0, 4185.0]"


def test_more_queries_narrow_the_interval(rng: np.random.Generator) -> None:
    widths = [
        (interval := percentile_interval(rng.random(n), 0.99)).high - interval.low
        for n in (1_000, 10_000, 100_000)
    ]
    assert all(wide > narrow for wide, narrow in pairwise(widths))
