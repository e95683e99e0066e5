"""Commands that replay the queries of a data set and summarise the run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.cli.options import DATA, JSON, KEY, LOCAL, PROCESSES, URL, print_json
from benchmarks.datasets.dataset import Dataset, Split
from benchmarks.demo import demo as run_demo
from benchmarks.errors import RunError
from benchmarks.load.driver import Client
from benchmarks.load.scenarios import ScenarioName, scenario_row
from benchmarks.replay.records import Protocol, Scope
from benchmarks.replay.replay import replay as run_replay
from benchmarks.replay.summary import summarise
from benchmarks.reports.terminal import print_table
from benchmarks.runs.records import to_json, write_summary
from benchmarks.scoring.evaluation import SelfExclusion
from benchmarks.tables import count
from benchmarks.targets.target import TargetKind, target_row


def replay(
    data: DATA,
    out: Annotated[Path, typer.Option(help="Run folder; an existing run is resumed.")],
    url: URL = LOCAL,
    target: Annotated[
        TargetKind,
        typer.Option(help="uie: this service. openai, post: a server of embeddings; the harness searches."),
    ] = "uie",
    model: Annotated[str, typer.Option(help="Model name; default: the service's default model.")] = "",
    body: Annotated[
        str, typer.Option(help="With post: raw, form:FIELD, or JSON that contains {base64} or {data_uri}.")
    ] = "raw",
    vector: Annotated[
        str, typer.Option(help="With post: path of the embedding in the response, such as data.0.embedding.")
    ] = "embedding",
    scenario: Annotated[ScenarioName, typer.Option(help="When requests are sent.")] = "ClosedLoop",
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Concurrency of ClosedLoop.")] = 16,
    rate: Annotated[float | None, typer.Option(min=0.01, help="Requests/s of Server.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of Server's arrival times.")] = 0,
    split: Annotated[Split, typer.Option(help="Split of the queries.")] = "test",
    scope: Annotated[Scope, typer.Option(help="separate: each query searches only its domain.")] = "merged",
    self_exclusion: Annotated[
        SelfExclusion,
        typer.Option(help="Exclude the query from its hits by id, or by position as the reference does."),
    ] = "id",
    exact: Annotated[bool, typer.Option(help="Exact search, not HNSW.")] = True,
    ef: Annotated[int | None, typer.Option(min=1, help="ef of HNSW; default: the service's setting.")] = None,
    k: Annotated[int, typer.Option(min=5, max=99, help="Number of hits.")] = 10,
    queries_per_domain: Annotated[
        int | None,
        typer.Option(min=1, help="Limit the queries per domain; met and gldv2 keep all of theirs."),
    ] = None,
    subset_seed: Annotated[int, typer.Option(help="Seed of the subset.")] = 0,
    processes: PROCESSES = 1,
    key: KEY = None,
    resume: Annotated[bool, typer.Option("--resume", help="Fail unless the run exists.")] = False,
    as_json: JSON = False,
) -> None:
    """Send every query once and store the responses: accuracy and latency of the same run."""
    if resume and not (out / "run.json").exists():
        raise RunError(f"{out} holds no run to resume")
    if (scenario == "Server") != (rate is not None):
        raise typer.BadParameter("the scenario Server requires --rate, and no other scenario accepts it")
    protocol = Protocol(split, scope, self_exclusion, exact, ef, k, queries_per_domain, subset_seed)
    data_set = Dataset(data)
    run = run_replay(
        data_set,
        target_row(target, url, model, body, vector),
        protocol,
        scenario_row(scenario, concurrency, rate, seed, in_bulk=target == "uie"),
        out,
        Client(processes, key=key),
        Console(),
    )
    summary = summarise(data_set, run)
    write_summary(run.folder, summary)
    print_table(summary, Console())
    if as_json:
        print_json(to_json(summary))
    if summary.totals.failed:
        reason = summary.unanswered[0].reason
        failed = count(summary.totals.failed, "query", "queries")
        raise RunError(f"{failed} failed, the first with {reason}; the same `replay` retries")
    if not summary.valid:
        raise RunError(f"the run is invalid: {summary.invalid_because[0]}")


def demo(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve on.")] = 3000,
    data: Annotated[Path, typer.Option(help="Folder of Octet, built if missing.")] = Path("data/octet"),
    runs: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs"),
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Concurrency of the queries.")] = 16,
    as_json: JSON = False,
) -> None:
    """Build Octet, start the service, index, replay, and print the table."""
    summary = run_demo(data, runs, port, concurrency, Console())
    if as_json:
        print_json(to_json(summary))
