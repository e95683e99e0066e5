"""From an fp32 model folder to one of fp16 or int8, with what that costs, or of another decoding of JPEGs."""

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
from model_export.export.fp32 import made_now, stamp, write_manifest
from model_export.export.quantise import to_fp16, to_int8
from model_export.folders import whole_model_folder
from service.inference.encoder import Encoder
from service.manifest import (
    WEIGHTS_FILE,
    Accuracy,
    Jpeg,
    Manifest,
    Preprocessing,
    Scores,
    fingerprint,
    load_manifest,
)

_PHOTOS_PER_DOMAIN = 12  # twice as many changed val R@1 by no more than chance


def export_variant(
    base: Path, precision: Literal["fp16", "int8"], data: Dataset, out: Path, console: Console
) -> Manifest:
    """Convert `base`, score both on the test split of `data`, write `out`.

    Raises SourceError, WriteError or ManifestError, and then writes nothing.
    """
    card = load_manifest(base)
    if card.precision != "fp32":
        raise SourceError(f"{base} is {card.precision} itself: a variant is made from an fp32 model")
    _require_own_folder(base, out)
    require_variant_images(data)
    with whole_model_folder(out) as folder:
        onnx_file = folder / "model.onnx"
        if precision == "fp16":
            to_fp16(base / "model.onnx", onnx_file)
        else:
            to_int8(base / "model.onnx", onnx_file, calibration_pixels(data, card.preprocessing))
        stamp(
            onnx_file,
            {**_said_by(base), "name": out.name, "precision": precision, "variant_of": card.fingerprint},
        )
        encoder = Encoder(folder, card, "cpu", CORES)  # of the base it takes the shapes only
        write_canonical(encoder.encode, card.preprocessing, folder)
        if (base / "parity.json").exists():
            shutil.copy(base / "parity.json", folder)
        before = score_split(Encoder(base, card, "cpu", CORES), data, "test", "fp32", console)
        after = score_split(encoder, data, "test", precision, console)
        measured = {"fp32": _scores(before), precision: _scores(after)}
        made = made_now(onnx_file)
        manifest = card.model_copy(
            update={
                "name": out.name,
                "precision": precision,
                "variant_of": card.fingerprint,
                "accuracy": Accuracy.model_validate({"data_fingerprint": data.fingerprint, **measured}),
                "fingerprint": fingerprint(made["onnx_sha256"], card.preprocessing, precision),
                **made,
            }
        )
        write_manifest(manifest, folder)
    return manifest


def export_decoded(base: Path, jpeg: Jpeg, out: Path) -> Manifest:
    """The fp32 model `base` with JPEGs decoded otherwise. Raises SourceError, WriteError or ManifestError."""
    card = load_manifest(base)
    if card.precision != "fp32":
        raise SourceError(
            f"{base} is {card.precision} itself: --jpeg is for the fp32 model that it was made from"
        )
    _require_own_folder(base, out)
    with whole_model_folder(out) as folder:
        # Not torch's embeddings of photos, which are JPEGs; the canonical picture is none.
        for name in ("model.onnx", WEIGHTS_FILE, "canonical.png", "canonical.json"):
            if (base / name).exists():
                shutil.copy(base / name, folder)
        onnx_file = folder / "model.onnx"
        stamp(onnx_file, {**_said_by(base), "name": out.name, "jpeg": jpeg, "variant_of": card.fingerprint})
        made = made_now(onnx_file)
        decoding = card.preprocessing.model_copy(update={"jpeg": jpeg})
        manifest = card.model_copy(
            update={
                "name": out.name,
                "jpeg": jpeg,
                "variant_of": card.fingerprint,
                "fingerprint": fingerprint(made["onnx_sha256"], decoding, "fp32"),
                **made,
            }
        )
        write_manifest(manifest, folder)
    return manifest


def _require_own_folder(base: Path, out: Path) -> None:
    if out.resolve() == base.resolve():
        raise SourceError(f"{out} is the fp32 model itself: a variant needs a folder of its own")


def _said_by(base: Path) -> dict[str, str]:
    model = onnx.load(base / "model.onnx", load_external_data=False)
    return {one.key: one.value for one in model.metadata_props}


def require_variant_images(data: Dataset) -> None:
    """Raises SourceError where pictures to calibrate or to score with are missing."""
    require_images(data, [*splits_for(data, "test"), *((one, "train") for one in data.domains)])


def calibration_pixels(data: Dataset, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Training pictures, as many of each domain and the domains in turn: uint8 (N, H, W, 3).

    Raises SourceError.
    """
    turns = []
    for domain in data.domains:
        records = data.records(domain, "train")
        rows = np.linspace(0, len(records) - 1, min(_PHOTOS_PER_DOMAIN, len(records))).round().astype(int)
        turns.append([data.image(records[row]) for row in rows])
    files = [file for turn in zip_longest(*turns) for file in turn if file is not None]
    if not files:
        raise SourceError(f"{data.root}: no training pictures, so int8 cannot be calibrated")
    return np.stack([read_pixels(file, preprocessing) for file in files])


def _scores(scores: dict[str, DomainScore]) -> Scores:
    return {
        **{domain: {"R@1": one.r_at_1, "mMP@5": one.mmp_at_5} for domain, one in scores.items()},
        "mean": mean_over_domains(scores),
    }
