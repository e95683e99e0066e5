"""`python -m service tune`: what this machine does with this model, and the settings that follow.

The curve is of the service's own encoder; the choice is then tried through the service's own pipeline.
What HTTP takes beside it is for `python -m benchmarks efficiency` to say, with the same settings.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from service.errors import SettingsError
from service.inference.budget import Budget
from service.inference.encoder import Encoder
from service.inference.images import decode
from service.inference.pipeline import Pipeline
from service.manifest import load_canonical, load_manifest
from service.metrics import Metrics
from service.settings import Settings

_ROUNDS = 3  # over all points, so that a busy neighbour does not choose among them; the best one counts
_POINT_S = 0.4
_TRIAL_S = 5.0
_BATCHES = (1, 2, 4, 8, 16, 32)
_LEAST = 4  # a batch is only what waits: a smaller limit saves nobody time
_GOOD_ENOUGH = 0.97  # of the best: a smaller batch that has it answers sooner
_ONE_PROCESS = 500  # images/s that one process's Python takes in and gives out without being the limit


@dataclass(frozen=True)
class Point:
    """Inference alone."""

    lanes: int
    max_batch: int
    images_per_s: float


@dataclass(frozen=True)
class Tuned:
    """The settings, and what they promise."""

    threads: int
    lanes: int
    max_batch: int
    workers: int
    decode_ms: float  # of one picture in one thread
    infer_images_per_s: float
    predicted_images_per_s: float  # decoding and inferring on the same cores
    measured_images_per_s: float  # through the pipeline, without HTTP

    def lines(self) -> str:
        """As a file of environment variables; more workers only work with a Qdrant server."""
        names = ("threads", "lanes", "max_batch", *(["workers"] if self.workers > 1 else []))
        return "".join(f"UIE_{name.upper()}={getattr(self, name)}\n" for name in names)


def tune(settings: Settings, images: Path | None, console: Console) -> Tuned:
    """Measure, choose, try. Pictures are those in `images`, else the model's canonical one.

    Raises StartupError.
    """
    pictures = _pictures(settings, images)
    decode_s = _decode_s(settings, pictures)
    chosen = choose(_curve(settings, console))
    decoded_per_s, inferred_per_s = settings.threads / decode_s, chosen.images_per_s
    if settings.provider == "cpu":  # both on the same cores
        predicted = 1 / (1 / decoded_per_s + 1 / inferred_per_s)
    else:
        predicted = min(decoded_per_s, inferred_per_s)
    choice = {"lanes": chosen.lanes, "max_batch": chosen.max_batch}
    return Tuned(
        threads=settings.threads,
        **choice,
        workers=1 + int(predicted // _ONE_PROCESS),
        decode_ms=decode_s * 1e3,
        infer_images_per_s=chosen.images_per_s,
        predicted_images_per_s=predicted,
        measured_images_per_s=_trial(settings.model_copy(update=choice), pictures),
    )


def choose(points: Sequence[Point]) -> Point:
    """The fewest images at a time that are as good as the best, up to three in a hundred."""
    usable = [point for point in points if point.max_batch >= _LEAST]
    best = max(point.images_per_s for point in usable)
    good = [point for point in usable if point.images_per_s >= _GOOD_ENOUGH * best]
    return min(good, key=lambda point: (point.lanes * point.max_batch, point.lanes))


def print_tuned(tuned: Tuned, console: Console) -> None:
    """The settings and the figures."""
    table = Table("figure", Column("", justify="right"))
    for name, value in asdict(tuned).items():
        table.add_row(name, f"{value:.1f}" if isinstance(value, float) else str(value))
    console.print(table)
    if tuned.workers > 1:
        console.print("More than one worker needs a Qdrant server: UIE_QDRANT_URL.")


def _pictures(settings: Settings, folder: Path | None) -> list[bytes]:
    if folder is None:
        return [load_canonical(settings.model_folders[0])[0]]
    files = itertools.islice(sorted(file for file in folder.rglob("*") if file.is_file()), 64)
    pictures = [file.read_bytes() for file in files]
    if not pictures:
        raise SettingsError(f"there is no picture in {folder}")
    return pictures


def _decode_s(settings: Settings, pictures: Sequence[bytes]) -> float:
    preprocessing = load_manifest(settings.model_folders[0]).preprocessing
    rounds_s = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for picture in pictures:
            decode(picture, preprocessing, settings.max_image_pixels)
        rounds_s.append(time.perf_counter() - start)
    return min(rounds_s) / len(pictures)


def _curve(settings: Settings, console: Console) -> list[Point]:
    folder = settings.model_folders[0]
    manifest = load_manifest(folder)
    lanes = [1 << power for power in range(settings.threads.bit_length())]
    encoders = {
        number: Encoder(folder, manifest, settings.provider, settings.threads, number) for number in lanes
    }
    shape = (manifest.input_px, manifest.input_px, 3)
    best = dict.fromkeys(itertools.product(lanes, _BATCHES), 0.0)
    for number, batch in track(_ROUNDS * list(best), "measuring", console=console, transient=True):
        rate = _rate(encoders[number], np.zeros((batch, *shape), dtype=np.uint8), number)
        best[number, batch] = max(rate, best[number, batch])
    points = [Point(*key, rate) for key, rate in best.items()]
    table = Table("lanes", *(Column(f"batch {batch}", justify="right") for batch in _BATCHES))
    for number in lanes:
        row = (f"{point.images_per_s:.0f}" for point in points if point.lanes == number)
        table.add_row(str(number), *row)
    console.print("inference alone, images/s:", table)
    return points


def _rate(encoder: Encoder, pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", lanes: int) -> float:
    encoder.encode(pixels)
    start = time.perf_counter()

    def lane(_: int) -> int:
        images = 0
        while time.perf_counter() - start < _POINT_S:
            images += len(encoder.encode(pixels))
        return images

    with ThreadPoolExecutor(lanes) as pool:
        images = sum(pool.map(lane, range(lanes)))
    return images / (time.perf_counter() - start)


def _trial(settings: Settings, pictures: Sequence[bytes]) -> float:
    folder = settings.model_folders[0]
    manifest = load_manifest(folder)
    encoder = Encoder(folder, manifest, settings.provider, settings.threads, settings.lanes)
    pipeline = Pipeline(encoder, settings, Metrics().of(manifest.name), Budget(settings.max_pixels_in_flight))
    turns = itertools.cycle(pictures)

    async def client(start: float) -> int:
        done = 0
        while time.perf_counter() - start < _TRIAL_S:
            await pipeline.embed(next(turns))
            done += 1
        return done

    async def all_of_them() -> float:
        start = time.perf_counter()
        done = await asyncio.gather(*(client(start) for _ in range(pipeline.bulk_width)))
        return sum(done) / (time.perf_counter() - start)

    try:
        return asyncio.run(all_of_them())
    finally:
        pipeline.close()
