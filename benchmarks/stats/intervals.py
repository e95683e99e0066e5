"""95% intervals of means and of percentiles: pure functions over NumPy arrays."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 2309  # as the splits have it
_TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


@dataclass(frozen=True, slots=True)
class Interval:
    """Both ends belong to it; an end is infinite where the sample is too small to say it."""

    low: float
    high: float

    def to_json(self) -> list[float | None]:
        """[low, high]; JSON has no infinity, so that is null."""
        return [end if math.isfinite(end) else None for end in (self.low, self.high)]


@dataclass(frozen=True)
class Resamples:
    """Means of resampled queries: per domain, float64 (RESAMPLES, columns)."""

    domains: dict[str, NDArray[np.float64]]

    @property
    def mean(self) -> NDArray[np.float64]:
        """The unweighted mean over domains of each resample: (RESAMPLES, columns)."""
        mean: NDArray[np.float64] = np.mean(list(self.domains.values()), axis=0)
        return mean


def resample(values: Mapping[str, NDArray[np.float64]]) -> Resamples:
    """The bootstrap, stratified: each domain's queries are drawn anew from that domain alone.

    `values` holds (queries, columns) per domain, one query at least; a query's columns (R@1 and mMP@5, say)
    stay together. How often each distinct row is drawn is multinomial, so this is the bootstrap itself, and
    its memory depends on the distinct rows (dozens), not on the queries.
    """
    rng = np.random.default_rng(SEED)
    domains = {}
    for domain, rows in values.items():
        distinct, counts = np.unique(rows, axis=0, return_counts=True)
        drawn = rng.multinomial(len(rows), counts / len(rows), size=RESAMPLES)  # (RESAMPLES, distinct)
        domains[domain] = drawn @ distinct / len(rows)
    return Resamples(domains)


def interval_of(resampled: NDArray[np.float64]) -> Interval:
    """The middle 95% of one column of resamples (the percentile bootstrap)."""
    low, high = np.quantile(resampled, _TAILS)
    return Interval(float(low), float(high))


@dataclass(frozen=True, slots=True)
class Percentile:
    """One percentile of a run's latencies."""

    percent: int  # 99
    value_ms: float
    interval: Interval
    queries: int

    def __str__(self) -> str:
        """`p99 17.2 ms [16.8, 18.0]; 2,059 of the 270,336 queries that MLPerf asks for`."""
        ends = [
            f"{end:.1f}" if math.isfinite(end) else "?" for end in (self.interval.low, self.interval.high)
        ]
        said = f"p{self.percent} {self.value_ms:.1f} ms [{', '.join(ends)}]"
        p = self.percent / 100
        if enough(self.queries, p):
            return said
        return f"{said}; {self.queries:,} of the {queries_asked(p):,} queries that MLPerf asks for"


def percentile_of(latencies_ms: NDArray[np.float64], percent: int) -> Percentile:
    """A percentile of latencies (queries,), one at least, with its interval."""
    return Percentile(
        percent=percent,
        value_ms=float(np.percentile(latencies_ms, percent)),
        interval=percentile_interval(latencies_ms, percent / 100),
        queries=len(latencies_ms),
    )


def percentile_interval(values: NDArray[np.float64], p: float) -> Interval:
    """Whatever the distribution: between two order statistics of `values` (N,).

    How many of N values lie below the true percentile is binomial(N, p); the r-th smallest value is at most
    the percentile unless fewer than r do. Too few values bound one side only: p99 needs 368 for both.
    """
    from scipy.stats import binom  # imported late, here and below: it takes seconds

    ordered = np.sort(values)
    low, high = (int(rank) for rank in binom.ppf(_TAILS, len(ordered), p))
    return Interval(
        float(ordered[low - 1]) if low >= 1 else -math.inf,
        float(ordered[high]) if high < len(ordered) else math.inf,
    )


def queries_asked(p: float) -> int:
    """How many queries MLPerf Inference asks for before it believes a percentile; 0 < p < 1.

    "MLPerf Inference Benchmark" (arXiv 1911.02549), section III-D, equations 1 and 2: within a twentieth of
    1 - p, at 99% confidence, rounded up to a multiple of 2^13. Table IV: 24,576 for p90, 57,344 for p95,
    270,336 for p99. (Later rounds of MLPerf may stop early, for a penalty; that is not done here.)
    """
    from scipy.stats import norm

    margin = (1 - p) / 20
    queries = float(norm.ppf(1 - (1 - 0.99) / 2)) ** 2 * p * (1 - p) / margin**2
    return math.ceil(queries / 2**13) * 2**13


def enough(n: int, p: float) -> bool:
    """Has a run of `n` queries as many as MLPerf asks for?"""
    return n >= queries_asked(p)
