"""Search for the highest sustainable rate by bisection, and for the knee of a concurrency sweep."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.errors import BenchmarkError
from benchmarks.load.trial import Trial

SUSTAINED_SHARE = 0.99  # of the requests within the SLO at a sustained rate
_STEP = 1.05  # ratio of rates at which the bisection ends
_DOUBLINGS = 12


@dataclass(frozen=True, slots=True)
class Saturated:
    """The highest sustained rate, and all trials of the search."""

    rate_per_s: float  # 0: not even the lowest rate was sustained
    trials: list[Trial]
    confirmed: list[Trial]  # at `rate_per_s`


def find_rate(attempt: Callable[[float], Trial], first_rate: float, repeats: int) -> Saturated:
    """Find the highest rate that is sustained in each of `repeats` trials.

    The rate doubles or halves from `first_rate` until the result is bracketed; then the bracket is bisected
    (geometrically) to 5 %. If the rate is not confirmed, the next lower one is tried. Raises BenchmarkError
    if every rate is sustained.
    """
    trials: list[Trial] = []

    def sustained(rate: float) -> bool:
        trials.append(attempt(rate))
        return trials[-1].good_share >= SUSTAINED_SHARE

    low, high = _bracket(sustained, first_rate)
    while low and high / low > _STEP:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if sustained(middle) else (low, middle)
    while low >= first_rate / 2**_DOUBLINGS:
        before = len(trials)
        if all(sustained(low) for _ in range(repeats)):
            return Saturated(low, trials[:before], trials[before:])
        low /= _STEP
    return Saturated(0.0, trials, [])


def knee(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the highest throughput over latency (Kleinrock's power)."""
    return max(trials, key=lambda trial: trial.images_per_s / trial.p50_ms if trial.p50_ms else 0.0)


def _bracket(sustained: Callable[[float], bool], rate: float) -> tuple[float, float]:
    """Return a sustained rate and one that is not; the first is 0 if none is sustained."""
    if sustained(rate):
        for _ in range(_DOUBLINGS):
            if not sustained(2 * rate):
                return rate, 2 * rate
            rate *= 2
        raise BenchmarkError(
            f"{rate:.1f} requests/s, {2**_DOUBLINGS:,} times the first rate, are within the SLO as well: "
            "the highest rate is unknown; lower --slo-ms"
        )
    for _ in range(_DOUBLINGS):
        if sustained(rate / 2):
            return rate / 2, rate
        rate /= 2
    return 0.0, rate
