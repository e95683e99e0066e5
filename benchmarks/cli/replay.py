"""Commands that send the queries and say what came of it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.cli.options import DATA, JSON, KEY, LOCAL, PROCESSES, URL, print_json
from benchmarks.datasets.dataset import Dataset, Split
from benchmarks.demo import demo as run_demo
from benchmarks.errors import RunError
from benchmarks.load.driver import Client
from benchmarks.load.scenarios import ScenarioName, scenario_row
from benchmarks.replay.replay import Protocol, Scope
from benchmarks.replay.replay import replay as run_replay
from benchmarks.replay.summary import summarise
from benchmarks.reports.terminal import print_table, write_summary
from benchmarks.runs.run import Run
from benchmarks.scoring.evaluation import SelfExclusion
from benchmarks.targets.target import TargetKind, target_row


def replay(
    data: DATA,
    out: Annotated[Path, typer.Option(help="Run folder; one that is there is resumed.")],
    url: URL = LOCAL,
    target: Annotated[
        TargetKind,
        typer.Option(help="uie: this service. openai, post: any that embeds; the harness then searches."),
    ] = "uie",
    model: Annotated[str, typer.Option(help="As the service calls it; none: its own choice.")] = "",
    body: Annotated[
        str, typer.Option(help="Of post: raw, form:FIELD, or JSON with {base64} or {data_uri} in it.")
    ] = "raw",
    vector: Annotated[
        str, typer.Option(help="Of post: its place in the answer: data.0.embedding.")
    ] = "embedding",
    scenario: Annotated[ScenarioName, typer.Option(help="When requests are sent.")] = "ClosedLoop",
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="ClosedLoop's queries at a time.")] = 16,
    rate: Annotated[float | None, typer.Option(min=0.01, help="Of Server: requests/s.")] = None,
    seed: Annotated[int, typer.Option(help="Of Server's arrivals.")] = 0,
    split: Annotated[Split, typer.Option(help="Whose queries.")] = "test",
    scope: Annotated[Scope, typer.Option(help="separate: a query searches its own domain only.")] = "merged",
    self_exclusion: Annotated[
        SelfExclusion, typer.Option(help="How the query itself is left out; position: as the reference.")
    ] = "id",
    exact: Annotated[bool, typer.Option(help="Exact search, not HNSW.")] = True,
    ef: Annotated[int | None, typer.Option(min=1, help="Of HNSW; the service's own if not said.")] = None,
    k: Annotated[int, typer.Option(min=5, max=99, help="Hits asked for.")] = 10,
    queries_per_domain: Annotated[
        int | None, typer.Option(min=1, help="A subset of the queries; met and gldv2 stay whole.")
    ] = None,
    subset_seed: Annotated[int, typer.Option(help="Of the subset.")] = 0,
    processes: PROCESSES = 1,
    key: KEY = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Only go on with a run that is there; without it, either.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Send every query once, and keep what came back: accuracy and latency of one and the same run."""
    if resume and not (out / "run.json").exists():
        raise RunError(f"there is no run in {out} to go on with")
    if (scenario == "Server") != (rate is not None):
        raise typer.BadParameter("a rate goes with the scenario Server, and Server needs one")
    protocol = Protocol(split, scope, self_exclusion, exact, ef, k, queries_per_domain, subset_seed)
    run = run_replay(
        Dataset(data),
        target_row(target, url, model, body, vector),
        protocol,
        scenario_row(scenario, concurrency, rate, seed, in_bulk=target == "uie"),
        out,
        Client(processes, key=key),
        Console(),
    )
    summary = summarised(run, Console(), as_json)
    if summary["all"]["failed"]:
        first = summary["unanswered"][0]
        raise RunError(
            f"{summary['all']['failed']} queries failed, the first with {first['why']}; replay again to retry"
        )
    if not summary["valid"]:
        raise RunError(f"the run is invalid: {summary['invalid_because'][0]}")


def demo(
    port: Annotated[int, typer.Option(help="Port to serve on.")] = 3000,
    data: Annotated[Path, typer.Option(help="Where Octet is, or is built.")] = Path("data/octet"),
    runs: Annotated[Path, typer.Option(help="Where the run is kept.")] = Path("runs"),
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Queries at a time.")] = 16,
    as_json: JSON = False,
) -> None:
    """Build Octet, start the service, index, replay, and print the table."""
    summary = run_demo(data, runs, port, concurrency, Console())
    if as_json:
        print_json(summary)


def summarised(run: Run, console: Console, as_json: bool) -> dict[str, Any]:
    """A run's summary: written, printed, returned."""
    summary = summarise(Dataset(Path(run.said()["data"])), run)
    write_summary(run.folder, summary)
    print_table(summary, console)
    if as_json:
        print_json(summary)
    return summary
