"""Commands that send the queries and say what came of it."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.commands.options import DATA, JSON, LOCAL, URL, print_json
from benchmarks.dataset import Dataset
from benchmarks.demo import demo as run_demo
from benchmarks.errors import RunError
from benchmarks.replay import replay as run_replay
from benchmarks.report import print_table, summarise, write_summary
from benchmarks.runs import Run


def replay(
    data: DATA,
    out: Annotated[Path, typer.Option(help="Run folder; one that is there is resumed.")],
    url: URL = LOCAL,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Queries at a time.")] = 16,
    k: Annotated[int, typer.Option(min=5, max=100, help="Hits asked for.")] = 10,
    as_json: JSON = False,
) -> None:
    """Send every test query once, and keep what came back."""
    asyncio.run(run_replay(Dataset(data), url, out, concurrency, k, Console()))
    summary = _report(Run(out), Console(), as_json)
    if summary["all"]["failed"]:
        first = next((one.error for one in Run(out).observations() if one.status != 200), None)
        raise RunError(
            f"{summary['all']['failed']} queries failed, the first with {first}; replay again to retry"
        )


def report(run: Annotated[Path, typer.Argument(help="A run folder.")], as_json: JSON = False) -> None:
    """Accuracy and latency of a run, per domain and mean."""
    _report(Run(run), Console(), as_json)


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


def _report(run: Run, console: Console, as_json: bool) -> dict[str, Any]:
    summary = summarise(Dataset(Path(run.said()["data"])), run)
    write_summary(run.folder, summary)
    print_table(summary, console)
    if as_json:
        print_json(summary)
    return summary
