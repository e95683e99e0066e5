"""Throughput of model folders in ONNX Runtime alone, alternating so that all see the same conditions."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.descriptors.splits import CORES
from model_export.export.canonical import generated_pixels
from service.inference.encoder import Encoder
from service.manifest import load_manifest

BATCHES = (1, 8, 16)
_TURN_IMAGES = 32


@dataclass(frozen=True)
class Speed:
    """Throughput of one model by batch size."""

    model: str
    images_per_s: dict[int, float]  # median over the rounds
    ratio: dict[int, float]  # to the first model in the same round: median over the rounds


def bench(folders: Sequence[Path], rounds: int) -> list[Speed]:
    """Measure all models in every round, discarding a first one. Raises ManifestError."""
    encoders = [Encoder(folder, load_manifest(folder), "cpu", CORES) for folder in folders]
    rates = {}  # batch -> (rounds, models)
    for batch in BATCHES:
        pixels = [generated_pixels(batch, encoder.manifest.input_px) for encoder in encoders]
        pairs = list(zip(encoders, pixels, strict=True))
        rates[batch] = np.array([[_rate(*pair) for pair in pairs] for _ in range(rounds + 1)])[1:]
    return [
        Speed(
            str(folder),
            {batch: float(np.median(table[:, column])) for batch, table in rates.items()},
            {batch: float(np.median(table[:, column] / table[:, 0])) for batch, table in rates.items()},
        )
        for column, folder in enumerate(folders)
    ]


def _rate(encoder: Encoder, pixels: NDArray[np.uint8]) -> float:
    calls = _TURN_IMAGES // len(pixels)
    start = time.perf_counter()
    for _ in range(calls):
        encoder.encode(pixels)
    return calls * len(pixels) / (time.perf_counter() - start)
