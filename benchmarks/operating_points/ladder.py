"""From torch to the fastest setting, a step at a time: what each one costs in R@1, and what it gives."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.comparison.compare import Comparison, compare
from benchmarks.operating_points.claim import claim, model_of
from benchmarks.operating_points.point import (
    Point,
    Workplace,
    invalid_of,
    measure,
    print_invalid,
    python_m,
    summary_of,
    variables,
)
from benchmarks.runs.provenance import commit
from benchmarks.runs.run import Run
from benchmarks.scoring.measures import MEASURES
from benchmarks.stats.paired_tests import Pair

_EFS = (256, 64, 32)  # a search of k = 10 fetches 18 candidates, and a smaller ef acts as 18
_THREADS = "OMP_NUM_THREADS"


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
    # One, unless it was said: a thread a core spins, and was several times slower on two busy cores.
    threads = {_THREADS: os.environ.get(_THREADS, "1")}
    torch = Point("1-torch-fp32", naive=source, environment=threads)
    return [torch, served, smaller, scaled, rough, *graphs]


def print_ladder(rungs: Sequence[Rung], console: Console) -> None:
    """A line a step, then each measure by domain; names are whole on a terminal of 80 columns."""
    invalid = invalid_of(rung.run for rung in rungs)
    table = _table(_COLUMNS)
    for rung in rungs:
        table.add_row(*_cells(rung, invalid))
    console.print(table)
    console.print(_how_torch_ran(rungs), highlight=False)
    print_invalid(invalid, console)
    for measure_ in MEASURES:
        by_domain = _table([measure_, *_domains(rungs[0])])
        for rung in rungs:
            rows = _domains(rung).values()
            by_domain.add_row(rung.point.name, *(f"{100 * row[measure_]:.1f}" for row in rows))
        console.print(by_domain)


def to_markdown(rungs: Sequence[Rung]) -> str:
    """The same as a page: the steps, latencies with intervals, then each domain's measures and changes."""
    invalid = invalid_of(rung.run for rung in rungs)
    domains = list(_domains(rungs[0]))
    steps_table = [_COLUMNS, _rule(_COLUMNS), *(_cells(rung, invalid) for rung in rungs)]
    by_domain = [["R@1 / mMP@5", *domains], _rule(["", *domains])]
    changes = [["change of R@1", *domains], _rule(["", *domains])]
    times = [["ms", "p50", "p99"], _rule(["", "", ""])]
    for rung in rungs:
        cells = [f"{100 * row['R@1']:.1f} / {100 * row['mMP@5']:.1f}" for row in _domains(rung).values()]
        by_domain.append([rung.point.name, *cells])
        if rung.since:
            changes.append([rung.point.name, *(_change(one["R@1"]) for one in rung.since.domains.values())])
        rows = {one["percentile"]: one for one in summary_of(rung.run)["percentiles"]}
        times.append([rung.point.name, *(_with_interval(rows[percent]) for percent in (50, 99))])
    first, *others = (
        "\n".join(f"| {' | '.join(row)} |" for row in table)
        for table in (steps_table, times, by_domain, changes)
    )
    notes = [_how_torch_ran(rungs), *(f"invalid: {name}: {why}" for name, why in invalid.items())]
    return "\n\n".join([first, *notes, *others]) + "\n"


def to_json(rungs: Sequence[Rung]) -> list[dict[str, Any]]:
    """A step each: its run, its figures, the differences of the means to the step before."""
    invalid = invalid_of(rung.run for rung in rungs)
    return [
        {
            "step": rung.point.name,
            "run": str(rung.run.folder),
            **{key: summary_of(rung.run)[key] for key in ("mean", "all")},
            "domains": {
                domain: {name: row[name] for name in MEASURES} for domain, row in _domains(rung).items()
            },
            "difference": _difference(rung.since) if rung.since else None,
            "invalid_because": invalid.get(rung.point.name),
        }
        for rung in rungs
    ]


def _difference(since: Comparison) -> dict[str, Any]:
    """Of the means, of each domain, and the times and rates as ratios."""
    said = since.to_json()
    return {**said["mean"], "domains": said["domains"], "ratio": said["ratio"]}


_CHANGE = "change"
_COLUMNS = ["step", "R@1", _CHANGE, "mMP@5", _CHANGE, "p50", "p99", "img/s", "x"]


def _table(columns: Sequence[str]) -> Table:
    """Tight; where it is too wide only changes are wrapped."""
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    for name in columns:
        left = name == columns[0]
        table.add_column(name, justify="left" if left else "right", no_wrap=name != _CHANGE)
    return table


def _rule(columns: Sequence[str]) -> list[str]:
    return ["---", *["---:"] * (len(columns) - 1)]


def _domains(rung: Rung) -> dict[str, Any]:
    return dict(summary_of(rung.run)["domains"])


def _cells(rung: Rung, invalid: Mapping[str, str]) -> list[str]:
    """Measures and changes in points, p50 and p99 in ms; the last: how many times the images/s before."""
    summary = summary_of(rung.run)
    mean, whole = summary["mean"], summary["all"]
    measures = []
    for name in MEASURES:
        measures += [f"{100 * mean[name]:.1f}", _change(rung.since.mean[name]) if rung.since else ""]
    times = f"{rung.since.b.images_per_s / rung.since.a.images_per_s:.2f}" if rung.since else ""
    return [
        rung.point.name + ("!" if rung.point.name in invalid else ""),
        *measures,
        f"{whole['p50_ms']:.0f}",
        f"{whole['p99_ms']:.0f}",
        f"{whole['images_per_s']:.1f}",
        times,
    ]


def _with_interval(row: Mapping[str, Any]) -> str:
    low, high = ("?" if end is None else f"{end:.0f}" for end in row["interval_ms"])
    return f"{row['ms']:.0f} [{low}, {high}]"


def _change(pair: Pair) -> str:
    low, high = 100 * pair.difference.low, 100 * pair.difference.high
    return f"{100 * pair.change:+.1f}{'' if pair.significant else ' n.s.'} [{low:+.1f},{high:+.1f}]"


def _how_torch_ran(rungs: Sequence[Rung]) -> str:
    torch = rungs[0].point
    said = ", ".join(f"{name}={value}" for name, value in torch.environment.items())
    return f"{torch.name} ran with {said}; change: since the step before, in points, with its 95% interval"


def _models(provider: str) -> list[tuple[str, tuple[str, ...]]]:
    """The fastest precision that this kind of machine has, then with JPEGs decoded at a fraction."""
    precision = "int8" if provider in ("cpu", "openvino") else "fp16"
    smaller = ("--precision", precision)
    return [(precision, smaller), (f"{precision}-draft", (*smaller, "--jpeg", "draft"))]


def _exported(source: str, name: str, *options: str, place: Workplace) -> Path:
    out = place.folder / "models" / name
    asked = {"source": model_of(source), "options": options, "data_fingerprint": place.data.fingerprint}
    claim(out.with_name(f"{name}.json"), {**asked, "commit": commit()}, out / "manifest.json")
    if not (out / "manifest.json").exists():
        place.console.print(f"exporting {name} ...")
        data = ("--data", str(place.data.root))
        command = ("model_export", "export", source, "--out", str(out), *options, *data, "--no-store")
        python_m(*command, environment=variables({}))
    return out
