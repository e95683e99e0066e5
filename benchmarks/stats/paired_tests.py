"""Significance tests of the difference between two runs over the same queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.stats.intervals import CONFIDENCE, RESAMPLES, SEED, Interval, interval_of, resample

_ROUNDING = 1e-12  # sums of the same numbers in different orders count as equal


@dataclass(frozen=True, slots=True)
class Pair:
    """A measure of runs A and B, as shares in [0, 1]: of one domain or the mean over domains."""

    a: float
    b: float
    a_interval: Interval
    b_interval: Interval
    difference: Interval  # of b - a
    p: float  # of a domain: corrected for the number of domains (Holm)

    @property
    def change(self) -> float:
        """b - a."""
        return self.b - self.a

    @property
    def significant(self) -> bool:
        """True if p < 0.05. The interval does not decide: it ignores how many domains are compared."""
        return self.p < 1 - CONFIDENCE

    def to_json(self) -> dict[str, Any]:
        """All values, and intervals as `[low, high]`."""
        ends = {"a": self.a_interval, "b": self.b_interval, "difference": self.difference}
        intervals = {f"{name}_interval": interval.to_json() for name, interval in ends.items()}
        values = {"a": self.a, "b": self.b, "difference": self.change}
        return {**values, **intervals, "p": self.p, "real": self.significant}


def compare_scores(
    a: Mapping[str, NDArray[np.float64]], b: Mapping[str, NDArray[np.float64]], names: Sequence[str]
) -> tuple[dict[str, dict[str, Pair]], dict[str, Pair]]:
    """Pairs by domain and measure, and pairs of the means over domains by measure.

    `a` and `b` hold (queries, len(names)) per domain, with the same query in the same row. A measure whose
    values are 0 or 1 for every query, in all domains and both runs, is tested with McNemar's test in each
    domain; another measure with sign flips, as are the means.
    """
    differences = {domain: b[domain] - rows for domain, rows in a.items()}
    drawn = [resample(values) for values in (a, b, differences)]
    means = [{domain: rows.mean(axis=0) for domain, rows in run.items()} for run in (a, b)]
    domains: dict[str, dict[str, Pair]] = {domain: {} for domain in a}
    mean = {}
    for column, measure in enumerate(names):
        tested = [rows[:, column] for rows in differences.values()]
        binary = all(np.isin(rows[:, column], (0.0, 1.0)).all() for run in (a, b) for rows in run.values())
        p_values = [mcnemar_p(rows) if binary else sign_flip_p([rows]) for rows in tested]
        for domain, p in zip(a, holm(p_values), strict=True):
            domains[domain][measure] = _pair(
                [run[domain][column] for run in means],
                [resamples.domains[domain][:, column] for resamples in drawn],
                p,
            )
        mean[measure] = _pair(
            [np.mean([rows[column] for rows in run.values()]) for run in means],
            [resamples.mean[:, column] for resamples in drawn],
            sign_flip_p(tested),
        )
    return domains, mean


def _pair(values: Sequence[np.floating], drawn: Sequence[NDArray[np.float64]], p: float) -> Pair:
    a, b = (float(value) for value in values)
    a_interval, b_interval, difference = map(interval_of, drawn)
    return Pair(a, b, a_interval, b_interval, difference, p)


def mcnemar_p(differences: NDArray[np.float64]) -> float:
    """p value of McNemar's exact two-sided test that as many queries are won as lost.

    `differences` (queries,) are of a 0/1 measure: 1 if run B wins the query, -1 if it loses it, else 0.
    """
    from scipy.stats import binomtest  # imported here because it takes seconds

    won, lost = int((differences > 0).sum()), int((differences < 0).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def sign_flip_p(differences: Sequence[NDArray[np.float64]]) -> float:
    """p value of the two-sided paired permutation test of the unweighted mean over domains.

    `differences` holds one array (queries,) per domain. If the runs are equally good, each difference is as
    likely to have the opposite sign; p is the share of RESAMPLES random assignments of signs, and of the
    observed one, whose mean is as far from zero. Equal sizes are flipped together: the number that stay
    positive is binomial.
    """
    rng = np.random.default_rng(SEED)
    flipped = np.zeros(RESAMPLES)
    for rows in differences:
        sizes, counts = np.unique(np.abs(rows[rows != 0]), return_counts=True)
        positive = rng.binomial(counts, 0.5, size=(RESAMPLES, len(counts)))
        flipped += (2 * positive - counts) @ sizes / len(rows)
    observed = abs(sum(float(rows.mean()) for rows in differences))
    return float(1 + (np.abs(flipped) >= observed - _ROUNDING).sum()) / (RESAMPLES + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values with Holm's correction, in the given order.

    If they are compared with 5%, the probability of any false positive among the tests is at most 5%.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted
