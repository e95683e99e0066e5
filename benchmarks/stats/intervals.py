"""95% intervals of means and of percentiles."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 2309  # the seed of the splits too
_TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


@dataclass(frozen=True, slots=True)
class Interval:
    """A closed interval; an end is infinite if the sample is too small to bound it."""

    low: float
    high: float

    def to_json(self) -> list[float | None]:
        """`[low, high]`, with null for an infinite end."""
        return [end if math.isfinite(end) else None for end in (self.low, self.high)]


@dataclass(frozen=True)
class Resamples:
    """Means of resampled queries."""

    domains: dict[str, NDArray[np.float64]]  # (RESAMPLES, columns) by domain

    @property
    def mean(self) -> NDArray[np.float64]:
        """(RESAMPLES, columns): the unweighted mean over domains of each resample."""
        mean: NDArray[np.float64] = np.mean(list(self.domains.values()), axis=0)
        return mean


def resample(values: Mapping[str, NDArray[np.float64]]) -> Resamples:
    """Draw stratified bootstrap samples: each domain's queries are resampled within the domain.

    `values` holds (queries, columns) per domain, with at least one query. A query's columns (R@1 and mMP@5,
    for example) stay together. The counts of each distinct row in a sample are multinomial, so only those
    counts are drawn, and memory depends on the number of distinct rows (dozens), not of queries.
    """
    rng = np.random.default_rng(SEED)
    domains = {}
    for domain, rows in values.items():
        distinct, counts = np.unique(rows, axis=0, return_counts=True)
        drawn = rng.multinomial(len(rows), counts / len(rows), size=RESAMPLES)  # (RESAMPLES, distinct)
        domains[domain] = drawn @ distinct / len(rows)
    return Resamples(domains)


def interval_of(resampled: NDArray[np.float64]) -> Interval:
    """Middle 95% of one column of resamples (percentile bootstrap)."""
    low, high = np.quantile(resampled, _TAILS)
    return Interval(float(low), float(high))


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """A percentile of a run's latencies, its interval, and the queries that MLPerf requires for it."""

    percentile: int  # 99
    ms: float
    interval_ms: list[float | None]  # low, high; None: the sample is too small
    answered: int
    needed: int
    enough: bool
    text: Annotated[str, Field(alias="said")]


def percentile_of(latencies_ms: NDArray[np.float64], percent: int) -> Percentile:
    """Compute a percentile, and its interval, of at least one latency.

    Its text is `p99 17.2 ms [16.8, 18.0]; 2,059 of the 270,336 queries that MLPerf asks for`.
    """
    ms, ends = float(np.percentile(latencies_ms, percent)), percentile_interval(latencies_ms, percent / 100)
    answered, needed = len(latencies_ms), required_queries(percent / 100)
    interval_ms = ends.to_json()
    text = (
        f"p{percent} {ms:.1f} ms [{', '.join('?' if end is None else f'{end:.1f}' for end in interval_ms)}]"
    )
    if answered < needed:
        text += f"; {answered:,} of the {needed:,} queries that MLPerf asks for"
    return Percentile(
        percentile=percent,
        ms=ms,
        interval_ms=interval_ms,
        answered=answered,
        needed=needed,
        enough=answered >= needed,
        text=text,
    )


def percentile_interval(values: NDArray[np.float64], p: float) -> Interval:
    """Distribution-free interval between two order statistics of `values` (N,).

    The number of values below the true percentile is binomial(N, p); the r-th smallest value is at most the
    percentile unless fewer than r values lie below it. A small sample bounds only one side: p99 needs 368
    values.
    """
    from scipy.stats import binom  # imported here because it takes seconds

    ordered = np.sort(values)
    low, high = (int(rank) for rank in binom.ppf(_TAILS, len(ordered), p))
    return Interval(
        float(ordered[low - 1]) if low >= 1 else -math.inf,
        float(ordered[high]) if high < len(ordered) else math.inf,
    )


def required_queries(p: float) -> int:
    """Number of queries that MLPerf Inference requires to report percentile p, 0 < p < 1.

    "MLPerf Inference Benchmark" (arXiv 1911.02549), section III-D, equations 1 and 2: a margin of a twentieth
    of 1 - p at 99% confidence, rounded up to a multiple of 2^13. Table IV: 24,576 for p90, 57,344 for p95,
    270,336 for p99. (Later rounds of MLPerf allow stopping early for a penalty, which is not implemented
    here.)
    """
    from scipy.stats import norm  # imported here because it takes seconds

    margin = (1 - p) / 20
    queries = float(norm.ppf(1 - (1 - 0.99) / 2)) ** 2 * p * (1 - p) / margin**2
    return math.ceil(queries / 2**13) * 2**13
