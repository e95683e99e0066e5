"""Throughput against latency, as `concurrency` measured it for the same service."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import RunError
from benchmarks.load.records import ConcurrencySummary, LoadRecord
from benchmarks.load.trial import Trial
from benchmarks.replay.records import ReplayRecord
from benchmarks.reports.plots import Plot, measured_plot
from benchmarks.runs.records import read_record
from benchmarks.runs.run import Run


@dataclass(frozen=True, slots=True)
class Throughput:
    """The trials in the order of their concurrency."""

    trials: list[Trial]
    knee: int  # concurrency
    traffic: str  # description of the requests
    plot: Plot  # ms over answered/s: `p50`, `p99`


def throughput_of(folder: Path, record: ReplayRecord) -> Throughput:
    """The results of `concurrency` in `folder`. Raises RunError if incomplete or of another service."""
    load = Run(folder).record(LoadRecord)
    try:
        summary = read_record(folder / "summary.json", ConcurrencySummary)
    except RunError as error:
        raise RunError(f"{folder} is not a complete run of `concurrency`: {error}") from error
    ours, theirs = record.info, load.info
    for name, value, other in (
        ("model", ours.model.fingerprint, theirs.model.fingerprint),
        ("precision", ours.precision, theirs.precision),
        ("provider", ours.provider, theirs.provider),
    ):
        if other != value:
            raise RunError(f"{folder} was measured on another service: its {name} is {other}, not {value}")
    trials = summary.trials
    rates = [trial.images_per_s for trial in trials]
    latencies_ms = {"p50": [trial.p50_ms for trial in trials], "p99": [trial.p99_ms for trial in trials]}
    traffic = f"{load.mix}, {load.sizes} sizes, cache-{load.cache}, {load.seconds:g} s each"
    return Throughput(trials, summary.knee, traffic, measured_plot(rates, latencies_ms))
