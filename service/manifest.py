"""The manifest: what an exported model says of itself, beside its `model.onnx`.

Preprocessing travels with the model: everything that happens to an image before the graph is
written here, and a value that this code does not know is an error that names the file.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import ManifestError

# Another machine's kernels give .9999 at any precision; another resize filter .9991 (docs/decisions/10).
MIN_COSINE = 0.9995
WEIGHTS_FILE = "model.onnx.data"  # of a graph that is too large for one file


Jpeg = Literal["whole", "draft"]


class Preprocessing(BaseModel):
    """From decoded pixels to the graph's input; normalisation is inside the graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_px: int = Field(ge=1, description="Side of the square that the graph takes.")
    resize: Literal["short-side", "squash"] = Field(
        description="The short side, or both sides, are scaled to `resize_px`."
    )
    resize_px: int = Field(ge=1)
    interpolation: Literal["bicubic", "bilinear", "bilinear-no-antialias"] = Field(
        description="Pillow's filters, with antialias; or TensorFlow's bilinear, without."
    )
    crop: Literal["centre"]
    exif: Literal["apply", "ignore"] = Field(description="EXIF rotation.")
    # Not written where it is what it was before there was a choice: fingerprints stay.
    jpeg: Jpeg = Field(
        "whole",
        exclude_if=lambda jpeg: jpeg == "whole",
        description="draft: decoded at 1/2, 1/4 or 1/8 of its size, while both sides keep twice `resize_px`.",
    )

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.resize_px < self.input_px:
            raise ValueError(f"resize_px {self.resize_px} is less than input_px {self.input_px}")
        return self

    @model_validator(mode="after")
    def _whole_pixels_are_not_turned(self) -> Self:
        # This one rounds sizes and offsets to whole pixels, from the top left: it is not symmetric.
        if self.interpolation == "bilinear-no-antialias" and (
            self.resize != "short-side" or self.exif != "ignore"
        ):
            raise ValueError("bilinear-no-antialias goes with resize short-side and exif ignore only")
        return self


Precision = Literal["fp32", "fp16", "int8"]
Scores = dict[str, dict[str, float]]  # domain, or "mean" -> "R@1" and "mMP@5", as shares


class Accuracy(BaseModel):
    """What a variant scores on the test split, beside the fp32 model that it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_fingerprint: str
    fp32: Scores
    fp16: Scores | None = None
    int8: Scores | None = None

    def scores(self, precision: Precision) -> Scores:
        """Empty where that precision was not measured."""
        return {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}[precision] or {}

    def mean_r_at_1(self, precision: Precision) -> float:
        """As a share. Raises KeyError where that precision was not measured."""
        return self.scores(precision)["mean"]["R@1"]


class Manifest(Preprocessing):
    """`manifest.json`, version 1."""

    schema_version: Literal[1]
    name: str
    dim: int = Field(ge=1)
    precision: Precision
    strategy: str = Field(description="How the embedding was trained.")
    mean: tuple[float, float, float] = Field(description="Inside the graph; of pixels in [0, 255].")
    std: tuple[float, float, float]
    domains: dict[str, int] = Field(description="Training domains: number of classes.")
    data_fingerprint: str
    source: str = Field(description="Where the weights come from.")
    source_sha256: str
    licence: str
    onnx_sha256: str
    fingerprint: str
    exported: str = Field(description="ISO date.")
    tools: dict[str, str]
    variant_of: str | None = Field(None, description="Fingerprint of the fp32 model that it was made from.")
    accuracy: Accuracy | None = None

    @model_validator(mode="after")
    def _a_variant_says_what_it_costs(self) -> Self:
        if self.precision != "fp32" and (
            self.variant_of is None or self.accuracy is None or not self.accuracy.scores(self.precision)
        ):
            raise ValueError(f"a model of precision {self.precision} needs variant_of and its accuracy")
        return self

    @property
    def preprocessing(self) -> Preprocessing:
        """The part that decoding needs."""
        return Preprocessing(**self.model_dump(include=set(Preprocessing.model_fields)))


class Canonical(BaseModel):
    """`canonical.json`: the embedding of `canonical.png`.

    Of an fp32 model, as torch gave it; of a variant, its own. So one tolerance, MIN_COSINE, holds for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_sha256: str
    embedding: tuple[float, ...]


def fingerprint(onnx_sha256: str, preprocessing: Preprocessing, precision: str) -> str:
    """Hash of weights, preprocessing and precision: equal fingerprints mean comparable vectors."""
    said = {"onnx": onnx_sha256, "precision": precision, **preprocessing.model_dump()}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def load_manifest(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json` against `folder/model.onnx`. Raises ManifestError."""
    file = folder / "manifest.json"
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise ManifestError(f"no model here: {file} does not exist") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ManifestError(f"{file}: {faults}") from error
    found = onnx_sha256(folder)
    if found != manifest.onnx_sha256:
        raise ManifestError(
            f"{folder / 'model.onnx'} is not the file that {file} describes "
            f"(sha256 {found[:12]}, expected {manifest.onnx_sha256[:12]})"
        )
    expected = fingerprint(found, manifest.preprocessing, manifest.precision)
    if manifest.fingerprint != expected:
        raise ManifestError(f"{file}: fingerprint is {manifest.fingerprint}, its contents give {expected}")
    return manifest


def load_canonical(folder: Path) -> tuple[bytes, Canonical]:
    """The canonical image (encoded) and its embedding. Raises ManifestError."""
    image, file = folder / "canonical.png", folder / "canonical.json"
    try:
        data, canonical = image.read_bytes(), Canonical.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise ManifestError(f"{file}: {error}") from error
    if hashlib.sha256(data).hexdigest() != canonical.image_sha256:
        raise ManifestError(f"{image} is not the image that {file} describes")
    return data, canonical


def onnx_sha256(folder: Path) -> str:
    """Of `model.onnx`, and of its weights where they lie beside it. Raises ManifestError."""
    weights = folder / WEIGHTS_FILE
    return sha256_of(folder / "model.onnx", *([weights] if weights.exists() else []))


def sha256_of(*files: Path) -> str:
    """Hex SHA-256 of files, one after the other. Raises ManifestError where one cannot be read."""
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                hashlib.file_digest(stream, lambda: digest)
        except OSError as error:
            raise ManifestError(f"{file} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
