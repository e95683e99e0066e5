"""Checks of a model folder. A check that cannot be done gives the reason."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Dataset
from model_export.descriptors.images import read_pixels
from model_export.descriptors.splits import CORES
from model_export.export.canonical import available_photos, generated_pixels, load_parity
from service.errors import StartupError
from service.inference.encoder import Encoder, available_providers
from service.manifest import MIN_COSINE, Manifest, Precision, load_canonical, load_manifest

BATCHES = (1, 2, 3, 7, 16, 64)


# Lowest cosines that pass: of an image in a batch to the same image alone. Dynamic int8 uses one range per
# batch, so an image's embedding depends on the rest of the batch.
_BATCHED: dict[Precision, float] = {"fp32": 0.99999, "fp16": 0.9999, "int8": 0.995}
# To torch's embedding of a photo; None: judged by accuracy instead.
_TORCH: dict[Precision, float | None] = {"fp32": 0.99999, "fp16": 0.99, "int8": None}
_OTHER_PROVIDERS = 0.999  # against torch on a CPU: TF32 and fused kernels differ


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    status: Literal["passed", "failed", "not done"]
    detail: str


def verify(folder: Path, data: Dataset | None, max_loss: float) -> list[Check]:
    """Run all checks of a model folder. `max_loss` is in points of mean R@1.

    Raises ManifestError if the files of the folder do not belong together.
    """
    manifest = load_manifest(folder)
    load_canonical(folder)
    checks = [Check("files", "passed", f"hashes and fingerprint {manifest.fingerprint} agree")]
    for provider in available_providers():
        checks += _on_provider(folder, manifest, provider, data)
    if manifest.precision != "fp32":
        checks.append(_loss(manifest, max_loss))
    return checks


def _on_provider(folder: Path, manifest: Manifest, provider: str, data: Dataset | None) -> list[Check]:
    try:
        encoder = Encoder(folder, manifest, provider, CORES)
    except StartupError as error:  # compiled into ONNX Runtime, but not available here
        return [Check(provider, "not done", str(error))]
    return [
        check_canonical(encoder, provider, folder),
        check_batching(encoder, provider),
        _torch(encoder, provider, folder, data),
    ]


def check_canonical(encoder: Encoder, provider: str, folder: Path) -> Check:
    """Compare the embedding of the canonical image with the stored one."""
    _, canonical = load_canonical(folder)
    pixels = read_pixels(folder / "canonical.png", encoder.manifest.preprocessing)
    expected = np.asarray(canonical.embedding, dtype=np.float32)
    return _compared(f"{provider}: canonical image", encoder.encode(pixels[None]), expected[None], MIN_COSINE)


def check_batching(encoder: Encoder, provider: str) -> Check:
    """Compare batched embeddings with those of single images."""
    pixels = generated_pixels(max(BATCHES), encoder.manifest.input_px)
    singles = np.concatenate([encoder.encode(image[None]) for image in pixels])
    batched = [
        encoder.encode(pixels[start : start + batch])
        for batch in BATCHES
        for start in range(0, len(pixels), batch)
    ]
    name = f"{provider}: batches of {', '.join(map(str, BATCHES))} against singles"
    limit = _BATCHED[encoder.manifest.precision]
    return _compared(name, np.concatenate(batched), np.tile(singles, (len(BATCHES), 1)), limit)


def _torch(encoder: Encoder, provider: str, folder: Path, data: Dataset | None) -> Check:
    name = f"{provider}: photos against torch"
    parity = load_parity(folder)
    if parity is None or not parity.photos:
        return Check(name, "not done", "the model was exported without photos")
    if data is None:
        return Check(name, "not done", "the data set is missing: pass --data")
    pixels, expected = available_photos(parity, data, encoder.manifest.preprocessing)
    if not len(pixels):
        return Check(name, "not done", f"none of the {len(parity.photos)} photos is in {data.root}")
    limit = _TORCH[encoder.manifest.precision]
    if limit is not None and provider != "cpu":
        limit = min(limit, _OTHER_PROVIDERS)
    return _compared(name, encoder.encode(pixels), expected, limit)


def _compared(
    name: str, actual: NDArray[np.float32], expected: NDArray[np.float32], limit: float | None
) -> Check:
    if actual.shape != expected.shape:
        return Check(name, "failed", f"{actual.shape[1]} dimensions, expected {expected.shape[1]}")
    lowest = float((actual * expected).sum(axis=1).min())
    detail = f"{len(actual)} embeddings, lowest cosine {lowest:.6f}"
    if not np.abs(np.linalg.norm(actual, axis=1) - 1).max() < 1e-5:
        return Check(name, "failed", f"{detail}; not of unit norm")
    if limit is None:
        return Check(name, "passed", f"{detail}, for information")
    return Check(name, "passed" if lowest >= limit else "failed", f"{detail}, limit {limit}")


def _loss(manifest: Manifest, max_loss: float) -> Check:
    accuracy = manifest.accuracy
    assert accuracy is not None  # the manifest of a variant requires it
    name = "mean R@1 on the test split"
    try:
        before, after = (accuracy.mean_r_at_1(precision) for precision in ("fp32", manifest.precision))
    except KeyError as error:
        return Check(name, "failed", f"the accuracy in the manifest has no {error}")
    lost = 100 * (before - after)
    detail = f"fp32 {100 * before:.2f}, {manifest.precision} {100 * after:.2f}: {lost:+.2f} points lost"
    return Check(name, "passed" if lost <= max_loss else "failed", f"{detail}, limit {max_loss}")
