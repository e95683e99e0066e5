"""The ladder: from torch to the fastest settings, step by step, with the cost of each step in R@1."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.comparison.compare import Comparison, compare, pairs_to_json
from benchmarks.operating_points.inputs import check_inputs, fingerprints_of
from benchmarks.operating_points.point import Point, Workspace, invalid_of, measure, print_invalid, summary_of
from benchmarks.runs.provenance import commit
from benchmarks.runs.records import to_json
from benchmarks.runs.run import Run
from benchmarks.scoring.measures import MEASURES
from benchmarks.stats.paired_tests import Pair
from benchmarks.tables import Table
from benchmarks.targets.process import python_m

_EFS = (256, 64, 32)  # a search with k = 10 fetches 18 candidates, so a smaller ef has the effect of 18
_THREADS = "OMP_NUM_THREADS"
_CHANGE = "change"


@dataclass(frozen=True)
class Step:
    """The run of one step, and its comparison with the step before."""

    point: Point
    run: Run
    since: Comparison | None  # None: the first step


def run_ladder(source: str, provider: str, workspace: Workspace) -> list[Step]:
    """Measure every step; complete runs are reused. Raises what `measure` raises."""
    precision = "int8" if provider in ("cpu", "openvino") else "fp16"  # the fastest of the provider
    draft, options = f"{precision}-draft", ("--precision", precision)
    models = {
        precision: _exported(source, precision, options, workspace),
        draft: _exported(source, draft, (*options, "--jpeg", "draft"), workspace),
    }
    steps: list[Step] = []
    for point in ladder_points(source, provider, models):
        run = measure(point, workspace)
        steps.append(Step(point, run, compare(steps[-1].run, run) if steps else None))
    return steps


def ladder_points(source: str, provider: str, models: dict[str, Path]) -> list[Point]:
    """The points of the ladder; from the third on, each keeps the settings of the one before it."""
    precision, draft = list(models)
    served = Point("2-onnx-fp32", {"provider": provider, "model": source})
    smaller = Point(f"3-{precision}", {"provider": provider, "model": str(models[precision])})
    scaled = Point("4-scaled-decode", {"provider": provider, "model": str(models[draft])})
    rough = Point("5-quantized-index", {**scaled.settings, "index_quantization": "scalar-int8"}, exact=False)
    graphs = [
        replace(rough, name=f"{number}-hnsw-ef-{ef}", graph=True, ef=ef)
        for number, ef in enumerate(_EFS, start=6)
    ]
    # One thread by default: threads spin, and one per core was several times slower on two busy cores.
    threads = {_THREADS: os.environ.get(_THREADS, "1")}
    torch = Point("1-torch-fp32", naive=source, environment=threads)
    return [torch, served, smaller, scaled, rough, *graphs]


def print_ladder(steps: Sequence[Step], console: Console) -> None:
    """Print one line per step, then each measure by domain; step names fit into 80 columns."""
    _steps_table(steps).print(console)
    console.print(_note(steps), highlight=False)
    print_invalid(invalid_of(step.run for step in steps), console)
    for measure_name in MEASURES:
        _domain_table(steps, [measure_name]).print(console)


def ladder_to_markdown(steps: Sequence[Step]) -> str:
    """The ladder in Markdown: steps, latencies with intervals, then measures and changes by domain."""
    invalid = invalid_of(step.run for step in steps)
    times = [[step.point.name, *(_with_interval(step, percent) for percent in (50, 99))] for step in steps]
    changes = [
        [step.point.name, *(_change(pairs["R@1"]) for pairs in step.since.domains.values())]
        for step in steps
        if step.since
    ]
    parts = [
        _steps_table(steps).to_markdown(),
        _note(steps),
        *(f"invalid: {name}: {reason}" for name, reason in invalid.items()),
        Table(("ms", "p50", "p99"), times).to_markdown(),
        _domain_table(steps, MEASURES).to_markdown(),
        Table(("change of R@1", *summary_of(steps[0].run).domains), changes).to_markdown(),
    ]
    return "\n\n".join(parts) + "\n"


def ladder_to_json(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The steps as JSON: the run, its results, and the differences from the step before."""
    invalid = invalid_of(step.run for step in steps)
    return [
        {
            "step": step.point.name,
            "run": str(step.run.folder),
            "mean": to_json(summary_of(step.run).mean),
            "all": to_json(summary_of(step.run).totals),
            "domains": {
                domain: {name: row.share(name) for name in MEASURES}
                for domain, row in summary_of(step.run).domains.items()
            },
            "difference": step.since
            and {**pairs_to_json(step.since.mean), **step.since.differences_to_json()},
            "invalid_because": invalid.get(step.point.name),
        }
        for step in steps
    ]


def _steps_table(steps: Sequence[Step]) -> Table:
    """Measures and changes in points, p50 and p99 in ms, images/s and their ratio to the step before."""
    rows = []
    for step in steps:
        summary, since = summary_of(step.run), step.since
        row = [step.point.name if summary.valid else f"{step.point.name}!"]
        for name in MEASURES:
            row += [f"{100 * summary.mean.share(name):.1f}", _change(since.mean[name]) if since else ""]
        row += [f"{ms:.0f}" for ms in (summary.totals.p50_ms, summary.totals.p99_ms)]
        ratio = f"{since.images_per_s_ratio:.2f}" if since else ""
        rows.append([*row, f"{summary.totals.images_per_s:.1f}", ratio])
    columns = ("step", "R@1", _CHANGE, "mMP@5", _CHANGE, "p50", "p99", "img/s", "x")
    return Table(columns, rows, wrapped=(_CHANGE,), padding=0)


def _domain_table(steps: Sequence[Step], measures: Sequence[str]) -> Table:
    rows = []
    for step in steps:
        domains = summary_of(step.run).domains
        shares = ([f"{100 * row.share(name):.1f}" for name in measures] for row in domains.values())
        rows.append([step.point.name, *map(" / ".join, shares)])
    return Table((" / ".join(measures), *domains), rows, padding=0)


def _with_interval(step: Step, percent: int) -> str:
    row = next(row for row in summary_of(step.run).percentiles if row.percentile == percent)
    low, high = ("?" if end_ms is None else f"{end_ms:.0f}" for end_ms in row.interval_ms)
    return f"{row.ms:.0f} [{low}, {high}]"


def _change(pair: Pair) -> str:
    low, high = 100 * pair.difference.low, 100 * pair.difference.high
    return f"{100 * pair.change:+.1f}{'' if pair.significant else ' n.s.'} [{low:+.1f},{high:+.1f}]"


def _note(steps: Sequence[Step]) -> str:
    torch = steps[0].point
    environment = ", ".join(f"{name}={value}" for name, value in torch.environment.items())
    return f"{torch.name} ran with {environment}; change: from the step before, in points, with 95% interval"


def _exported(source: str, name: str, options: Sequence[str], workspace: Workspace) -> Path:
    out = workspace.folder / "models" / name
    inputs = {
        "source": fingerprints_of(source),
        "options": options,
        "data_fingerprint": workspace.data.fingerprint,
        "commit": commit(),
    }
    check_inputs(out.with_name(f"{name}.json"), inputs, out / "manifest.json")
    if not (out / "manifest.json").exists():
        workspace.console.print(f"exporting {name} ...")
        data = ("--data", str(workspace.data.root))
        python_m("model_export", "export", source, "--out", str(out), *options, *data, "--no-store")
    return out
