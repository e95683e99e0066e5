"""Variants of an fp32 model folder: fp16 or int8 with its accuracy, or another decoding of JPEGs."""

import shutil
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from benchmarks.scoring.measures import DomainScore, mean_over_domains
from model_export.descriptors.images import read_pixels, require_images
from model_export.descriptors.splits import CORES, score_split, splits_for
from model_export.errors import SourceError
from model_export.export.canonical import write_canonical
from model_export.export.fp32 import file_fields, write_manifest, write_metadata
from model_export.export.quantise import to_fp16, to_int8
from model_export.folders import atomic_model_folder
from service.inference.encoder import Encoder
from service.manifest import WEIGHTS_FILE, Accuracy, Jpeg, Manifest, Preprocessing, Scores, load_manifest

_IMAGES_PER_DOMAIN = 12  # twice as many changed val R@1 by no more than chance


def export_variant(
    base: Path, precision: Literal["fp16", "int8"], data: Dataset, out: Path, console: Console
) -> Manifest:
    """Convert `base`, score both models on the test split of `data`, and write `out`.

    Raises SourceError, WriteError or ManifestError; `out` is then unchanged.
    """
    manifest = _fp32_manifest(base, out)
    require_variant_images(data)
    with atomic_model_folder(out) as folder:
        onnx_file = folder / "model.onnx"
        if precision == "fp16":
            to_fp16(base / "model.onnx", onnx_file)
        else:
            to_int8(base / "model.onnx", onnx_file, calibration_pixels(data, manifest.preprocessing))
        encoder = Encoder(folder, manifest, "cpu", CORES)  # only the base's shapes are used
        write_canonical(encoder.encode, manifest.preprocessing, folder)
        if (base / "parity.json").exists():
            shutil.copy(base / "parity.json", folder)
        before = score_split(Encoder(base, manifest, "cpu", CORES), data, "test", "fp32", console)
        after = score_split(encoder, data, "test", precision, console)
        scores = {"fp32": _scores(before), precision: _scores(after)}
        accuracy = Accuracy.model_validate({"data_fingerprint": data.fingerprint, **scores})
        changes = {"name": out.name, "precision": precision, "variant_of": manifest.fingerprint}
        return _finish(base, folder, manifest, changes, accuracy=accuracy)


def export_decoded(base: Path, jpeg: Jpeg, out: Path) -> Manifest:
    """Write `base` with another decoding of JPEGs. Raises SourceError, WriteError or ManifestError."""
    manifest = _fp32_manifest(base, out)
    with atomic_model_folder(out) as folder:
        # parity.json is left out: its photos are JPEGs. The canonical image is a PNG.
        for name in ("model.onnx", WEIGHTS_FILE, "canonical.png", "canonical.json"):
            if (base / name).exists():
                shutil.copy(base / name, folder)
        changes = {"name": out.name, "jpeg": jpeg, "variant_of": manifest.fingerprint}
        return _finish(base, folder, manifest, changes)


def _fp32_manifest(base: Path, out: Path) -> Manifest:
    manifest = load_manifest(base)
    if manifest.precision != "fp32":
        raise SourceError(f"{base} is {manifest.precision}; a variant is made from the fp32 model")
    if out.resolve() == base.resolve():
        raise SourceError(f"{out} is the fp32 model itself; a variant needs a separate folder")
    return manifest


def _finish(
    base: Path, folder: Path, manifest: Manifest, changes: dict[str, str], **measured: Accuracy
) -> Manifest:
    """Write the metadata and the manifest of a variant; `measured` is for the manifest only."""
    onnx_file = folder / "model.onnx"
    properties = onnx.load(base / "model.onnx", load_external_data=False).metadata_props
    write_metadata(onnx_file, {**{entry.key: entry.value for entry in properties}, **changes})
    variant = manifest.model_copy(update={**changes, **measured})
    fields = file_fields(folder, variant.preprocessing, variant.precision)
    variant = variant.model_copy(update=fields)
    write_manifest(variant, folder)
    return variant


def require_variant_images(data: Dataset) -> None:
    """Raise SourceError if images for the calibration or the scores are missing."""
    require_images(data, [*splits_for(data, "test"), *((domain, "train") for domain in data.domains)])


def calibration_pixels(data: Dataset, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Read training images, equally many per domain, alternating between domains: uint8 (N, H, W, 3).

    Raises SourceError.
    """
    columns = []
    for domain in data.domains:
        records = data.records(domain, "train")
        rows = np.linspace(0, len(records) - 1, min(_IMAGES_PER_DOMAIN, len(records))).round().astype(int)
        columns.append([data.image(records[row]) for row in rows])
    files = [file for row in zip_longest(*columns) for file in row if file is not None]
    if not files:
        raise SourceError(f"{data.root}: no training images, so int8 cannot be calibrated")
    return np.stack([read_pixels(file, preprocessing) for file in files])


def _scores(scores: dict[str, DomainScore]) -> Scores:
    return {
        **{domain: {"R@1": score.r_at_1, "mMP@5": score.mmp_at_5} for domain, score in scores.items()},
        "mean": mean_over_domains(scores),
    }
