"""Loads on the terminal."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from benchmarks.errors import RunError
from benchmarks.load.trial import Trial
from benchmarks.runs.latency import latency, stages_of, tail_of
from benchmarks.runs.run import Observation, answered
from benchmarks.runs.validity import send_lag_ms
from benchmarks.stats.intervals import percentile_of


def print_trials(trials: Sequence[Trial], knee: Trial | None, console: Console) -> None:
    """A line each, in the order of their load; the knee is marked."""
    names = ("load", "sent", "good", "429", "failed", "200/s", "p50 ms", "p99 ms", "")
    columns = (Column(name, justify="right", no_wrap=True) for name in names)
    table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for one in sorted(trials, key=lambda one: one.rate_per_s or one.streams):
        table.add_row(
            f"{one.rate_per_s:.1f}/s" if one.rate_per_s else f"{one.streams} at a time",
            f"{one.requests:,}",
            f"{one.good_share:.1%}",
            *(str(one.shed), str(one.failed)),
            *(f"{value:.1f}" for value in (one.images_per_s, one.p50_ms, one.p99_ms)),
            "knee" if one is knee else "",
        )
    console.print(table)


def print_load(found: Trial, observations: Sequence[Observation], slo_ms: float, console: Console) -> None:
    """By kind of request, then by stage."""
    table = Table("request", *(Column(name, justify="right") for name in ("sent", "200", "p50 ms", "p99 ms")))
    for kind in sorted({one.kind for one in observations}):
        some = [one for one in observations if one.kind == kind]
        times = latency(some)
        ok = len(answered(some))
        table.add_row(kind, f"{len(some):,}", f"{ok:,}", f"{times.p50_ms:.1f}", f"{times.p99_ms:.1f}")
    console.print(table)
    good = answered(observations)
    tail, whole = stages_of(tail_of(good)), stages_of(good)
    table = Table("stage", Column("mean ms", justify="right"), Column("at p99 and above", justify="right"))
    for stage, ms in whole.items():
        table.add_row(stage, f"{ms:.2f}", f"{tail.get(stage, 0.0):.2f}")
    console.print(table)
    if good:
        console.print(str(percentile_of(np.array([one.latency_ms for one in good]), 99)), highlight=False)
    console.print(f"sent {send_lag_ms(observations, 99):.1f} ms late at p99", highlight=False)
    console.print(
        f"{found.requests:,} requests, {found.good_share:.1%} good (200 within {slo_ms:g} ms), "
        f"{found.shed} shed, {found.failed} failed; {found.images_per_s:.1f} answered/s"
    )
    for check in found.not_judged:
        console.print(f"not judged: {check}", markup=False, highlight=False)


def plot_trials(trials: Sequence[Trial], knee: Trial, file: Path) -> None:
    """Throughput against latency, a point a concurrency, as a PNG. Raises RunError."""
    from matplotlib.figure import Figure  # imported late: it takes a second

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    rates = [one.images_per_s for one in trials]
    for name, style in (("p50_ms", "o-"), ("p99_ms", "s:")):
        axis.plot(rates, [getattr(one, name) for one in trials], style, label=name)
    for one in trials:
        where = (one.images_per_s, one.p50_ms)
        text = f"{one.streams}, the knee" if one is knee else str(one.streams)
        axis.annotate(text, where, textcoords="offset points", xytext=(6, -10), fontsize=8)
    axis.set_xlabel("answered/s")
    axis.set_ylabel("ms")
    axis.set_yscale("log")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(file, dpi=120)
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error.strerror}") from error
