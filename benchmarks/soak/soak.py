"""Many requests, some of them broken, at a service of its own: is every answer right, and is memory flat?"""

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Column, Table

from benchmarks.progress import progress_bar
from benchmarks.soak.faults import Row, narrow_service
from benchmarks.soak.traffic import Outcome, send_all
from benchmarks.targets.process import ServiceProcess

MAX_GROWTH = 0.05
_SAMPLE_S = 0.25
# Shares of the requests: memory is compared between a stretch after the warm-up and the last one.
_AFTER_WARM_UP = (0.2, 0.3)
_END = (0.9, 1.0)


@dataclass(frozen=True)
class Soaked:
    """What became of the requests, and the service's memory: mean RSS of all its processes, in MB."""

    outcomes: list[Outcome]
    warm_rss_mb: float
    end_rss_mb: float

    @property
    def growth(self) -> float:
        """From after the warm-up to the end, as a share."""
        return self.end_rss_mb / self.warm_rss_mb - 1

    @property
    def wrong(self) -> list[Outcome]:
        """Those that were answered otherwise than the contract says."""
        return [outcome for outcome in self.outcomes if outcome.wrong]


def soak(requests: int, concurrency: int, console: Console) -> Soaked:
    """Starts the service with the settings of the environment, but small limits."""
    with tempfile.TemporaryDirectory() as scratch, narrow_service(Path(scratch)) as service:
        return asyncio.run(_soak(service, requests, concurrency, console))


def print_soaked(found: Soaked, console: Console) -> None:
    """The answers by kind of request, then the memory."""
    rows: dict[str, Row] = {outcome.row.name: outcome.row for outcome in found.outcomes}
    sent = Counter(outcome.row.name for outcome in found.outcomes)
    wrong = Counter(outcome.row.name for outcome in found.wrong)
    table = Table(
        "request", "documented", Column("sent", justify="right"), Column("otherwise", justify="right")
    )
    for name, row in sorted(rows.items(), key=lambda item: (item[1].status, item[1].slug, item[0])):
        documented = f"{row.status} {row.slug}" if row.status else "nobody listens"
        table.add_row(name, documented, f"{sent[name]:,}", f"{wrong[name]:,}")
    table.add_section()
    table.add_row("all", "", f"{len(found.outcomes):,}", f"{len(found.wrong):,}")
    console.print(table)
    for outcome in found.wrong[:10]:
        console.print(f"{outcome.row.name}: {outcome.wrong}", markup=False)
    console.print(
        f"RSS of the service: {found.warm_rss_mb:.0f} MB after the warm-up, "
        f"{found.end_rss_mb:.0f} MB at the end: {found.growth:+.1%}"
    )


async def _soak(service: ServiceProcess, requests: int, concurrency: int, console: Console) -> Soaked:
    outcomes: list[Outcome] = []
    samples: list[tuple[float, float]] = []  # share of the requests that are done, MB
    with progress_bar(console) as progress:
        task = progress.add_task("good and broken requests", total=requests)

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            progress.advance(task)

        async with _sampled(service.pid, samples, lambda: len(outcomes) / requests):
            await send_all(service.url, requests, concurrency, done)
    return Soaked(outcomes, _mean(samples, *_AFTER_WARM_UP), _mean(samples, *_END))


@contextlib.asynccontextmanager
async def _sampled(
    pid: int, samples: list[tuple[float, float]], share_done: Callable[[], float]
) -> AsyncIterator[None]:
    service = psutil.Process(pid)

    async def sample() -> None:
        while True:
            samples.append((share_done(), rss_mb(service)))
            await asyncio.sleep(_SAMPLE_S)

    sampling = asyncio.create_task(sample())
    try:
        yield
    finally:
        sampling.cancel()
    samples.append((share_done(), rss_mb(service)))


def rss_mb(service: psutil.Process) -> float:
    """Of the process and all below it."""
    total = service.memory_info().rss
    for child in service.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += child.memory_info().rss
    return float(total / 1e6)


def _mean(samples: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Of the stretch; of the sample nearest to it where none fell into it."""
    within = [mb for share, mb in samples if start <= share <= end]
    nearest = min(samples, key=lambda sample: abs(sample[0] - (start + end) / 2))
    return float(np.mean(within or [nearest[1]]))
