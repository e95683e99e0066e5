"""Terminal tables and plots of loads."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.files import write_atomically
from benchmarks.load.trial import Trial
from benchmarks.runs.latency import latency, stages_of, tail_of
from benchmarks.runs.run import Observation, answered
from benchmarks.runs.validity import send_lag_ms
from benchmarks.stats.intervals import percentile_of
from benchmarks.tables import Table, count


def print_trials(trials: Sequence[Trial], knee: Trial | None, console: Console) -> None:
    """Print a row for each trial in the order of its load; the knee is marked."""
    rows = [
        [
            f"{trial.rate_per_s:.1f}/s" if trial.rate_per_s else f"concurrency {trial.streams}",
            f"{trial.requests:,}",
            f"{trial.good_share:.1%}",
            *(str(trial.shed), str(trial.failed)),
            *(f"{value:.1f}" for value in (trial.images_per_s, trial.p50_ms, trial.p99_ms)),
            "knee" if trial is knee else "",
        ]
        for trial in sorted(trials, key=lambda trial: trial.rate_per_s or trial.streams)
    ]
    Table(("load", "sent", "in SLO", "429", "failed", "200/s", "p50 ms", "p99 ms", ""), rows).print(console)


def print_load(trial: Trial, observations: Sequence[Observation], slo_ms: float, console: Console) -> None:
    """Print latencies by kind of request, then by stage."""
    rows = []
    for kind in sorted({observation.kind for observation in observations}):
        of_kind = [observation for observation in observations if observation.kind == kind]
        times, ok = latency(of_kind), len(answered(of_kind))
        rows.append([kind, f"{len(of_kind):,}", f"{ok:,}", f"{times.p50_ms:.1f}", f"{times.p99_ms:.1f}"])
    Table(("request", "sent", "200", "p50 ms", "p99 ms"), rows).print(console)
    successes = answered(observations)
    stages, tail = stages_of(successes), stages_of(tail_of(successes))
    rows = [[stage, f"{ms:.2f}", f"{tail.get(stage, 0.0):.2f}"] for stage, ms in stages.items()]
    Table(("stage", "mean ms", "at p99 and above"), rows).print(console)
    if successes:
        latencies_ms = np.array([observation.latency_ms for observation in successes])
        console.print(percentile_of(latencies_ms, 99).text, highlight=False)
    console.print(f"send lag {send_lag_ms(observations, 99):.1f} ms at p99", highlight=False)
    console.print(
        f"{count(trial.requests, 'request')}, {trial.good_share:.1%} within the SLO (200 in {slo_ms:g} ms), "
        f"{trial.shed} shed, {trial.failed} failed; {trial.images_per_s:.1f} answered/s"
    )
    for check in trial.not_judged:
        console.print(f"not judged: {check}", markup=False, highlight=False)


def plot_trials(trials: Sequence[Trial], knee: Trial, file: Path) -> None:
    """Plot throughput against latency, a point per concurrency, as a PNG. Raises RunError."""
    from matplotlib.figure import Figure  # imported late: it takes a second

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    rates = [trial.images_per_s for trial in trials]
    axis.plot(rates, [trial.p50_ms for trial in trials], "o-", label="p50_ms")
    axis.plot(rates, [trial.p99_ms for trial in trials], "s:", label="p99_ms")
    for trial in trials:
        point = (trial.images_per_s, trial.p50_ms)
        text = f"{trial.streams}, the knee" if trial is knee else str(trial.streams)
        axis.annotate(text, point, textcoords="offset points", xytext=(6, -10), fontsize=8)
    axis.set_xlabel("answered/s")
    axis.set_ylabel("ms")
    axis.set_yscale("log")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    content = BytesIO()
    figure.savefig(content, dpi=120)
    write_atomically(file, content.getvalue())
