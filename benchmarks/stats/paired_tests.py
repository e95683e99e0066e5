"""Two runs over the same queries: is a difference more than chance? Pure functions over NumPy arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.stats.intervals import CONFIDENCE, RESAMPLES, SEED, Interval, interval_of, resample

_ROUNDING = 1e-12  # sums of the same numbers in another order are still equal


@dataclass(frozen=True, slots=True)
class Pair:
    """One measure of runs A and B, over one domain or as the mean over domains; shares in [0, 1]."""

    a: float
    b: float
    a_interval: Interval
    b_interval: Interval
    difference: Interval  # of b - a
    p: float  # of domains, corrected for their number (Holm)

    @property
    def change(self) -> float:
        """b - a."""
        return self.b - self.a

    @property
    def real(self) -> bool:
        """By the test: the interval does not know how many domains were looked at."""
        return self.p < 1 - CONFIDENCE

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        ends = {"a": self.a_interval, "b": self.b_interval, "difference": self.difference}
        intervals = {f"{name}_interval": one.to_json() for name, one in ends.items()}
        said = {"a": self.a, "b": self.b, "difference": self.change, **intervals}
        return {**said, "p": self.p, "real": self.real}


def compare_scores(
    a: Mapping[str, NDArray[np.float64]], b: Mapping[str, NDArray[np.float64]], names: Sequence[str]
) -> tuple[dict[str, dict[str, Pair]], dict[str, Pair]]:
    """Pairs by domain and measure, and of the mean over domains by measure.

    `a` and `b` hold (queries, len(names)) per domain, row for row of the same query. A measure that is 0 or 1
    for every query is tested by McNemar's test in each domain; other measures and the means by sign flips.
    """
    changes = {domain: b[domain] - rows for domain, rows in a.items()}
    drawn = [resample(one) for one in (a, b, changes)]
    means = [{domain: rows.mean(axis=0) for domain, rows in one.items()} for one in (a, b)]
    domains: dict[str, dict[str, Pair]] = {domain: {} for domain in a}
    mean = {}
    for column, measure in enumerate(names):
        tested = [one[:, column] for one in changes.values()]
        binary = all(np.isin(rows[:, column], (0.0, 1.0)).all() for one in (a, b) for rows in one.values())
        p_values = [mcnemar_p(one) if binary else sign_flip_p([one]) for one in tested]
        for domain, p in zip(a, holm(p_values), strict=True):
            domains[domain][measure] = _pair(
                [one[domain][column] for one in means],
                [one.domains[domain][:, column] for one in drawn],
                p,
            )
        mean[measure] = _pair(
            [np.mean([rows[column] for rows in one.values()]) for one in means],
            [one.mean[:, column] for one in drawn],
            sign_flip_p(tested),
        )
    return domains, mean


def _pair(values: Sequence[np.floating], drawn: Sequence[NDArray[np.float64]], p: float) -> Pair:
    a, b = (float(value) for value in values)
    a_interval, b_interval, difference = (interval_of(one) for one in drawn)
    return Pair(a, b, a_interval, b_interval, difference, p)


def mcnemar_p(differences: NDArray[np.float64]) -> float:
    """McNemar's exact test, two-sided: were as many queries won as lost?

    `differences` (queries,) are of a 0/1 measure: 1 won, -1 lost, 0 the same in both runs.
    """
    from scipy.stats import binomtest  # imported late: it takes seconds

    won, lost = int((differences > 0).sum()), int((differences < 0).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def sign_flip_p(differences: Sequence[NDArray[np.float64]]) -> float:
    """The paired permutation test, two-sided, of the unweighted mean over domains.

    One array (queries,) a domain. If the two runs are equally good, each query's difference might as well
    have had the other sign; p is the share of RESAMPLES random signs, and of the signs as they are, whose
    mean is as far from zero. Equal sizes flip together: how many stay positive is binomial.
    """
    rng = np.random.default_rng(SEED)
    flipped = np.zeros(RESAMPLES)
    for one in differences:
        sizes, counts = np.unique(np.abs(one[one != 0]), return_counts=True)
        positive = rng.binomial(counts, 0.5, size=(RESAMPLES, len(counts)))
        flipped += (2 * positive - counts) @ sizes / len(one)
    observed = abs(sum(float(one.mean()) for one in differences))
    return float(1 + (np.abs(flipped) >= observed - _ROUNDING).sum()) / (RESAMPLES + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: adjusted p values, in the order given.

    Of tests judged at 5% by these, the chance that any says "real" of mere chance is 5% at most.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - place)))
        adjusted[index] = largest
    return adjusted
