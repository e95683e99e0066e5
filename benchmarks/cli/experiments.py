"""Commands that compare the service with baselines, or stress it."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.baselines.peer import Server, compare, print_comparison
from benchmarks.cli.options import JSON, print_json
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import TargetError
from benchmarks.soak.soak import MAX_GROWTH, print_soaked, run_soak
from benchmarks.tables import count
from benchmarks.targets.process import running_service
from benchmarks.targets.service import info_of

IMAGES_FROM = Annotated[Path, typer.Option(help="Data set that the images come from.")]
ROUNDS = Annotated[int, typer.Option(min=1, help="Rounds; both sides alternate.")]
IMAGES = Annotated[int, typer.Option(min=64, help="Images per round and side.")]
CONCURRENCY = Annotated[int, typer.Option(min=1, max=1024, help="Requests in flight.")]
OCTET = Path("data/octet")


def efficiency(
    data: IMAGES_FROM = OCTET,
    rounds: ROUNDS = 5,
    images: IMAGES = 1000,
    concurrency: CONCURRENCY = 16,
    bulk: Annotated[int, typer.Option(min=1, max=1000, help="Images per request; 1: `/v1/embed`.")] = 1,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also measure a plain FastAPI app and a mosec app.")
    ] = False,
    against: Annotated[
        Path | None, typer.Option(help="Also measure another checkout of this project.", exists=True)
    ] = None,
    as_json: JSON = False,
) -> None:
    """Measure served images/s as a share of the same work in one process on the same cores."""
    # Imported here: this command alone needs the service's code.
    from benchmarks.baselines.efficiency import Load, measure, print_efficiency
    from benchmarks.baselines.others import OtherServers

    if bulk > 1 and (peers or against):
        raise typer.BadParameter("--peers and --against take one image per request: --bulk 1")
    load, others = Load(images, concurrency, bulk), OtherServers(peers, against)
    result = measure(Dataset(data), rounds, load, others, Console())
    print_efficiency(result, Console())
    if as_json:
        names = ("served_images_per_s", "ceiling_images_per_s", "share", "server_cpu_ms")
        servers = [server.summary(result.rounds_cpu_ms) for server in result.others]
        print_json({**{name: getattr(result, name) for name in names}, "others": servers})


def peer(
    url: Annotated[str, typer.Argument(help="The peer's call: http://127.0.0.1:7997/embeddings.")],
    model: Annotated[str, typer.Option(help="The peer's name of its model.")],
    name: Annotated[str, typer.Option(help="Name of the peer in the table.")] = "peer",
    data: IMAGES_FROM = OCTET,
    rounds: ROUNDS = 3,
    images: IMAGES = 320,
    concurrency: CONCURRENCY = 16,
    as_json: JSON = False,
) -> None:
    """Compare images/s with a server of OpenAI's `/embeddings`; the service is started with `UIE_*`."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "service.log"
        with running_service(log, data_dir=f"{scratch}/index") as service:
            info = asyncio.run(info_of(service.url))
            ours = Server("this service", f"{service.url}/v1/embeddings", info["model"]["name"])
            other = Server(name, url, model)
            comparison = compare(Dataset(data), ours, other, rounds, images, concurrency, Console())
    print_comparison(comparison, ours, other, Console())
    if as_json:
        print_json({"ratio": comparison.ratio})


def soak(
    requests: Annotated[int, typer.Option(min=1000, help="Requests, a tenth of them invalid.")] = 20_000,
    concurrency: CONCURRENCY = 32,
    as_json: JSON = False,
) -> None:
    """Send valid and invalid requests to a separate service; check every response and memory growth."""
    result = run_soak(requests, concurrency, Console())
    print_soaked(result, Console())
    if as_json:
        counts = {"requests": requests, "wrong": len(result.wrong), "growth": result.growth}
        print_json({**counts, "warm_rss_mb": result.warm_rss_mb, "end_rss_mb": result.end_rss_mb})
    if result.wrong:
        raise TargetError(f"{count(len(result.wrong), 'request')} not answered as documented")
    if result.growth > MAX_GROWTH:
        raise TargetError(f"the service's memory grew by {result.growth:.1%}, over {MAX_GROWTH:.0%}")
