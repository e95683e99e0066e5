"""The highest rate that is served well, by bisection; and the concurrency at which more gives no more."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.errors import BenchmarkError
from benchmarks.load.trial import Trial

GOOD = 0.99  # of the requests at a rate that counts as served
_STEP = 1.05  # bisection ends where the rates are that near to each other
_DOUBLINGS = 12

Try = Callable[[float], Trial]


@dataclass
class Saturated:
    """The rate, and every trial on the way to it."""

    rate_per_s: float = 0.0  # 0: not even the lowest one was served well
    trials: list[Trial] = field(default_factory=list)
    confirmed: list[Trial] = field(default_factory=list)  # at `rate_per_s`


def saturate(attempt: Try, first_rate: float, repeats: int) -> Saturated:
    """The highest rate of which `GOOD` is good, each of `repeats` times.

    From `first_rate` it doubles or halves until the answer is between two rates, and goes to their middle
    (of the logarithms) until they are a twentieth apart. A rate that does not hold again is left for the
    next lower one. Raises BenchmarkError where no rate was high enough to be served badly.
    """
    found = Saturated()

    def good(rate: float) -> bool:
        found.trials.append(attempt(rate))
        return found.trials[-1].good_share >= GOOD

    low, high = _bracket(good, first_rate)
    while low and high / low > _STEP:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if good(middle) else (low, middle)
    while low >= first_rate / 2**_DOUBLINGS:
        found.confirmed = []
        while len(found.confirmed) < repeats:
            found.confirmed.append(attempt(low))
            if found.confirmed[-1].good_share < GOOD:
                break
        else:
            found.rate_per_s = low
            return found
        found.trials += found.confirmed
        low /= _STEP
    found.confirmed = []
    return found


def knee(trials: Sequence[Trial]) -> Trial:
    """Where throughput over latency is highest (Kleinrock's power): beyond it requests mostly wait."""
    return max(trials, key=lambda one: one.images_per_s / one.p50_ms if one.p50_ms else 0.0)


def _bracket(good: Callable[[float], bool], rate: float) -> tuple[float, float]:
    """A rate that is good and one that is not; the first is 0 where none was."""
    if good(rate):
        for _ in range(_DOUBLINGS):
            if not good(2 * rate):
                return rate, 2 * rate
            rate *= 2
        raise BenchmarkError(
            f"{rate:.1f} requests/s were served well too, {2**_DOUBLINGS:,} times the first rate: "
            "the highest one is unknown, and the limit of latency may be too generous"
        )
    for _ in range(_DOUBLINGS):
        if good(rate / 2):
            return rate / 2, rate
        rate /= 2
    return 0.0, rate
