"""Latencies of observations: percentiles, throughput, stages. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from benchmarks.runs.run import Observation, answered

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency percentiles of the answered requests, and their throughput."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_s: float

    def percentile_ms(self, percent: int) -> float:
        """The value of a percentile of PERCENTILES."""
        return {50: self.p50_ms, 95: self.p95_ms, 99: self.p99_ms}[percent]


def latency(observations: Sequence[Observation], latencies_ms: Sequence[float] = ()) -> Latency:
    """Percentiles, and answered requests per second of the time in which they were sent and answered.

    The percentiles are those of `latencies_ms`, or else of each answered request.
    """
    with_status_200 = answered(observations)
    if not with_status_200:
        return Latency(0.0, 0.0, 0.0, 0.0)
    latencies_ms = latencies_ms or [observation.latency_ms for observation in with_status_200]
    p50, p95, p99 = np.percentile(latencies_ms, PERCENTILES)
    segments: dict[int, list[Observation]] = {}
    for observation in with_status_200:
        segments.setdefault(observation.segment, []).append(observation)
    busy_s = sum(
        max(observation.done_s for observation in segment)
        - min(observation.scheduled_s for observation in segment)
        for segment in segments.values()
    )
    return Latency(float(p50), float(p95), float(p99), len(with_status_200) / busy_s)


def group_latencies_ms(observations: Sequence[Observation]) -> list[float]:
    """Milliseconds until all requests that were sent together are answered: MultiStream's latency."""
    groups: dict[tuple[int, float], float] = {}
    for observation in observations:
        key = (observation.segment, observation.scheduled_s)
        groups[key] = max(groups.get(key, 0.0), observation.latency_ms)
    return list(groups.values())


def stages_of(observations: Sequence[Observation]) -> dict[str, float]:
    """`stage_means` of observations."""
    latencies_ms = [observation.latency_ms for observation in observations]
    return stage_means([observation.server_ms for observation in observations], latencies_ms)


def tail_of(observations: Sequence[Observation]) -> list[Observation]:
    """The observations with a latency at or above p99; their stages explain p99."""
    if not observations:
        return []
    p99_ms = np.percentile([observation.latency_ms for observation in observations], 99)
    return [observation for observation in observations if observation.latency_ms >= p99_ms]


def stage_means(server_ms: Sequence[Mapping[str, float]], latencies_ms: Sequence[float]) -> dict[str, float]:
    """Mean milliseconds of a request by stage; they add up to the mean latency.

    The stages are the service's; `other` is the rest of its `total`, `http` the time outside the service.
    """
    if not any(server_ms):
        return {}
    stages = sorted({stage for durations in server_ms for stage in durations})
    means = {stage: fmean([durations.get(stage, 0.0) for durations in server_ms]) for stage in stages}
    total = means.pop("total", sum(means.values()))
    return {**means, "other": total - sum(means.values()), "http": fmean(latencies_ms) - total}
