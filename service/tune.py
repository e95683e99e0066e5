"""`python -m service tune`: measures decoding and inference on this machine, and derives the settings.

The curve measures the service's encoder, and the trial runs the chosen settings through its pipeline.
`python -m benchmarks efficiency` measures the overhead of HTTP with the same settings.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from service.errors import SettingsError
from service.inference.budget import Budget
from service.inference.encoder import Encoder
from service.inference.images import decode
from service.inference.pipeline import Pipeline
from service.manifest import Manifest, load_canonical, load_manifest
from service.metrics import Metrics, ModelMetrics
from service.process import usable_cpus
from service.settings import Settings

_MAX_IMAGES = 64
_MIN_BATCH = 4  # a batch takes only the waiting images, so a lower limit reduces no latency
_ACCEPTED_SHARE = 0.97  # of the best rate: a smaller batch that reaches it responds sooner
_MAX_RATE_PER_PROCESS = 500  # images/s at which the Python of one process is not the bottleneck


@dataclass(frozen=True)
class Effort:
    """Points of the curve, and the time to spend on it."""

    batches: Sequence[int] = (1, 2, 4, 8, 16, 32)
    rounds: int = 3  # over all points, to even out other load on the machine; the best round counts
    point_s: float = 0.4
    trial_s: float = 5.0


@dataclass(frozen=True)
class Point:
    """The rate of inference alone, at one setting."""

    lanes: int
    max_batch: int
    images_per_s: float


@dataclass(frozen=True)
class Tuned:
    """The chosen settings, and the rates to expect."""

    threads: int
    lanes: int
    max_batch: int
    workers: int
    decode_ms: float  # of an image in one thread
    infer_images_per_s: float
    predicted_images_per_s: float  # if decoding and inference share the cores
    measured_images_per_s: float  # through the pipeline, without HTTP

    def lines(self) -> str:
        """Format as environment variables. More than one worker only works with a Qdrant server."""
        names = ("threads", "lanes", "max_batch", *(["workers"] if self.workers > 1 else []))
        return "".join(f"UIE_{name.upper()}={getattr(self, name)}\n" for name in names)


def tune(settings: Settings, folder: Path | None, console: Console, effort: Effort = Effort()) -> Tuned:
    """Measure, choose and try settings, with the images in `folder` or the model's canonical image.

    Raises StartupError.
    """
    # One process is measured, with the CPUs of all workers.
    threads_are_set = "threads" in settings.model_fields_set
    cpus = settings.threads * settings.workers if threads_are_set else usable_cpus()
    settings = settings.model_copy(update={"threads": cpus})
    manifest = load_manifest(settings.model_folders[0])
    images = _load_images(settings, folder)
    decode_s = min(_decode_s(settings, manifest, images) for _ in range(effort.rounds))
    point = choose(_curve(settings, manifest, effort, console))
    decoded_per_s, inferred_per_s = settings.threads / decode_s, point.images_per_s
    if settings.provider == "cpu":  # both use the same cores
        predicted = 1 / (1 / decoded_per_s + 1 / inferred_per_s)
    else:
        predicted = min(decoded_per_s, inferred_per_s)
    chosen = {"lanes": point.lanes, "max_batch": point.max_batch}
    workers = 1 + int(predicted // _MAX_RATE_PER_PROCESS)
    threads = max(1, settings.threads // workers)
    return Tuned(
        threads=threads,
        lanes=min(point.lanes, threads),
        max_batch=point.max_batch,
        workers=workers,
        decode_ms=decode_s * 1e3,
        infer_images_per_s=inferred_per_s,
        predicted_images_per_s=predicted,
        measured_images_per_s=_trial(settings.model_copy(update=chosen), manifest, images, effort.trial_s),
    )


def choose(points: Sequence[Point]) -> Point:
    """Return the point with the fewest images in flight among those within 3% of the best rate."""
    usable = [point for point in points if point.max_batch >= _MIN_BATCH]
    best = max(point.images_per_s for point in usable)
    accepted = [point for point in usable if point.images_per_s >= _ACCEPTED_SHARE * best]
    return min(accepted, key=lambda point: (point.lanes * point.max_batch, point.lanes))


def print_tuned(tuned: Tuned, console: Console) -> None:
    """Print the settings and the rates."""
    table = Table("result", Column("", justify="right"))
    for name, value in asdict(tuned).items():
        table.add_row(name, f"{value:.1f}" if isinstance(value, float) else str(value))
    console.print(table)
    if tuned.workers > 1:
        console.print("More than one worker requires a Qdrant server: UIE_QDRANT_URL.")


def _load_images(settings: Settings, folder: Path | None) -> list[bytes]:
    if folder is None:
        return [load_canonical(settings.model_folders[0])[0]]
    files = sorted(file for file in folder.rglob("*") if file.is_file())[:_MAX_IMAGES]
    if not files:
        raise SettingsError(f"{folder} contains no image")
    return [file.read_bytes() for file in files]


def _decode_s(settings: Settings, manifest: Manifest, images: Sequence[bytes]) -> float:
    start = time.perf_counter()
    for image in images:
        decode(image, manifest.preprocessing, settings.max_image_pixels)
    return (time.perf_counter() - start) / len(images)


def _curve(settings: Settings, manifest: Manifest, effort: Effort, console: Console) -> list[Point]:
    counts = [1 << power for power in range(settings.threads.bit_length())]  # concurrent inferences
    encoders = {count: _encoder(settings, manifest, count) for count in counts}
    shape = (manifest.input_px, manifest.input_px, 3)
    best = dict.fromkeys(itertools.product(counts, effort.batches), 0.0)
    for count, batch in track(effort.rounds * list(best), "measuring", console=console, transient=True):
        pixels = np.zeros((batch, *shape), dtype=np.uint8)
        best[count, batch] = max(_rate(encoders[count], pixels, count, effort.point_s), best[count, batch])
    table = Table("concurrency", *(Column(f"batch {batch}", justify="right") for batch in effort.batches))
    for count in counts:
        table.add_row(str(count), *(f"{best[count, batch]:.0f}" for batch in effort.batches))
    console.print("inference alone, images/s:", table)
    return [Point(*key, rate) for key, rate in best.items()]


def _encoder(settings: Settings, manifest: Manifest, lanes: int) -> Encoder:
    return Encoder(settings.model_folders[0], manifest, settings.provider, settings.threads, lanes)


def _rate(encoder: Encoder, pixels: NDArray[np.uint8], concurrency: int, duration_s: float) -> float:
    encoder.encode(pixels)
    start = time.perf_counter()

    def encode_repeatedly(_: int) -> int:
        images = 0
        while time.perf_counter() - start < duration_s:
            images += len(encoder.encode(pixels))
        return images

    with ThreadPoolExecutor(concurrency) as pool:
        images = sum(pool.map(encode_repeatedly, range(concurrency)))
    return images / (time.perf_counter() - start)


def _trial(settings: Settings, manifest: Manifest, images: Sequence[bytes], duration_s: float) -> float:
    encoder = _encoder(settings, manifest, settings.lanes)
    metrics = ModelMetrics(Metrics(), manifest.name)
    pipeline = Pipeline(encoder, settings, metrics, Budget(settings.max_pixels_in_flight))
    endless = itertools.cycle(images)

    async def client(start: float) -> int:
        completed = 0
        while time.perf_counter() - start < duration_s:
            await pipeline.embed(next(endless))
            completed += 1
        return completed

    async def run() -> float:
        start = time.perf_counter()
        completed = await asyncio.gather(*(client(start) for _ in range(pipeline.bulk_width)))
        return sum(completed) / (time.perf_counter() - start)

    try:
        return asyncio.run(run())
    finally:
        pipeline.close()
