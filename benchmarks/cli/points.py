"""Commands that measure several operating points side by side."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.cli.options import DATA, JSON, PROCESSES, print_json
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import BenchmarkError, RunError
from benchmarks.files import write_atomically
from benchmarks.load.driver import Client
from benchmarks.operating_points.ladder import ladder as climb
from benchmarks.operating_points.ladder import print_ladder
from benchmarks.operating_points.ladder import to_json as ladder_json
from benchmarks.operating_points.ladder import to_markdown as ladder_markdown
from benchmarks.operating_points.point import Workplace, refuse_invalid, write_rows
from benchmarks.operating_points.strategies import Systems, print_systems, replay_systems
from benchmarks.operating_points.strategies import to_json as strategies_json
from benchmarks.operating_points.strategies import to_markdown as strategies_markdown
from benchmarks.operating_points.sweep import axes_of, plot_sweep, print_sweep
from benchmarks.operating_points.sweep import sweep as measure_grid
from benchmarks.operating_points.sweep import to_json as sweep_json

SHIPPED = "model_export/zoo/efficientnet-lite0-octet"
OUT = Annotated[Path, typer.Option(help="Folder of the runs; what is measured there is not again.")]
QUERIES = Annotated[
    int | None, typer.Option(min=1, help="A subset of the queries; met and gldv2 stay whole.")
]


def ladder(
    data: DATA,
    out: OUT,
    source: Annotated[str, typer.Option(help="An fp32 model folder.")] = SHIPPED,
    provider: Annotated[str, typer.Option(help="UIE_PROVIDER of the served steps.")] = "cpu",
    queries_per_domain: QUERIES = None,
    processes: PROCESSES = 1,
    as_json: JSON = False,
) -> None:
    """From torch fp32 to int8, scaled decoding, a quantized index and HNSW: what each step costs."""
    console = Console()
    rungs = climb(source, provider, _workplace(data, out, queries_per_domain, processes, console))
    print_ladder(rungs, console)
    write_atomically(out / "ladder.md", ladder_markdown(rungs))
    write_rows((rung.run for rung in rungs), out / "points.csv")
    if as_json:
        print_json({"steps": ladder_json(rungs)})
    refuse_invalid(rung.run for rung in rungs)


def sweep(
    data: DATA,
    out: OUT,
    axis: Annotated[
        list[str],
        typer.Option(help="max_batch=4,16: any UIE_* setting, or concurrency, ef, exact. Several."),
    ],
    queries_per_domain: QUERIES = None,
    processes: PROCESSES = 1,
    as_json: JSON = False,
) -> None:
    """A grid of settings: every point's R@1, p99 and images/s, and the points that no other beats."""
    console = Console()
    places = measure_grid(axes_of(axis), _workplace(data, out, queries_per_domain, processes, console))
    print_sweep(places, console)
    plot_sweep(places, out / "sweep.png")
    write_rows((one.run for one in places), out / "points.csv")
    if as_json:
        print_json(sweep_json(places))
    refuse_invalid(one.run for one in places)


def strategies(
    data: DATA,
    out: OUT,
    model: Annotated[list[Path], typer.Option(help="A universal model's folder. Several.")] = [],  # noqa: B006
    specialist: Annotated[
        list[str],
        typer.Option(help="DOMAIN=FOLDER of a specialist. Of every domain: the oracle as well."),
    ] = [],  # noqa: B006
    queries_per_domain: QUERIES = None,
    processes: PROCESSES = 1,
    as_json: JSON = False,
) -> None:
    """The paper's systems through one live service, each model by its name, and the oracle of specialists."""
    console = Console()
    pairs = [text.partition("=") for text in specialist]
    if not all(domain and folder for domain, _, folder in pairs):
        raise BenchmarkError("a specialist is written DOMAIN=FOLDER")
    systems = Systems(model, {domain: Path(folder) for domain, _, folder in pairs})
    if not systems.folders:
        raise BenchmarkError("name a model or a specialist at least")
    found = replay_systems(systems, _workplace(data, out, queries_per_domain, processes, console))
    print_systems(found, console)
    write_atomically(out / "strategies.md", strategies_markdown(found))
    write_rows(found.values(), out / "points.csv")
    if as_json:
        print_json(strategies_json(found))
    refuse_invalid(found.values())


def _workplace(
    data: Path, out: Path, queries_per_domain: int | None, processes: int, console: Console
) -> Workplace:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be made: {error.strerror}") from error
    return Workplace(Dataset(data), out, queries_per_domain, Client(processes), console)
