"""A sweep: a grid of settings, and its Pareto front, the points that no other point beats."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks.errors import BenchmarkError
from benchmarks.files import write_atomically
from benchmarks.operating_points.point import Point, Workspace, invalid_of, measure, print_invalid, summary_of
from benchmarks.runs.run import Run
from benchmarks.tables import Table

_REQUEST_AXES = ("concurrency", "ef", "exact")  # every other axis is a setting of the service


@dataclass(frozen=True)
class GridPoint:
    """A measured point of the grid."""

    axes: dict[str, str]  # value by axis
    run: Run
    r_at_1: float
    p99_ms: float
    images_per_s: float
    invalid_because: str | None = None


class Cost(NamedTuple):
    """A result that is weighed against R@1."""

    name: str
    label: str
    of: Callable[[GridPoint], float]
    sign: int  # 1 if less is better, -1 if more is better


LATENCY = Cost("p99_ms", "p99, ms", lambda point: point.p99_ms, 1)
THROUGHPUT = Cost("images_per_s", "images/s", lambda point: point.images_per_s, -1)
_COSTS = (LATENCY, THROUGHPUT)


def axes_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """Parse texts such as `max_batch=4,16` to values by axis. Raises BenchmarkError."""
    axes: dict[str, list[str]] = {}
    for text in texts:
        key, _, listed = text.partition("=")
        name = key.strip().lower().removeprefix("uie_")
        values = [value.strip() for value in listed.split(",")]
        if not name or not all(values):
            raise BenchmarkError(f"an axis has the form max_batch=4,16, not {text!r}")
        if name in axes:
            both = ",".join([*axes[name], *values])
            raise BenchmarkError(f"the axis {name} is given twice: write {name}={both}")
        axes[name] = values
    return axes


def point_at(axes: Mapping[str, str]) -> Point:
    """The operating point with these values. Raises BenchmarkError if one is not a valid value."""
    settings = {name: value for name, value in axes.items() if name not in _REQUEST_AXES}
    try:
        ef = int(axes["ef"]) if "ef" in axes else None
        exact = {"true": True, "false": False}[axes.get("exact", str(ef is None)).lower()]
        streams = int(axes.get("concurrency", "16"))
    except (ValueError, KeyError) as error:
        raise BenchmarkError(f"{dict(axes)}: {error} is not a valid value for its axis") from error
    if streams < 1 or (ef is not None and ef < 1):
        raise BenchmarkError(f"{dict(axes)}: concurrency and ef must be at least 1")
    name = ",".join(f"{axis}={Path(value).name}" for axis, value in axes.items())
    return Point(name, settings, exact, ef, graph=not exact, streams=streams)


def run_sweep(axes: Mapping[str, Sequence[str]], workspace: Workspace) -> list[GridPoint]:
    """Measure every point of the grid; complete runs are reused.

    Raises BenchmarkError if two values have the same name or one is invalid, and what `measure` raises.
    """
    for axis, listed in axes.items():
        name, count = Counter(Path(value).name for value in listed).most_common(1)[0]
        if count > 1:
            raise BenchmarkError(f"two values of {axis} have the same name, {name}, which names the run")
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    points = [point_at(values) for values in grid]  # all are parsed before the first is measured
    measured = []
    for values, point in zip(grid, points, strict=True):
        run = measure(point, workspace)
        mean, totals = summary_of(run).mean, summary_of(run).totals
        reason = invalid_of([run]).get(point.name)
        measured.append(GridPoint(values, run, mean.r_at_1, totals.p99_ms, totals.images_per_s, reason))
    return measured


def front(points: Sequence[GridPoint], cost: Cost) -> list[GridPoint]:
    """The valid points that no other beats in R@1 without a worse `cost`, best R@1 first."""
    best: list[GridPoint] = []
    valid = [point for point in points if not point.invalid_because]
    for point in sorted(valid, key=lambda point: (-point.r_at_1, cost.sign * cost.of(point))):
        if not best or cost.sign * cost.of(point) < cost.sign * cost.of(best[-1]):
            best.append(point)
    return best


def print_sweep(points: Sequence[GridPoint], console: Console) -> None:
    """Print one line per point, with a star if it is on a front, and the reasons of invalid points."""
    best_latency, best_rate = (front(points, cost) for cost in _COSTS)
    rows = [
        [
            *point.axes.values(),
            f"{100 * point.r_at_1:.1f}",
            f"{point.p99_ms:.0f}",
            "*" if point in best_latency else "",
            f"{point.images_per_s:.1f}",
            "*" if point in best_rate else "",
            "invalid" if point.invalid_because else "",
        ]
        for point in sorted(points, key=lambda point: -point.r_at_1)
    ]
    columns = (*points[0].axes, "R@1", "p99 ms", "on its front", "images/s", "on its front", "")
    Table(columns, rows, wrapped=columns).print(console)
    print_invalid(
        {point.run.folder.name: point.invalid_because for point in points if point.invalid_because}, console
    )


def plot_sweep(points: Sequence[GridPoint], file: Path) -> None:
    """Plot both fronts side by side as a PNG. Raises RunError."""
    from matplotlib.figure import Figure  # imported late: it takes a second

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axis, cost in zip(figure.subplots(1, 2), _COSTS, strict=True):
        best = front(points, cost)
        for drawn, draw, colour in ((points, axis.scatter, "0.8"), (best, axis.plot, "0.6")):
            draw([cost.of(point) for point in drawn], [100 * point.r_at_1 for point in drawn], color=colour)
        for point in best:
            position = (cost.of(point), 100 * point.r_at_1)
            axis.scatter(*position, color="tab:blue", zorder=3)
            name = ", ".join(Path(value).name for value in point.axes.values())
            axis.annotate(name, position, textcoords="offset points", xytext=(5, 5), fontsize=8)
        axis.set_xlabel(cost.label)
        axis.set_ylabel("mean R@1, %")
        axis.spines[["top", "right"]].set_visible(False)
    content = BytesIO()
    figure.savefig(content, dpi=120)
    write_atomically(file, content.getvalue())


def sweep_to_json(points: Sequence[GridPoint]) -> dict[str, Any]:
    """The points, and the names of those on each front."""
    names = {cost.name: [point.run.folder.name for point in front(points, cost)] for cost in _COSTS}
    rows = [
        {
            "at": point.axes,
            "R@1": point.r_at_1,
            **{cost.name: cost.of(point) for cost in _COSTS},
            "invalid_because": point.invalid_because,
        }
        for point in points
    ]
    return {"points": rows, "front": names}
