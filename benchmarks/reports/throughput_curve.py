"""Throughput against latency, as `concurrency` measured it beside a run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import RunError
from benchmarks.load.trial import Trial
from benchmarks.reports.plots import Plot, measured_plot
from benchmarks.runs.run import Run


@dataclass(frozen=True, slots=True)
class Throughput:
    """The loads in the order of their concurrency."""

    trials: list[Trial]
    knee: int  # at a time
    traffic: str  # what was sent, in words
    plot: Plot  # ms over answered/s: `p50`, `p99`
    places: list[tuple[float, float]]  # of each trial's p50 in the plot


def throughput_of(folder: Path, said: Mapping[str, Any]) -> Throughput:
    """What `concurrency` left in `folder`, where it is of the service that `said` (a `run.json`) is of.

    Raises RunError where it is not, or is not whole.
    """
    other = Run(folder).said()
    try:
        summary = json.loads((folder / "summary.json").read_text())
        trials, knee = [Trial(**one) for one in summary["trials"]], int(summary["knee"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder} is no whole run of `concurrency`: run it to its end") from error
    for name in ("model", "precision", "provider"):
        ours, theirs = (one["service"].get(name) for one in (said, other))
        if ours != theirs:
            raise RunError(f"{folder} is of another service: its {name} is {theirs}, the run's {ours}")
    rates = [one.images_per_s for one in trials]
    p50, p99 = ([getattr(one, name) for one in trials] for name in ("p50_ms", "p99_ms"))
    plot, places = measured_plot(rates, {"p50": p50, "p99": p99})
    traffic = f"{other['mix']}, {other['sizes']} sizes, cache-{other['cache']}, {other['seconds']:g} s each"
    return Throughput(trials, knee, traffic, plot, places["p50"])
