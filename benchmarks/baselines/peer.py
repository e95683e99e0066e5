"""Comparison with another server that implements OpenAI's `/embeddings`, on the same images and requests.

Both servers run throughout and are loaded alternately; the ratio is the median of the rounds' ratios.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import TargetError
from benchmarks.tables import Table
from benchmarks.targets.http import Response, post_all
from benchmarks.targets.target import data_uri


@dataclass(frozen=True)
class Server:
    """A server that takes OpenAI's request, and its name for the model."""

    name: str
    url: str  # of the call: http://127.0.0.1:3000/v1/embeddings
    model: str


@dataclass(frozen=True)
class Result:
    """The results of one server in a round."""

    images_per_s: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Comparison:
    """The results of all rounds."""

    ours: list[Result]
    peer: list[Result]

    @property
    def ratio(self) -> float:
        """The throughput of the service divided by the peer's, median over the rounds."""
        pairs = zip(self.ours, self.peer, strict=True)
        return statistics.median(ours.images_per_s / peer.images_per_s for ours, peer in pairs)


def compare(
    data: Dataset, ours: Server, peer: Server, rounds: int, images: int, concurrency: int, console: Console
) -> Comparison:
    """Send `images` test images to each server in each round. Raises TargetError if a request fails."""
    uris = [data_uri(image) for image in data.encoded_images(images)]
    for server in (ours, peer):  # warm-up
        _run(server, uris[: 2 * concurrency], concurrency)
    comparison = Comparison([], [])
    for number in range(rounds):
        comparison.ours.append(_run(ours, uris, concurrency))
        comparison.peer.append(_run(peer, uris, concurrency))
        console.print(
            f"round {number + 1} of {rounds}: {ours.name} {comparison.ours[-1].images_per_s:.1f} images/s, "
            f"{peer.name} {comparison.peer[-1].images_per_s:.1f}"
        )
    return comparison


def print_comparison(comparison: Comparison, ours: Server, peer: Server, console: Console) -> None:
    """Print the medians of both servers, and the ratio."""
    rows = []
    for server, results in ((ours, comparison.ours), (peer, comparison.peer)):
        medians = map(statistics.median, zip(*map(astuple, results), strict=True))
        rows.append([server.name, *(f"{value:.1f}" for value in medians)])
    Table(("server", "images/s", "p50 ms", "p95 ms"), rows).print(console)
    console.print(f"{ours.name} over {peer.name}, images/s: {comparison.ratio:.2f}")


def _run(server: Server, uris: Sequence[str], concurrency: int) -> Result:
    def check(response: Response) -> None:
        if response.status != 200 or len(response.body["data"]) != 1:
            raise TargetError(f"{server.name} answered {response.status}: {response.body}")

    options = {"model": server.model, "encoding_format": "float", "modality": "image"}
    bodies = ({"json": {**options, "input": [uri]}} for uri in uris)
    start = time.perf_counter()
    responses = asyncio.run(post_all(server.url, bodies, concurrency, check))
    duration_s = time.perf_counter() - start
    cuts = statistics.quantiles((latency_ms for _, latency_ms in responses), n=20)
    return Result(len(uris) / duration_s, cuts[9], cuts[18])
