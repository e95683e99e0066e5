"""Beside another server that speaks OpenAI's `/embeddings`: the same pictures and requests, in turn.

Both run and have the whole machine for their turn; the ratio is the median of the rounds' ratios.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Column, Table

from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import TargetError
from benchmarks.targets.service import Service, connect
from benchmarks.targets.target import data_uri


@dataclass(frozen=True)
class Server:
    """Where a server takes OpenAI's request, and what it calls its model."""

    name: str
    url: str  # of the call itself: http://127.0.0.1:3000/v1/embeddings
    model: str


@dataclass(frozen=True)
class Turn:
    """One server's part of a round."""

    images_per_s: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Comparison:
    """All rounds; `ratio` is ours over the peer's, in images/s."""

    ours: list[Turn]
    peer: list[Turn]

    @property
    def ratio(self) -> float:
        """Median over the rounds."""
        pairs = zip(self.ours, self.peer, strict=True)
        return statistics.median(ours.images_per_s / peer.images_per_s for ours, peer in pairs)


def compare(
    data: Dataset, ours: Server, peer: Server, rounds: int, images: int, concurrency: int, console: Console
) -> Comparison:
    """`images` test pictures a turn. Raises TargetError where a request fails."""
    uris = [data_uri(picture) for picture in data.pictures_in_turn(images)]
    for server in (ours, peer):  # warm both up
        asyncio.run(_turn(server, uris[: 2 * concurrency], concurrency))
    found = Comparison([], [])
    for number in range(rounds):
        found.ours.append(asyncio.run(_turn(ours, uris, concurrency)))
        found.peer.append(asyncio.run(_turn(peer, uris, concurrency)))
        console.print(
            f"round {number + 1} of {rounds}: {ours.name} {found.ours[-1].images_per_s:.1f} images/s, "
            f"{peer.name} {found.peer[-1].images_per_s:.1f}"
        )
    return found


def print_comparison(found: Comparison, ours: Server, peer: Server, console: Console) -> None:
    """Medians of both, and the ratio."""
    right = {"justify": "right"}
    table = Table("server", *(Column(name, **right) for name in ("images/s", "p50 ms", "p95 ms")))  # type: ignore[arg-type]
    for server, turns in ((ours, found.ours), (peer, found.peer)):
        medians = (statistics.median(getattr(turn, name) for turn in turns) for name in Turn.__annotations__)
        table.add_row(server.name, *(f"{value:.1f}" for value in medians))
    console.print(table)
    console.print(f"{ours.name} over {peer.name}, images/s: {found.ratio:.2f}")


async def model_of(url: str) -> str:
    """The name of the model that our service serves."""
    async with connect(url, 1) as target:
        return str((await target.info())["model"]["name"])


async def _turn(server: Server, uris: Sequence[str], concurrency: int) -> Turn:
    waiting, latencies_ms = iter(uris), list[float]()

    async def worker(target: Service) -> None:
        for uri in waiting:
            start = time.perf_counter()
            answer = await target.openai(server.model, uri)
            latencies_ms.append((time.perf_counter() - start) * 1e3)
            if answer.status != 200 or len(answer.body["data"]) != 1:
                raise TargetError(f"{server.name} answered {answer.status}: {answer.body}")

    async with connect(server.url, concurrency) as target:
        start = time.perf_counter()
        await asyncio.gather(*(worker(target) for _ in range(concurrency)))
        took_s = time.perf_counter() - start
    cuts = statistics.quantiles(latencies_ms, n=20)
    return Turn(len(uris) / took_s, statistics.median(latencies_ms), cuts[18])
