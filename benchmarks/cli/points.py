"""Commands that measure several operating points and compare them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.cli.options import DATA, JSON, PROCESSES, print_json
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import BenchmarkError, RunError
from benchmarks.files import write_atomically
from benchmarks.load.driver import Client
from benchmarks.operating_points.ladder import ladder_to_json, ladder_to_markdown, print_ladder, run_ladder
from benchmarks.operating_points.point import Workspace, invalid_of, summary_of
from benchmarks.operating_points.strategies import Systems, print_systems, replay_systems, strategies_to_json
from benchmarks.operating_points.strategies import to_markdown as strategies_markdown
from benchmarks.operating_points.sweep import axes_of, plot_sweep, print_sweep, run_sweep, sweep_to_json
from benchmarks.reports import write_points
from benchmarks.runs.run import Run

SHIPPED = "model_export/zoo/efficientnet-lite0-octet"
OUT = Annotated[Path, typer.Option(help="Folder of the runs; complete runs in it are reused.")]
QUERIES = Annotated[
    int | None, typer.Option(min=1, help="Limit the queries per domain; met and gldv2 keep all of theirs.")
]


def ladder(
    data: DATA,
    out: OUT,
    source: Annotated[str, typer.Option(help="Model folder, fp32.")] = SHIPPED,
    provider: Annotated[str, typer.Option(help="UIE_PROVIDER of the service.")] = "cpu",
    queries_per_domain: QUERIES = None,
    processes: PROCESSES = 1,
    as_json: JSON = False,
) -> None:
    """Measure the cost of each step from torch fp32 to int8, scaled decoding, a quantized index and HNSW."""
    console = Console()
    workspace = _workspace(data, out, queries_per_domain, processes, console)
    steps = run_ladder(source, provider, workspace)
    print_ladder(steps, console)
    write_atomically(out / "ladder.md", ladder_to_markdown(steps))
    _finish([step.run for step in steps], out, {"steps": ladder_to_json(steps)} if as_json else None)


def sweep(
    data: DATA,
    out: OUT,
    axis: Annotated[
        list[str],
        typer.Option(help="max_batch=4,16: a UIE_* setting, or concurrency, ef, exact. Repeatable."),
    ],
    queries_per_domain: QUERIES = None,
    processes: PROCESSES = 1,
    as_json: JSON = False,
) -> None:
    """Measure a grid of settings: R@1, p99 and images/s of every point, and the Pareto front."""
    console = Console()
    points = run_sweep(axes_of(axis), _workspace(data, out, queries_per_domain, processes, console))
    print_sweep(points, console)
    plot_sweep(points, out / "sweep.png")
    _finish([point.run for point in points], out, sweep_to_json(points) if as_json else None)


def strategies(
    data: DATA,
    out: OUT,
    model: Annotated[list[Path], typer.Option(help="Model folder of a universal model. Repeatable.")] = [],  # noqa: B006
    specialist: Annotated[
        list[str],
        typer.Option(
            help="DOMAIN=FOLDER of a specialist. With one per domain, the oracle is measured too. Repeatable."
        ),
    ] = [],  # noqa: B006
    queries_per_domain: QUERIES = None,
    processes: PROCESSES = 1,
    as_json: JSON = False,
) -> None:
    """Measure the paper's systems through one live service, and the oracle made of the specialists."""
    console = Console()
    pairs = [text.partition("=") for text in specialist]
    if not all(domain and folder for domain, _, folder in pairs):
        raise BenchmarkError("a specialist has the form DOMAIN=FOLDER")
    systems = Systems(model, {domain: Path(folder) for domain, _, folder in pairs})
    if not systems.folders:
        raise BenchmarkError("at least one --model or --specialist is required")
    runs = replay_systems(systems, _workspace(data, out, queries_per_domain, processes, console))
    print_systems(runs, console)
    write_atomically(out / "strategies.md", strategies_markdown(runs))
    _finish([*runs.values()], out, strategies_to_json(runs) if as_json else None)


def _finish(runs: Sequence[Run], out: Path, result: dict[str, Any] | None) -> None:
    for run in runs:
        write_points(run, summary_of(run), out / "points.csv")
    if result is not None:
        print_json(result)
    if invalid := invalid_of(runs):
        names = ", ".join(invalid)
        raise RunError(f"invalid: {names}; remove their folders, and the same command measures them again")


def _workspace(
    data: Path, out: Path, queries_per_domain: int | None, processes: int, console: Console
) -> Workspace:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be created: {error.strerror}") from error
    return Workspace(Dataset(data), out, queries_per_domain, Client(processes), console)
