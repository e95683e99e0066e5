"""Verdict on a run: whether the client, and not the service, determined its results."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.errors import RunError
from benchmarks.runs.run import ClientUsage, Observation, answered
from benchmarks.tables import count

_LAG_SHARE = 0.1  # of the median latency
_LAG_REQUESTS = 100  # with fewer, the 99th percentile is the slowest request alone, and the median is judged
_LAG_VARIABLE = "BENCHMARKS_MAX_SEND_LAG_MS"
_CORE_WINDOW_S = 1.0  # over less, start-up and a single scheduling delay decide the share


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a client that is not the bottleneck."""

    send_lag_ms: float = (
        5.0  # at p99, or the median of few requests; a tenth of the median latency is allowed as well
    )
    core_share: float = 0.9  # of one core, by each process

    @classmethod
    def from_environment(cls) -> "Limits":
        """The limits, as environment variables override them. Raises RunError."""
        return cls(
            _number(_LAG_VARIABLE, cls().send_lag_ms),
            _number("BENCHMARKS_MAX_CORE_SHARE", cls().core_share),
        )


def _number(name: str, default: float) -> float:
    value = os.environ.get(name) or default
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise RunError(f"{name}={value} is not a number from 0")
    return number


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Reasons for an invalid run, and checks that it is too short for: one sentence each."""

    invalid_because: list[str]
    not_judged: list[str]


def judge(
    observations: Sequence[Observation],
    open_loop: bool,
    cache_expected: bool,
    usage: Sequence[ClientUsage],
    limits: Limits = DEFAULT_LIMITS,
) -> Verdict:
    """Check the client's send lag (open loop only), its share of a core, and responses from the cache."""
    invalid, not_judged = _judge_lag(observations, limits) if open_loop else ([], [])
    judged = [process.core_share for process in usage if process.wall_s >= _CORE_WINDOW_S]
    if judged and max(judged) > limits.core_share:
        invalid.append(
            f"a client process used {max(judged):.0%} of a core, so the client was the bottleneck: "
            "use more --processes"
        )
    if usage and not judged:
        longest_s = max(process.wall_s for process in usage)
        not_judged.append(
            f"the client's share of a core: {longest_s:.2f} s is too short to judge, "
            f"the minimum is {_CORE_WINDOW_S:g} s"
        )
    cached = sum(observation.from_cache for observation in observations)
    if cached and not cache_expected:
        invalid.append(
            f"{count(cached, 'response')} came from the service's cache, with latencies that are not those "
            "of inference"
        )
    return Verdict(invalid, not_judged)


def send_lag_ms(observations: Sequence[Observation], percent: float) -> float:
    """A percentile of the client's send lag."""
    lags_ms = [observation.send_lag_ms for observation in observations]
    return float(np.percentile(lags_ms, percent)) if lags_ms else 0.0


def _judge_lag(observations: Sequence[Observation], limits: Limits) -> tuple[list[str], list[str]]:
    """The reasons for an invalid run, and the checks that are not judged."""
    latencies_ms = [observation.latency_ms for observation in answered(observations)]
    if not latencies_ms:
        return [], []
    few = (
        f"the client's send lag at p99: {count(len(observations), 'request')}, too few to judge, "
        f"the minimum is {_LAG_REQUESTS}"
    )
    not_judged, percent = ([few], 50) if len(observations) < _LAG_REQUESTS else ([], 99)
    lag_ms, median_ms = send_lag_ms(observations, percent), float(np.median(latencies_ms))
    lagged = (
        f"the client lagged: at p{percent} a request was sent {lag_ms:.1f} ms late, "
        f"with a median latency of {median_ms:.1f} ms: use more --processes, or on a busy machine raise "
        f"{_LAG_VARIABLE}"
    )
    return [lagged] if lag_ms > max(limits.send_lag_ms, _LAG_SHARE * median_ms) else [], not_judged
