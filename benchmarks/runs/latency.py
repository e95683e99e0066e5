"""What observations say of time: percentiles, stages, how late the client was. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.runs.run import Observation

PERCENTILES = (50, 95, 99)
_TAIL = 99


@dataclass(frozen=True, slots=True)
class Latency:
    """Of the answered queries, from the time each should have been sent."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_s: float


def latency(observations: Sequence[Observation]) -> Latency:
    """Percentiles, and answered queries over the time in which they were asked."""
    answered = [one for one in observations if one.status == 200]
    if not answered:
        return Latency(0.0, 0.0, 0.0, 0.0)
    p50, p95, p99 = np.percentile([one.latency_ms for one in answered], PERCENTILES)
    segments: dict[int, list[Observation]] = {}
    for one in answered:
        segments.setdefault(one.segment, []).append(one)
    busy_s = sum(
        max(one.done_s for one in part) - min(one.scheduled_s for one in part) for part in segments.values()
    )
    return Latency(float(p50), float(p95), float(p99), len(answered) / busy_s)


def latencies_ms(scenario: Mapping[str, Any], answered: Sequence[Observation]) -> list[float]:
    """Of each request; of what was sent together, until all of it was answered."""
    alone = max(scenario["group"], scenario["bulk"]) == 1
    return [one.latency_ms for one in answered] if alone else together(answered)


def together(observations: Sequence[Observation]) -> list[float]:
    """Milliseconds until all that a stream sent together were answered: MultiStream's latency."""
    groups: dict[tuple[int, float], float] = {}
    for one in observations:
        key = (one.segment, one.scheduled_s)
        groups[key] = max(groups.get(key, 0.0), one.latency_ms)
    return list(groups.values())


def stages_of(answered: Sequence[Observation]) -> dict[str, float]:
    """`stage_means` of observations."""
    return stage_means([one.server_ms for one in answered], [one.latency_ms for one in answered])


def tail_of(answered: Sequence[Observation]) -> list[Observation]:
    """Those at p99 of the latency and above: `stages_of` them says where p99 comes from."""
    if not answered:
        return []
    border_ms = np.percentile([one.latency_ms for one in answered], _TAIL)
    return [one for one in answered if one.latency_ms >= border_ms]


def stage_means(server_ms: Sequence[Mapping[str, float]], latencies_ms: Sequence[float]) -> dict[str, float]:
    """Mean milliseconds of a request by where they went; they add up to the mean latency.

    The stages are the service's own; `other` is the rest of its `total`, and `http` is what is outside.
    """
    if not any(server_ms):
        return {}
    stages = sorted({stage for one in server_ms for stage in one})
    means = {stage: _mean([one.get(stage, 0.0) for one in server_ms]) for stage in stages}
    total = means.pop("total", sum(means.values()))
    return {**means, "other": total - sum(means.values()), "http": _mean(latencies_ms) - total}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
