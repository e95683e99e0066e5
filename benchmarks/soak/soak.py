"""Many requests, some of them invalid, to a separate service: checks every response and memory growth."""

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console

from benchmarks.progress import progress_bar
from benchmarks.soak.faults import narrow_service
from benchmarks.soak.traffic import Outcome, send_all
from benchmarks.tables import Table
from benchmarks.targets.process import ServiceProcess

MAX_GROWTH = 0.05
_SAMPLE_S = 0.25
# Shares of the requests: memory is compared between an interval after the warm-up and the last one.
_AFTER_WARM_UP = (0.2, 0.3)
_END = (0.9, 1.0)


@dataclass(frozen=True)
class Soaked:
    """The outcomes, and the service's memory: mean RSS of all its processes, in MB."""

    outcomes: list[Outcome]
    warm_rss_mb: float
    end_rss_mb: float

    @property
    def growth(self) -> float:
        """Relative growth of the memory from after the warm-up to the end."""
        return self.end_rss_mb / self.warm_rss_mb - 1

    @property
    def wrong(self) -> list[Outcome]:
        """Outcomes that differ from the contract."""
        return [outcome for outcome in self.outcomes if outcome.wrong]


def run_soak(requests: int, concurrency: int, console: Console) -> Soaked:
    """Run a service with the settings of the environment and low limits, and send it requests."""
    with tempfile.TemporaryDirectory() as scratch, narrow_service(Path(scratch)) as service:
        return asyncio.run(_soak(service, requests, concurrency, console))


def print_soaked(result: Soaked, console: Console) -> None:
    """Print the outcomes by row, then the memory."""
    documented = {outcome.row.name: outcome.row for outcome in result.outcomes}
    sent = Counter(outcome.row.name for outcome in result.outcomes)
    wrong = Counter(outcome.row.name for outcome in result.wrong)
    rows = [
        [
            row.name,
            f"{row.status} {row.slug}" if row.status else "client disconnected",
            *(f"{counts[row.name]:,}" for counts in (sent, wrong)),
        ]
        for row in sorted(documented.values(), key=attrgetter("status", "slug", "name"))
    ]
    total = ("all", "", f"{sent.total():,}", f"{wrong.total():,}")
    Table(("request", "documented", "sent", "wrong"), rows, total).print(console)
    for outcome in result.wrong[:10]:
        console.print(f"{outcome.row.name}: {outcome.wrong}", markup=False)
    console.print(
        f"RSS of the service: {result.warm_rss_mb:.0f} MB after the warm-up, "
        f"{result.end_rss_mb:.0f} MB at the end: {result.growth:+.1%}"
    )


async def _soak(service: ServiceProcess, requests: int, concurrency: int, console: Console) -> Soaked:
    outcomes: list[Outcome] = []
    samples: list[tuple[float, float]] = []  # share of the requests that are done, MB
    with progress_bar(console) as progress:
        task = progress.add_task("valid and invalid requests", total=requests)

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            progress.advance(task)

        process = psutil.Process(service.pid)

        async def sample() -> None:
            while True:
                samples.append((len(outcomes) / requests, rss_mb(process)))
                await asyncio.sleep(_SAMPLE_S)

        sampling = asyncio.create_task(sample())
        try:
            await send_all(service.url, requests, concurrency, done)
        finally:
            sampling.cancel()
    samples.append((1.0, rss_mb(process)))
    return Soaked(outcomes, _mean(samples, *_AFTER_WARM_UP), _mean(samples, *_END))


def rss_mb(service: psutil.Process) -> float:
    """Return the RSS of the process and all its descendants."""
    total = service.memory_info().rss
    for child in service.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += child.memory_info().rss
    return float(total / 1e6)


def _mean(samples: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Return the mean of the interval, or the sample nearest to it if it contains none."""
    within = [mb for share, mb in samples if start <= share <= end]
    nearest = min(samples, key=lambda sample: abs(sample[0] - (start + end) / 2))
    return float(np.mean(within or [nearest[1]]))
