"""From torch to the fastest setting, a step at a time: what each one costs in R@1, and what it gives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.compare import Comparison, compare
from benchmarks.points.point import Point, Workplace, measure, python_m, summary_of, variables
from benchmarks.runs import Run

_EFS = (256, 64, 32)


@dataclass(frozen=True)
class Rung:
    """One step's run, and what changed since the step before."""

    point: Point
    run: Run
    since: Comparison | None  # None: the first


def ladder(source: str, provider: str, place: Workplace) -> list[Rung]:
    """Climb it; what is measured already is not measured again. Raises what `measure` raises."""
    models = {name: _exported(source, name, *options, place=place) for name, options in _models(provider)}
    rungs: list[Rung] = []
    for point in steps(source, provider, models):
        run = measure(point, place)
        rungs.append(Rung(point, run, compare(rungs[-1].run, run) if rungs else None))
    return rungs


def steps(source: str, provider: str, models: dict[str, Path]) -> list[Point]:
    """Each keeps what the one before it has, but for the steps that the first three are."""
    precision, draft = list(models)
    settings = {"provider": provider}
    served = Point("2-onnx-fp32", {**settings, "model": source})
    smaller = replace(served, name=f"3-{precision}", settings={**settings, "model": str(models[precision])})
    scaled = replace(smaller, name="4-scaled-decode", settings={**settings, "model": str(models[draft])})
    quantized = {**scaled.settings, "index_quantization": "scalar-int8"}
    rough = replace(scaled, name="5-quantized-index", settings=quantized, exact=False)
    graphs = [
        replace(rough, name=f"{number}-hnsw-ef-{ef}", graph=True, ef=ef)
        for number, ef in enumerate(_EFS, start=6)
    ]
    return [Point("1-torch-fp32", naive=source), served, smaller, scaled, rough, *graphs]


def print_ladder(rungs: Sequence[Rung], console: Console) -> None:
    """A line a step."""
    table = Table("step", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in _COLUMNS[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for rung in rungs:
        table.add_row(*_cells(rung))
    console.print(table)


def to_markdown(rungs: Sequence[Rung]) -> str:
    """The same as a page: the steps, then R@1 and mMP@5 of each domain."""
    domains = list(summary_of(rungs[0].run)["domains"])
    steps_table = [_COLUMNS, ["---", *["---:"] * (len(_COLUMNS) - 1)], *(_cells(rung) for rung in rungs)]
    by_domain = [["R@1 / mMP@5", *domains], ["---", *["---:"] * len(domains)]]
    for rung in rungs:
        rows = summary_of(rung.run)["domains"]
        cells = [f"{100 * rows[one]['R@1']:.1f} / {100 * rows[one]['mMP@5']:.1f}" for one in domains]
        by_domain.append([rung.point.name, *cells])
    tables = ("\n".join(f"| {' | '.join(row)} |" for row in table) for table in (steps_table, by_domain))
    return "\n\n".join(tables) + "\n"


def to_json(rungs: Sequence[Rung]) -> list[dict[str, Any]]:
    """A step each: its run, its figures, the difference in mean R@1 to the step before."""
    return [
        {
            "step": rung.point.name,
            "run": str(rung.run.folder),
            **{key: summary_of(rung.run)[key] for key in ("mean", "all")},
            "difference": rung.since.mean["R@1"].to_json() if rung.since else None,
        }
        for rung in rungs
    ]


_COLUMNS = ["step", "R@1", "since the step before", "mMP@5", "p50 ms", "p99 ms", "images/s", "times"]


def _cells(rung: Rung) -> list[str]:
    summary = summary_of(rung.run)
    mean, whole = summary["mean"], summary["all"]
    change, times = "", ""
    if rung.since:
        pair = rung.since.mean["R@1"]
        low, high = 100 * pair.difference.low, 100 * pair.difference.high
        change = f"{100 * pair.change:+.1f} [{low:+.1f}, {high:+.1f}]{'' if pair.real else ' n.s.'}"
        times = f"{rung.since.b.images_per_s / rung.since.a.images_per_s:.2f}"
    measures = [f"{100 * mean['R@1']:.1f}", change, f"{100 * mean['mMP@5']:.1f}"]
    return [
        rung.point.name,
        *measures,
        f"{whole['p50_ms']:.0f}",
        f"{whole['p99_ms']:.0f}",
        f"{whole['images_per_s']:.1f}",
        times,
    ]


def _models(provider: str) -> list[tuple[str, tuple[str, ...]]]:
    """The fastest precision that this kind of machine has, then with JPEGs decoded at a fraction."""
    precision = "int8" if provider in ("cpu", "openvino") else "fp16"
    smaller = ("--precision", precision)
    return [(precision, smaller), (f"{precision}-draft", (*smaller, "--jpeg", "draft"))]


def _exported(source: str, name: str, *options: str, place: Workplace) -> Path:
    out = place.folder / "models" / name
    if not (out / "manifest.json").exists():
        place.console.print(f"exporting {name} ...")
        data = ("--data", str(place.data.root))
        command = ("model_export", "export", source, "--out", str(out), *options, *data, "--no-store")
        python_m(*command, environment=variables({}))
    return out
