"""Other servers of the service's model, measured in the same rounds by the CPU time of their processes.

All run throughout with the same settings `UIE_*`, and take the same requests alternately.
"""

import asyncio
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from benchmarks.errors import TargetError
from benchmarks.tables import Table
from benchmarks.targets.http import Response, post_all, raw
from benchmarks.targets.process import ServiceProcess, running_module, variables

PATH = "/v1/embed"
_CHECKED = 32  # images whose embeddings are compared
_MAX_DIFFERENCE = 1e-5
_APPS = "benchmarks.baselines.apps"


@dataclass(frozen=True)
class OtherServers:
    """The servers to start beside the service."""

    peers: bool = False  # a plain FastAPI app, and a mosec app if mosec is installed
    against: Path | None = None  # another checkout of this project


@dataclass
class Server:
    """A running server and its results by round."""

    name: str
    process: ServiceProcess
    cpu_ms: list[float] = field(default_factory=list)  # of all its processes, per image
    images_per_s: list[float] = field(default_factory=list)

    def measure(self, send: Callable[[str], object], images: int) -> None:
        """Add a round, in which `send` sends all images to the URL."""
        start, cpu_s = time.perf_counter(), tree_cpu_s(self.process.pid)
        send(self.process.url)
        self.images_per_s.append(images / (time.perf_counter() - start))
        self.cpu_ms.append((tree_cpu_s(self.process.pid) - cpu_s) / images * 1e3)

    def summary(self, service_cpu_ms: Sequence[float]) -> dict[str, Any]:
        """Return the medians over the rounds; `cpu_ratio` is the service's CPU time over this server's."""
        ratios = [ours / other for ours, other in zip(service_cpu_ms, self.cpu_ms, strict=True)]
        medians = map(statistics.median, (self.images_per_s, self.cpu_ms, ratios))
        return {"name": self.name, **dict(zip(("images_per_s", "cpu_ms", "cpu_ratio"), medians, strict=True))}


@contextmanager
def running_servers(others: OtherServers, scratch: Path, console: Console) -> Iterator[list[Server]]:
    """Run the servers; they end on exit, and by themselves if this process dies. Raises TargetError."""
    with ExitStack() as stack:

        def start(name: str, *module: str, folder: Path | None = None, ready: str = "/readyz") -> Server:
            log, index = scratch / f"{module[0]}.log", scratch / f"{module[0]}.index"
            environment = variables({"data_dir": str(index)})
            running = running_module(log, None, module, environment, folder, ready)
            return Server(name, stack.enter_context(running))

        servers = []
        if others.peers:
            servers.append(start("plain FastAPI", f"{_APPS}.plain_fastapi"))
            if importlib.util.find_spec("mosec"):
                servers.append(start("mosec", f"{_APPS}.mosec_app", "--address", "127.0.0.1", ready="/"))
            else:
                console.print("mosec is not installed, so it is not measured")
        if others.against:
            servers.append(start(str(others.against), "service", "serve", folder=others.against))
        yield servers


def check_embeddings(url: str, servers: Sequence[Server], images: Sequence[bytes]) -> None:
    """Raise TargetError if a server returns other embeddings than the service at `url`."""
    expected = _embeddings(url, images[:_CHECKED])
    for server in servers:
        difference = np.abs(_embeddings(server.process.url, images[:_CHECKED]) - expected).max()
        if difference > _MAX_DIFFERENCE:
            raise TargetError(f"{server.name} returns other embeddings: they differ by {difference:.2g}")


def tree_cpu_s(pid: int) -> float:
    """CPU seconds of a process and its living children, user and system."""
    process = psutil.Process(pid)
    times = [part.cpu_times() for part in (process, *process.children(recursive=True))]
    return float(sum(part.user + part.system for part in times))


def print_servers(
    servers: Sequence[Server], service_cpu_ms: Sequence[float], images_per_s: float, console: Console
) -> None:
    """Print the medians of the service and of the others, and the ratios of their CPU time."""
    rows = [["this service", f"{statistics.median(service_cpu_ms):.2f}", f"{images_per_s:.1f}", ""]]
    for server in servers:
        result = server.summary(service_cpu_ms)
        numbers = f"{result['cpu_ms']:.2f}", f"{result['images_per_s']:.1f}", f"{result['cpu_ratio']:.3f}"
        rows.append([server.name, *numbers])
    Table(("server", "CPU ms per image", "images/s", "this service's CPU / its CPU"), rows).print(console)


def _embeddings(url: str, images: Sequence[bytes]) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    def check(response: Response) -> None:
        if response.status != 200:
            raise TargetError(f"{url} answered {response.status}: {response.body}")

    # At concurrency 1 the responses come in the order of the images.
    responses = asyncio.run(post_all(f"{url}{PATH}", map(raw, images), 1, check))
    return np.asarray([response.body["embedding"] for response, _ in responses])
