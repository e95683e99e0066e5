"""How much of the machine reaches the caller: served images/s over an in-process ceiling, in one run.

The one benchmark that imports the service: its ceiling is the same decode, preprocessing and session,
called in a loop in this process, on the same cores, with nothing in between. Both take turns, so that a
noisy neighbour slows both; the share is the median over the rounds.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import TargetError
from benchmarks.runs.latency import stage_means
from benchmarks.targets.process import ServiceProcess, running_service
from benchmarks.targets.service import Service, connect
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
    share_without_client: float  # the client's CPU time is left out, idle time and others' are not
    server_cpu_ms: float
    client_cpu_ms: float
    ceiling_cpu_ms: float
    idle_cpu_ms: float
    others_cpu_ms: float  # other processes on this machine, and its host's other guests
    stages_ms: dict[str, float]  # mean wall time that a request spends in each
    answered: int  # requests, every one with status 200


@dataclass(frozen=True)
class _Round:
    served: float
    ceiling: float
    server_cpu_s: float
    client_cpu_s: float
    ceiling_cpu_s: float
    idle_cpu_s: float
    stages_ms: list[dict[str, float]]
    latencies_ms: list[float]


@dataclass(frozen=True)
class Load:
    """What the service is sent in a round."""

    images: int
    concurrency: int  # requests at a time
    bulk: int  # images in a request; 1: `/v1/embed`


def measure(data: Dataset, rounds: int, load: Load, console: Console) -> Efficiency:
    """The same pictures on each side. Raises TargetError where a request fails."""
    pictures = data.pictures_in_turn(load.images)
    settings = load_settings()
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "service.log"
        with running_service(log, data_dir=f"{scratch}/index") as service:
            ceiling = _Ceiling(settings)
            ceiling.run(pictures[:64])  # warm both up
            asyncio.run(_serve(service, pictures[:64], load))
            done = []
            for number in range(rounds):
                done.append(_one_round(service, ceiling, pictures, load))
                console.print(
                    f"round {number + 1} of {rounds}: served {done[-1].served:.0f} images/s, "
                    f"ceiling {done[-1].ceiling:.0f}, share {done[-1].served / done[-1].ceiling:.3f}"
                )
    return _summary(done, len(pictures))


def print_efficiency(found: Efficiency, console: Console) -> None:
    """Where the time and the CPU go."""
    console.print(f"{found.answered:,} requests, every one answered with 200")
    console.print(
        f"served {found.served_images_per_s:.1f} images/s of {found.ceiling_images_per_s:.1f} in process: "
        f"share {found.share:.3f}"
    )
    console.print(
        f"by CPU, without the client's and what lay idle: {found.ceiling_cpu_ms:.2f} of "
        f"{found.server_cpu_ms:.2f} ms an image: share {found.ceiling_cpu_ms / found.server_cpu_ms:.3f}"
    )
    console.print(f"the client's CPU left out, what lay idle kept in: share {found.share_without_client:.3f}")
    table = Table("CPU per served image", Column("ms", justify="right"))
    table.add_row("decode, preprocess and infer (the ceiling's whole)", f"{found.ceiling_cpu_ms:.2f}")
    overhead = found.server_cpu_ms - found.ceiling_cpu_ms
    table.add_row("the service's: HTTP, BentoML, queueing, JSON", f"{overhead:.2f}")
    table.add_row("the client's, on the same cores", f"{found.client_cpu_ms:.2f}")
    table.add_row("idle", f"{found.idle_cpu_ms:.2f}")
    table.add_row("taken by others", f"{found.others_cpu_ms:.2f}")
    console.print(table)
    table = Table("time of a request, by stage", Column("mean ms", justify="right"))
    for stage, ms in found.stages_ms.items():
        table.add_row(stage, f"{ms:.2f}")
    console.print(table)


class _Ceiling:
    """The service's own session, lanes and batch size, with nothing in between.

    Each lane decodes its own batches, so that no core waits for another; a lane that is alone has its next
    batch decoded while the last one runs.
    """

    def __init__(self, settings: Settings) -> None:
        folder = settings.model_folders[0]
        manifest = load_manifest(folder)
        self._preprocessing = manifest.preprocessing
        self._settings = settings
        self._encoder = Encoder(folder, manifest, settings.provider, settings.threads, settings.lanes)

    def run(self, pictures: Sequence[bytes]) -> None:
        most, lanes = self._settings.max_batch, self._settings.lanes
        batches = [pictures[start : start + most] for start in range(0, len(pictures), most)]
        with ThreadPoolExecutor(lanes) as pool, ThreadPoolExecutor(self._settings.threads) as decoders:
            if lanes > 1:
                list(pool.map(lambda batch: self._encoder.encode(self._decoded(batch, map)), batches))
                return
            running: Future[object] = pool.submit(lambda: None)
            for batch in batches:
                pixels = self._decoded(batch, decoders.map)
                running.result()
                running = pool.submit(self._encoder.encode, pixels)
            running.result()

    def _decoded(self, batch: Sequence[bytes], each: Callable[..., Iterable[Pixels]]) -> Pixels:
        return np.stack(list(each(self._decode, batch)))

    def _decode(self, data: bytes) -> Pixels:
        return decode(data, self._preprocessing, self._settings.max_image_pixels)


def _one_round(service: ServiceProcess, ceiling: _Ceiling, pictures: Sequence[bytes], load: Load) -> _Round:
    own = psutil.Process()
    start, cpu = time.perf_counter(), _cpu_s(own)
    ceiling.run(pictures)
    ceiling_s, ceiling_cpu_s = time.perf_counter() - start, _cpu_s(own) - cpu

    server = psutil.Process(service.pid)
    start, cpu, server_cpu, idle = time.perf_counter(), _cpu_s(own), _tree_cpu_s(server), _idle_s()
    stages, latencies = asyncio.run(_serve(service, pictures, load))
    served_s = time.perf_counter() - start
    return _Round(
        served=len(pictures) / served_s,
        ceiling=len(pictures) / ceiling_s,
        server_cpu_s=_tree_cpu_s(server) - server_cpu,
        client_cpu_s=_cpu_s(own) - cpu,
        ceiling_cpu_s=ceiling_cpu_s,
        idle_cpu_s=_idle_s() - idle,
        stages_ms=stages,
        latencies_ms=latencies,
    )


async def _serve(
    service: ServiceProcess, pictures: Sequence[bytes], load: Load
) -> tuple[list[dict[str, float]], list[float]]:
    stages: list[dict[str, float]] = []
    latencies: list[float] = []
    waiting = (pictures[start : start + load.bulk] for start in range(0, len(pictures), load.bulk))

    async def worker(target: Service) -> None:
        for some in waiting:
            start = time.perf_counter()
            answer = await (target.embed(some[0]) if load.bulk == 1 else target.embed_batch(some))
            latencies.append((time.perf_counter() - start) * 1e3)
            if answer.status != 200:
                raise TargetError(f"the service answered {answer.status}: {answer.body}")
            if failed := [one for one in answer.body.get("results", []) if "error" in one]:
                raise TargetError(f"{len(failed)} images failed, the first: {failed[0]}")
            if answer.cache:
                raise TargetError(
                    "the service has a cache: what it knows is no work, so nothing was measured"
                )
            stages.append(answer.server_ms)

    async with connect(service.url, load.concurrency) as target:
        await asyncio.gather(*(worker(target) for _ in range(load.concurrency)))
    return stages, latencies


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _idle_s() -> float:
    """Of the cores that this process may use, together."""
    cores = psutil.cpu_times(percpu=True)
    return float(sum(cores[core].idle + cores[core].iowait for core in psutil.Process().cpu_affinity()))


def _tree_cpu_s(process: psutil.Process) -> float:
    return _cpu_s(process) + sum(_cpu_s(child) for child in process.children(recursive=True))


def _share_without_client(done: _Round, cores: int, images: int) -> float:
    """Core seconds of the ceiling over those of the served round that the client had no part in."""
    return (cores * images / done.ceiling) / (cores * images / done.served - done.client_cpu_s)


def _summary(rounds: Sequence[_Round], images: int) -> Efficiency:
    stages = [one for done in rounds for one in done.stages_ms]
    served = statistics.median(done.served for done in rounds)
    server_cpu_ms = statistics.median(done.server_cpu_s for done in rounds) / images * 1e3
    client_cpu_ms = statistics.median(done.client_cpu_s for done in rounds) / images * 1e3
    idle_cpu_ms = statistics.median(done.idle_cpu_s for done in rounds) / images * 1e3
    cores = len(psutil.Process().cpu_affinity())
    all_cpu_ms = cores / served * 1e3
    return Efficiency(
        served_images_per_s=served,
        ceiling_images_per_s=statistics.median(done.ceiling for done in rounds),
        share=statistics.median(done.served / done.ceiling for done in rounds),
        share_without_client=statistics.median(_share_without_client(done, cores, images) for done in rounds),
        server_cpu_ms=server_cpu_ms,
        client_cpu_ms=client_cpu_ms,
        ceiling_cpu_ms=statistics.median(done.ceiling_cpu_s for done in rounds) / images * 1e3,
        idle_cpu_ms=idle_cpu_ms,
        others_cpu_ms=max(0.0, all_cpu_ms - server_cpu_ms - client_cpu_ms - idle_cpu_ms),
        stages_ms=stage_means(stages, [ms for done in rounds for ms in done.latencies_ms]),
        answered=len(stages),
    )
