"""Images/s of model folders by ONNX Runtime alone, in turn, so that all of them see the same machine."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.descriptors.splits import CORES
from model_export.export.canonical import drawn_pixels
from service.inference.encoder import Encoder
from service.manifest import load_manifest

BATCHES = (1, 8, 16)
_TURN_IMAGES = 32


@dataclass(frozen=True)
class Speed:
    """Of one model, by size of batch."""

    model: str
    images_per_s: dict[int, float]  # median over the rounds
    ratio: dict[int, float]  # to the first model: median over the rounds of the same


def bench(folders: Sequence[Path], rounds: int) -> list[Speed]:
    """Every model has a turn in every round; a first round is not counted. Raises ManifestError."""
    encoders = [Encoder(folder, load_manifest(folder), "cpu", CORES) for folder in folders]
    rates = {}
    for batch in BATCHES:
        pixels = [drawn_pixels(batch, encoder.manifest.input_px) for encoder in encoders]
        pairs = list(zip(encoders, pixels, strict=True))
        rates[batch] = np.array([[_rate(*pair) for pair in pairs] for _ in range(rounds + 1)])[1:]
    return [
        Speed(
            str(folder),
            {batch: float(np.median(of[:, place])) for batch, of in rates.items()},
            {batch: float(np.median(of[:, place] / of[:, 0])) for batch, of in rates.items()},
        )
        for place, folder in enumerate(folders)
    ]


def _rate(encoder: Encoder, pixels: NDArray[np.uint8]) -> float:
    calls = _TURN_IMAGES // len(pixels)
    start = time.perf_counter()
    for _ in range(calls):
        encoder.encode(pixels)
    return calls * len(pixels) / (time.perf_counter() - start)
