"""Commands that put the service under load."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.baselines.peer import Server, compare, model_of, print_comparison
from benchmarks.cli.options import JSON, print_json
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import TargetError
from benchmarks.soak.soak import MAX_GROWTH, print_soaked
from benchmarks.soak.soak import soak as run_soak
from benchmarks.targets.process import running_service


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
    from benchmarks.baselines.efficiency import Load, measure, print_efficiency

    found = measure(Dataset(data), rounds, Load(images, concurrency, bulk), Console())
    print_efficiency(found, Console())
    if as_json:
        names = ("served_images_per_s", "ceiling_images_per_s", "share")
        print_json({name: getattr(found, name) for name in names})


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
        print_json({"ratio": found.ratio})


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
        print_json({**said, "warm_rss_mb": found.warm_rss_mb, "end_rss_mb": found.end_rss_mb})
    if found.wrong:
        raise TargetError(f"{len(found.wrong)} requests were not answered as documented")
    if found.growth > MAX_GROWTH:
        raise TargetError(f"the service's memory grew by {found.growth:.1%}, over {MAX_GROWTH:.0%}")
