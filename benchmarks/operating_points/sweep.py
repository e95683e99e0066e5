"""A grid of settings, and those points of it that no other one beats: the Pareto front."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from benchmarks.errors import BenchmarkError, RunError
from benchmarks.operating_points.point import Point, Workplace, invalid_of, measure, print_invalid, summary_of
from benchmarks.runs.run import Run

_ASKED = ("concurrency", "ef", "exact")  # of the requests; every other axis is one of the service's settings


@dataclass(frozen=True)
class Place:
    """A point of the grid, measured."""

    at: dict[str, str]  # by axis
    run: Run
    r_at_1: float
    p99_ms: float
    images_per_s: float
    invalid_because: str | None = None


def axes_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """`max_batch=4,16` each, to values by axis. Raises BenchmarkError."""
    axes: dict[str, list[str]] = {}
    for text in texts:
        said, _, listed = text.partition("=")
        name = said.strip().lower().removeprefix("uie_")
        values = [one.strip() for one in listed.split(",")]
        if not name or not all(values):
            raise BenchmarkError(f"an axis is written max_batch=4,16, not {text!r}")
        if name in axes:
            both = ",".join([*axes[name], *values])
            raise BenchmarkError(f"the axis {name} is given twice: write {name}={both}")
        axes[name] = values
    return axes


def point_at(at: Mapping[str, str]) -> Point:
    """Raises BenchmarkError where a value is none."""
    settings = {name: value for name, value in at.items() if name not in _ASKED}
    try:
        ef = int(at["ef"]) if "ef" in at else None
        exact = {"true": True, "false": False}[at.get("exact", str(ef is None)).lower()]
        streams = int(at.get("concurrency", "16"))
    except (ValueError, KeyError) as error:
        raise BenchmarkError(f"{dict(at)}: {error} is no value for its axis") from error
    if streams < 1 or (ef is not None and ef < 1):
        raise BenchmarkError(f"{dict(at)}: concurrency and ef are 1 at least")
    name = ",".join(f"{axis}={Path(value).name}" for axis, value in at.items())
    return Point(name, settings, exact, ef, graph=not exact, streams=streams)


def sweep(axes: Mapping[str, Sequence[str]], place: Workplace) -> list[Place]:
    """Every point of the grid; those that are measured already are not again.

    Raises BenchmarkError where values have one name or are none, and what `measure` raises.
    """
    for axis, values in axes.items():
        twice = [name for name, count in Counter(Path(value).name for value in values).items() if count > 1]
        if twice:
            raise BenchmarkError(f"two values of {axis} have one name, {twice[0]}: a point is named by it")
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    found = []
    for at, point in [(at, point_at(at)) for at in grid]:  # all are read before the first is measured
        run = measure(point, place)
        summary = summary_of(run)
        whole = summary["all"]
        why = invalid_of([run]).get(point.name)
        found.append(Place(at, run, summary["mean"]["R@1"], whole["p99_ms"], whole["images_per_s"], why))
    return found


def front(places: Sequence[Place], cost: str) -> list[Place]:
    """Those that no other one beats in R@1 without a worse `cost`, best R@1 first; no invalid ones.

    `cost` is p99_ms, of which less is better, or images_per_s, of which more is.
    """
    sign = 1 if cost == "p99_ms" else -1
    best: list[Place] = []
    valid = [one for one in places if not one.invalid_because]
    for one in sorted(valid, key=lambda one: (-one.r_at_1, sign * getattr(one, cost))):
        if not best or sign * getattr(one, cost) < sign * getattr(best[-1], cost):
            best.append(one)
    return best


def print_sweep(places: Sequence[Place], console: Console) -> None:
    """A line a point; a star where it is on a front, and why a point is invalid."""
    right = ("R@1", "p99 ms", "on its front", "images/s", "on its front", "")
    axes = (Column(Text(axis)) for axis in places[0].at)
    table = Table(*axes, *(Column(name, justify="right") for name in right))
    by_latency, by_rate = (front(places, cost) for cost in ("p99_ms", "images_per_s"))
    for one in sorted(places, key=lambda one: -one.r_at_1):
        stars = ["*" if one in best else "" for best in (by_latency, by_rate)]
        figures = (f"{100 * one.r_at_1:.1f}", f"{one.p99_ms:.0f}", f"{one.images_per_s:.1f}")
        mark = "invalid" if one.invalid_because else ""
        at = map(Text, one.at.values())
        table.add_row(*at, figures[0], figures[1], stars[0], figures[2], stars[1], mark)
    console.print(table)
    print_invalid(
        {one.run.folder.name: one.invalid_because for one in places if one.invalid_because}, console
    )


def plot_sweep(places: Sequence[Place], file: Path) -> None:
    """Both fronts, side by side, as a PNG. Raises RunError."""
    from matplotlib.figure import Figure  # imported late: it takes a second

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axis, cost, name in zip(
        figure.subplots(1, 2), ("p99_ms", "images_per_s"), ("p99, ms", "images/s"), strict=True
    ):
        best = front(places, cost)
        for some, draw, colour in ((places, axis.scatter, "0.8"), (best, axis.plot, "0.6")):
            draw([getattr(one, cost) for one in some], [100 * one.r_at_1 for one in some], color=colour)
        for one in best:
            axis.scatter(getattr(one, cost), 100 * one.r_at_1, color="tab:blue", zorder=3)
            axis.annotate(
                ", ".join(Path(value).name for value in one.at.values()),
                (getattr(one, cost), 100 * one.r_at_1),
                textcoords="offset points",
                xytext=(5, 5),
                fontsize=8,
            )
        axis.set_xlabel(name)
        axis.set_ylabel("mean R@1, %")
        axis.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(file, dpi=120)
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error.strerror}; the runs are kept") from error


def to_json(places: Sequence[Place]) -> dict[str, Any]:
    """The points, and the names of those on each front."""
    names = {
        cost: [one.run.folder.name for one in front(places, cost)] for cost in ("p99_ms", "images_per_s")
    }
    points = [
        {
            "at": one.at,
            "R@1": one.r_at_1,
            "p99_ms": one.p99_ms,
            "images_per_s": one.images_per_s,
            "invalid_because": one.invalid_because,
        }
        for one in places
    ]
    return {"points": points, "front": names}
