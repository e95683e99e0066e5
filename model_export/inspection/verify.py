"""Is a model folder what it says? Every check is a row; a check that could not be done says why."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Dataset
from model_export.descriptors.images import read_pixels
from model_export.descriptors.splits import CORES
from model_export.export.canonical import drawn_pixels, load_parity, photos_here
from service.errors import StartupError
from service.inference.encoder import Encoder, available_providers
from service.manifest import MIN_COSINE, Manifest, Precision, load_canonical, load_manifest

BATCHES = (1, 2, 3, 7, 16, 64)


@dataclass(frozen=True)
class Limits:
    """Lowest cosine that passes."""

    batched: float  # of a picture in a batch to itself alone
    torch: float | None  # to torch's embedding of a photo; None: its accuracy is what counts


# Dynamic int8 takes one range for a whole batch, so a picture's embedding depends on its neighbours.
LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(batched=0.99999, torch=0.99999),
    "fp16": Limits(batched=0.9999, torch=0.99),
    "int8": Limits(batched=0.995, torch=None),
}
_OTHER_PROVIDERS = 0.999  # TF32 and fused kernels: against torch on another device than torch's


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    name: str
    status: Literal["passed", "failed", "not done"]
    detail: str


def verify(folder: Path, data: Dataset | None, max_loss: float) -> list[Check]:
    """All checks of one model folder. `max_loss` is in points of mean R@1.

    Raises ManifestError where the folder's files do not belong together.
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
    except StartupError as error:  # the wheel lists it, this machine has not got it
        return [Check(provider, "not done", str(error))]
    return [
        _canonical(encoder, provider, folder),
        _batching(encoder, provider),
        _torch(encoder, provider, folder, data),
    ]


def _canonical(encoder: Encoder, provider: str, folder: Path) -> Check:
    _, canonical = load_canonical(folder)
    pixels = read_pixels(folder / "canonical.png", encoder.manifest.preprocessing)
    wanted = np.asarray(canonical.embedding, dtype=np.float32)
    return _compared(f"{provider}: canonical picture", encoder.encode(pixels[None]), wanted[None], MIN_COSINE)


def _batching(encoder: Encoder, provider: str) -> Check:
    pixels = drawn_pixels(max(BATCHES), encoder.manifest.input_px)
    singles = np.concatenate([encoder.encode(one[None]) for one in pixels])
    batched = [
        encoder.encode(pixels[start : start + batch])
        for batch in BATCHES
        for start in range(0, len(pixels), batch)
    ]
    name = f"{provider}: batches of {', '.join(map(str, BATCHES))} against singles"
    limit = LIMITS[encoder.manifest.precision].batched
    return _compared(name, np.concatenate(batched), np.tile(singles, (len(BATCHES), 1)), limit)


def _torch(encoder: Encoder, provider: str, folder: Path, data: Dataset | None) -> Check:
    name = f"{provider}: photos against torch"
    parity = load_parity(folder)
    if parity is None or not parity.photos:
        return Check(name, "not done", "the model was exported without photos")
    if data is None:
        return Check(name, "not done", "the data set is not here: say --data")
    pixels, wanted = photos_here(parity, data, encoder.manifest.preprocessing)
    if not len(pixels):
        return Check(name, "not done", f"none of the {len(parity.photos)} photos is in {data.root}")
    limit = LIMITS[encoder.manifest.precision].torch
    if limit is not None and provider != "cpu":
        limit = min(limit, _OTHER_PROVIDERS)
    return _compared(name, encoder.encode(pixels), wanted, limit)


def _compared(name: str, got: NDArray[np.float32], wanted: NDArray[np.float32], limit: float | None) -> Check:
    if got.shape != wanted.shape:
        return Check(name, "failed", f"{got.shape[1]} numbers, the known answer has {wanted.shape[1]}")
    norms = np.abs(np.linalg.norm(got, axis=1) - 1).max()
    lowest = float((got * wanted).sum(axis=1).min())
    said = f"{len(got)} embeddings, lowest cosine {lowest:.6f}"
    if not norms < 1e-5:
        return Check(name, "failed", f"{said}; not of unit norm")
    if limit is None:
        return Check(name, "passed", f"{said}, for information")
    return Check(name, "passed" if lowest >= limit else "failed", f"{said}, limit {limit}")


def _loss(manifest: Manifest, max_loss: float) -> Check:
    accuracy = manifest.accuracy
    assert accuracy is not None  # the manifest checks that of a variant
    name = "mean R@1 on the test split"
    try:
        before, after = (accuracy.mean_r_at_1(one) for one in ("fp32", manifest.precision))
    except KeyError as error:
        return Check(name, "failed", f"the manifest's accuracy has no {error}")
    lost = 100 * (before - after)
    said = f"fp32 {100 * before:.2f}, {manifest.precision} {100 * after:.2f}: {lost:+.2f} points lost"
    passed = lost <= max_loss
    return Check(name, "passed" if passed else "failed", f"{said}, limit {max_loss}")
