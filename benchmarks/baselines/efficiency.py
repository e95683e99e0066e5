"""Efficiency of serving: served images/s divided by the throughput of the same work in one process.

It imports the service, as `apps/model.py` does and no other benchmark: the ceiling is the service's decoding,
preprocessing and session, called in a loop in this process on the same cores. All sides alternate, so that
other load on the machine affects each of them; the share is the median over the rounds.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.baselines.others import (
    PATH,
    OtherServers,
    Server,
    check_embeddings,
    print_servers,
    running_servers,
    tree_cpu_s,
)
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import TargetError
from benchmarks.runs.latency import stage_means
from benchmarks.tables import Table, count
from benchmarks.targets.http import Response, multipart, post_all, raw
from benchmarks.targets.process import ServiceProcess, running_service
from service.inference.encoder import Encoder
from service.inference.images import decode
from service.manifest import load_manifest
from service.settings import Settings, load_settings

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Efficiency:
    """Medians over the rounds; CPU times are per image."""

    served_images_per_s: float
    ceiling_images_per_s: float
    share: float
    share_without_client: float  # without the client's CPU time, but with idle time and other processes
    server_cpu_ms: float
    client_cpu_ms: float
    ceiling_cpu_ms: float
    idle_cpu_ms: float
    others_cpu_ms: float  # other processes on this machine, and other guests of its host
    stages_ms: dict[str, float]  # mean wall time of a request by stage
    answered: int  # requests, all with status 200
    rounds_cpu_ms: list[float]  # of the server, by round
    others: list[Server]


@dataclass(frozen=True)
class _Round:
    served: float  # images/s
    ceiling: float  # images/s
    server_cpu_s: float
    client_cpu_s: float
    ceiling_cpu_s: float
    idle_cpu_s: float
    responses: list[tuple[Response, float]]  # with latencies in ms


@dataclass(frozen=True)
class Load:
    """The load of a round."""

    images: int
    concurrency: int
    bulk: int  # images in a request; 1: `/v1/embed`


def measure(data: Dataset, rounds: int, load: Load, others: OtherServers, console: Console) -> Efficiency:
    """Process the same images on all sides. Raises TargetError if a request fails."""
    images = data.encoded_images(load.images)
    settings = load_settings()
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "service.log"
        with (
            running_service(log, data_dir=f"{scratch}/index") as service,
            running_servers(others, Path(scratch), console) as servers,
        ):
            check_embeddings(service.url, servers, images)
            ceiling = _Ceiling(settings)
            ceiling.run(images[:64])  # warm-up of all sides
            for url in (service.url, *(server.process.url for server in servers)):
                _serve(url, images[:64], load)
            results = []
            for number in range(rounds):
                result = _run_round(service, ceiling, images, load)
                results.append(result)
                for server in servers:
                    server.measure(partial(_serve, images=images, load=load), len(images))
                console.print(
                    f"round {number + 1} of {rounds}: served {result.served:.0f} images/s, "
                    f"ceiling {result.ceiling:.0f}, share {result.served / result.ceiling:.3f}"
                )
    return _summary(results, len(images), servers)


def print_efficiency(efficiency: Efficiency, console: Console) -> None:
    """Print throughput, CPU time and stages."""
    server_ms, ceiling_ms = efficiency.server_cpu_ms, efficiency.ceiling_cpu_ms
    console.print(
        f"{efficiency.answered:,} requests, all with status 200\n"
        f"served {efficiency.served_images_per_s:.1f} images/s, in process "
        f"{efficiency.ceiling_images_per_s:.1f}: share {efficiency.share:.3f}\n"
        f"by CPU time, without the client and idle time: {ceiling_ms:.2f} of {server_ms:.2f} ms per image: "
        f"share {ceiling_ms / server_ms:.3f}\n"
        f"without the client's CPU time, with idle time: share {efficiency.share_without_client:.3f}"
    )
    rows = {
        "decoding, preprocessing, inference (the ceiling)": ceiling_ms,
        "service: HTTP, BentoML, queueing, JSON": server_ms - ceiling_ms,
        "client, on the same cores": efficiency.client_cpu_ms,
        "idle": efficiency.idle_cpu_ms,
        "other processes": efficiency.others_cpu_ms,
    }
    for title, unit, values in (
        ("CPU time per served image", "ms", rows),
        ("time of a request by stage", "mean ms", efficiency.stages_ms),
    ):
        Table((title, unit), [[name, f"{ms:.2f}"] for name, ms in values.items()]).print(console)
    if efficiency.others:
        print_servers(efficiency.others, efficiency.rounds_cpu_ms, efficiency.served_images_per_s, console)


class _Ceiling:
    """The service's session, concurrent inferences and batch size in a loop.

    Each inference thread decodes its own batches, so that no core waits for another; with a single one, the
    next batch is decoded while the last one runs.
    """

    def __init__(self, settings: Settings) -> None:
        folder = settings.model_folders[0]
        manifest = load_manifest(folder)
        self._settings = settings
        self._decode = partial(
            decode, preprocessing=manifest.preprocessing, max_pixels=settings.max_image_pixels
        )
        self._encoder = Encoder(folder, manifest, settings.provider, settings.threads, settings.lanes)

    def run(self, images: Sequence[bytes]) -> None:
        size, concurrency = self._settings.max_batch, self._settings.lanes
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        threads = self._settings.threads
        with ThreadPoolExecutor(concurrency) as pool, ThreadPoolExecutor(threads) as decoders:
            if concurrency > 1:
                list(pool.map(lambda batch: self._encoder.encode(self._decoded(batch, map)), batches))
                return
            running: Future[object] = pool.submit(lambda: None)
            for batch in batches:
                pixels = self._decoded(batch, decoders.map)
                running.result()
                running = pool.submit(self._encoder.encode, pixels)
            running.result()

    def _decoded(self, batch: Sequence[bytes], map_: Callable[..., Iterable[Pixels]]) -> Pixels:
        return np.stack(list(map_(self._decode, batch)))


def _run_round(service: ServiceProcess, ceiling: _Ceiling, images: Sequence[bytes], load: Load) -> _Round:
    start, cpu_s = time.perf_counter(), time.process_time()
    ceiling.run(images)
    ceiling_s, ceiling_cpu_s = time.perf_counter() - start, time.process_time() - cpu_s

    server_cpu_s, idle_s = tree_cpu_s(service.pid), _idle_s()
    start, cpu_s = time.perf_counter(), time.process_time()
    responses = _serve(service.url, images, load)
    served_s = time.perf_counter() - start
    return _Round(
        served=len(images) / served_s,
        ceiling=len(images) / ceiling_s,
        server_cpu_s=tree_cpu_s(service.pid) - server_cpu_s,
        client_cpu_s=time.process_time() - cpu_s,
        ceiling_cpu_s=ceiling_cpu_s,
        idle_cpu_s=_idle_s() - idle_s,
        responses=responses,
    )


def _serve(url: str, images: Sequence[bytes], load: Load) -> list[tuple[Response, float]]:
    if load.bulk == 1:
        url, bodies = f"{url}{PATH}", list(map(raw, images))
    else:
        starts = range(0, len(images), load.bulk)
        url = f"{url}/v1/embed/batch"
        bodies = [multipart("images", images[start : start + load.bulk]) for start in starts]
    return asyncio.run(post_all(url, bodies, load.concurrency, _check))


def _check(response: Response) -> None:
    if response.status != 200:
        raise TargetError(f"a server answered {response.status}: {response.body}")
    if failed := [result for result in response.body.get("results", []) if "error" in result]:
        raise TargetError(f"{count(len(failed), 'image')} failed, the first: {failed[0]}")
    if response.cache:
        raise TargetError("the service has a cache: cached responses do not measure inference")


def _idle_s() -> float:
    """Sum of the idle times of the cores that this process may use."""
    cores = psutil.cpu_times(percpu=True)
    return float(sum(cores[core].idle + cores[core].iowait for core in psutil.Process().cpu_affinity()))


def _share_without_client(result: _Round, cores: int, images: int) -> float:
    """Core seconds of the ceiling divided by those of the served round without the client's."""
    return (cores * images / result.ceiling) / (cores * images / result.served - result.client_cpu_s)


def _summary(rounds: Sequence[_Round], images: int, others: list[Server]) -> Efficiency:
    def median(value: Callable[[_Round], float]) -> float:
        return statistics.median(map(value, rounds))

    ceiling_ms, server_ms, client_ms, idle_ms = (
        median(attrgetter(f"{name}_cpu_s")) / images * 1e3 for name in ("ceiling", "server", "client", "idle")
    )
    responses = [response for result in rounds for response, _ in result.responses]
    latencies_ms = [latency_ms for result in rounds for _, latency_ms in result.responses]
    served = median(lambda result: result.served)
    cores = len(psutil.Process().cpu_affinity())
    return Efficiency(
        served_images_per_s=served,
        ceiling_images_per_s=median(lambda result: result.ceiling),
        share=median(lambda result: result.served / result.ceiling),
        share_without_client=median(lambda result: _share_without_client(result, cores, images)),
        server_cpu_ms=server_ms,
        client_cpu_ms=client_ms,
        ceiling_cpu_ms=ceiling_ms,
        idle_cpu_ms=idle_ms,
        others_cpu_ms=max(0.0, cores / served * 1e3 - server_ms - client_ms - idle_ms),
        stages_ms=stage_means([response.server_ms for response in responses], latencies_ms),
        answered=len(responses),
        rounds_cpu_ms=[result.server_cpu_s / images * 1e3 for result in rounds],
        others=others,
    )
