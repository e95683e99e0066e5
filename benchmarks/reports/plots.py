"""Latencies as curves. Positions are in percent of the plot: x from its left, y from its top."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.reports.text import ms
from benchmarks.runs.run import Observation, answered

_PERCENTILES = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
_STEPS = 160  # points of a curve
_SLICES = 60  # of a run's time, at most
_A_SLICE = 20  # answers, at least


@dataclass(frozen=True, slots=True)
class Tick:
    """A tick of an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines in one pair of axes."""

    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: dict[str, str]  # by name, as an SVG polyline's `points`


@dataclass(frozen=True, slots=True)
class Timeline:
    """A run over time, without the pauses before it was resumed."""

    rate: Plot  # images/s
    latency: Plot  # p50 and p95, ms
    resumed: list[float]  # x
    failures: list[float]  # x
    slice_s: float


def segment_starts(observations: Sequence[Observation]) -> tuple[dict[int, float], float]:
    """The start of each segment in seconds of running time, and the duration of all segments."""
    ends: dict[int, float] = {}
    for observation in observations:
        ends[observation.segment] = max(ends.get(observation.segment, 0.0), observation.done_s)
    starts, total_s = {}, 0.0
    for segment, end_s in sorted(ends.items()):
        starts[segment] = total_s
        total_s += end_s
    return starts, max(total_s, 1e-9)


def percentile_plot(observations: Sequence[Observation]) -> Plot | None:
    """Latency over percentiles, on HDR's log axis, by domain and of all (`""`); None without answers."""
    by_name: dict[str, list[float]] = {}
    for observation in answered(observations):
        by_name.setdefault("", []).append(observation.latency_ms)
        by_name.setdefault(observation.domain, []).append(observation.latency_ms)
    if not by_name:
        return None
    decades = max(2.0, math.log10(len(by_name[""])))
    y_ticks, top = _y_axis(max(by_name[""]))
    lines = {name: _percentile_line(latencies, decades, top) for name, latencies in by_name.items()}
    x_ticks = [
        Tick(100 * nines / decades, f"{percentile:g}")
        for percentile in _PERCENTILES
        if (nines := math.log10(100 / (100 - percentile))) <= decades
    ]
    return Plot(x_ticks, y_ticks, lines)


def timeline(observations: Sequence[Observation]) -> Timeline | None:
    """Rate and latency in equal slices of the run's time; None if nothing was answered."""
    done = answered(observations)
    if not done:
        return None
    starts, total_s = segment_starts(observations)

    def end_s(observation: Observation) -> float:
        return starts[observation.segment] + observation.done_s

    at = np.array(list(map(end_s, done)))
    latencies = np.array([observation.latency_ms for observation in done])
    slices = min(_SLICES, max(1, len(done) // _A_SLICE))
    slice_s = total_s / slices
    slot = np.minimum((at / slice_s).astype(int), slices - 1)
    groups = [latencies[slot == number] for number in range(slices)]
    rates = [len(group) / slice_s for group in groups]
    middles = [100 * (number + 0.5) / slices for number in range(slices)]
    p50, p95 = (
        [(x, float(np.percentile(group, p))) for x, group in zip(middles, groups, strict=True) if len(group)]
        for p in (50, 95)
    )
    failed = [observation for observation in observations if observation.status != 200]
    x_ticks = _x_axis(total_s)
    rate_ticks, rate_top = _y_axis(max(rates))
    ms_ticks, ms_top = _y_axis(max(value for _, value in p95))
    edges = [(100 * (number + side) / slices, rates[number]) for number in range(slices) for side in (0, 1)]
    return Timeline(
        rate=Plot(x_ticks, rate_ticks, {"": _line(edges, rate_top)}),
        latency=Plot(x_ticks, ms_ticks, {"p50": _line(p50, ms_top), "p95": _line(p95, ms_top)}),
        resumed=[100 * start / total_s for start in list(starts.values())[1:]],
        failures=sorted(
            {round(100 * end_s(observation) / total_s, 1) for observation in failed}
        ),  # a thousand at most
        slice_s=slice_s,
    )


def measured_plot(x: Sequence[float], y_ms: Mapping[str, Sequence[float]]) -> Plot:
    """Lines through measured points, in their order."""
    right = max(*x, 1e-9) / 0.94  # space for a word beside the last point
    y_ticks, top = _y_axis(max(value for values in y_ms.values() for value in values))
    along = [100 * value / right for value in x]
    lines = {name: _line(list(zip(along, values, strict=True)), top) for name, values in y_ms.items()}
    return Plot(_x_axis(right), y_ticks, lines)


def _percentile_line(latencies: Sequence[float], decades: float, top: float) -> str:
    last = min(decades, math.log10(max(len(latencies), 2)))  # there are no queries beyond it
    places = np.linspace(0, last, _STEPS)
    values = np.percentile(latencies, 100 - 100 / 10**places)
    return _line(list(zip(100 * places / decades, values, strict=True)), top)


def _line(points: Sequence[tuple[float, float]], top: float) -> str:
    return " ".join(f"{x:.2f},{100 - 100 * y / top:.2f}" for x, y in points)


def _y_axis(highest: float) -> tuple[list[Tick], float]:
    """Round values from 0 to above the highest."""
    values = _round_values(4, (1, 2, 2.5, 5, 10), max(highest, 1e-9))
    top = values[-1]
    return [Tick(100 - 100 * value / top, ms(value) if value else "0") for value in values], top


def _x_axis(total: float) -> list[Tick]:
    values = _round_values(6, (1, 2, 5, 10), total)
    return [Tick(100 * value / total, f"{value:g}") for value in values if value <= total]


def _round_values(most: int, steps: Sequence[float], highest: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator  # imported late: it takes a second

    return [float(value) for value in MaxNLocator(most, steps=steps).tick_values(0, highest)]
