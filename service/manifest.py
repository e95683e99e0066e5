"""The manifest: the description of an exported model, beside its `model.onnx`.

It defines the complete preprocessing of an image. An unknown value is an error that names the file.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from service.errors import ManifestError

# Another machine's kernels yield .9999 at any precision, another resize filter .9991 (docs/decisions/10).
MIN_COSINE = 0.9995
WEIGHTS_FILE = "model.onnx.data"  # of a graph that is too large for one file
_MAX_FAULTS = 5  # of a file, in one error

Jpeg = Literal["whole", "draft"]


class Preprocessing(BaseModel, frozen=True, extra="forbid"):
    """The steps from decoded pixels to the graph's input; normalisation is inside the graph."""

    input_px: int = Field(ge=1, description="Side of the square that the graph takes.")
    resize: Literal["short-side", "squash"] = Field(
        description="Scale the short side, or both sides, to `resize_px`."
    )
    resize_px: int = Field(ge=1)
    interpolation: Literal["bicubic", "bilinear", "bilinear-no-antialias"] = Field(
        description="Pillow's filters with antialiasing, or TensorFlow's bilinear filter without."
    )
    crop: Literal["centre"]
    exif: Literal["apply", "ignore"] = Field(description="EXIF rotation.")
    # The default is not written, so that fingerprints from before this field stay valid.
    jpeg: Jpeg = Field(
        "whole",
        exclude_if=lambda jpeg: jpeg == "whole",
        description="draft: decode at 1/2, 1/4 or 1/8 of the size, if both sides stay twice `resize_px`.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.resize_px < self.input_px:
            raise ValueError(f"resize_px {self.resize_px} is less than input_px {self.input_px}")
        # This filter rounds sizes and offsets to whole pixels from the top left, so it is not symmetric.
        if self.interpolation == "bilinear-no-antialias" and (
            self.resize != "short-side" or self.exif != "ignore"
        ):
            raise ValueError("bilinear-no-antialias requires resize short-side and exif ignore")
        return self


Precision = Literal["fp32", "fp16", "int8"]
Scores = dict[str, dict[str, float]]  # domain, or "mean" -> "R@1" and "mMP@5", as shares


class Accuracy(BaseModel, frozen=True, extra="forbid"):
    """Scores of a variant on the test split, beside those of its fp32 model."""

    data_fingerprint: str
    fp32: Scores
    fp16: Scores | None = None
    int8: Scores | None = None

    def scores(self, precision: Precision) -> Scores:
        """Return the scores, or an empty dict if that precision was not measured."""
        return {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}[precision] or {}

    def mean_r_at_1(self, precision: Precision) -> float:
        """Return the mean R@1 as a share. Raises KeyError if that precision was not measured."""
        return self.scores(precision)["mean"]["R@1"]


class Manifest(Preprocessing):
    """`manifest.json`, version 1."""

    schema_version: Literal[1]
    name: str
    dim: int = Field(ge=1)
    precision: Precision
    strategy: str = Field(description="Training strategy of the embedding.")
    mean: tuple[float, float, float] = Field(
        description="Normalisation inside the graph, of pixels in [0, 255]."
    )
    std: tuple[float, float, float]
    domains: dict[str, int] = Field(description="Training domains: number of classes.")
    data_fingerprint: str
    source: str = Field(description="Origin of the weights.")
    source_sha256: str
    licence: str
    onnx_sha256: str
    fingerprint: str
    exported: str = Field(description="ISO date.")
    tools: dict[str, str]
    variant_of: str | None = Field(None, description="Fingerprint of the fp32 model it derives from.")
    accuracy: Accuracy | None = None

    @model_validator(mode="after")
    def _a_variant_has_its_accuracy(self) -> Self:
        if self.precision != "fp32" and (
            self.variant_of is None or self.accuracy is None or not self.accuracy.scores(self.precision)
        ):
            raise ValueError(f"a model of precision {self.precision} needs variant_of and its accuracy")
        return self

    @property
    def preprocessing(self) -> Preprocessing:
        """The part that decoding needs."""
        return Preprocessing(**self.model_dump(include=set(Preprocessing.model_fields)))


class Canonical(BaseModel, frozen=True, extra="forbid"):
    """`canonical.json`: the embedding of `canonical.png`.

    It was computed by torch for an fp32 model, and by the variant itself for a variant, so that the
    tolerance MIN_COSINE applies to all.
    """

    image_sha256: str
    embedding: tuple[float, ...]


def fingerprint(onnx_sha256: str, preprocessing: Preprocessing, precision: str) -> str:
    """Hash weights, preprocessing and precision: equal fingerprints mean comparable vectors."""
    parts = {"onnx": onnx_sha256, "precision": precision, **preprocessing.model_dump()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def load_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json` and validate it against `folder/model.onnx`. Raises ManifestError."""
    file = folder / "manifest.json"
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise ManifestError(f"no model here: {file} does not exist") from error
    except ValidationError as error:
        raise ManifestError(f"{file}: {faults_of(error)}") from error
    actual = onnx_sha256(folder)
    if actual != manifest.onnx_sha256:
        raise ManifestError(
            f"{folder / 'model.onnx'} is not the file that {file} describes "
            f"(sha256 {actual[:12]}, expected {manifest.onnx_sha256[:12]})"
        )
    expected = fingerprint(actual, manifest.preprocessing, manifest.precision)
    if manifest.fingerprint != expected:
        raise ManifestError(f"{file}: fingerprint is {manifest.fingerprint}, expected {expected}")
    return manifest


def load_canonical(folder: Path) -> tuple[bytes, Canonical]:
    """Read the canonical image (encoded) and its embedding. Raises ManifestError."""
    image, file = folder / "canonical.png", folder / "canonical.json"
    try:
        data, canonical = image.read_bytes(), Canonical.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ManifestError(f"{error.filename} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ManifestError(f"{file}: {faults_of(error)}") from error
    if hashlib.sha256(data).hexdigest() != canonical.image_sha256:
        raise ManifestError(f"{image} is not the image that {file} describes")
    return data, canonical


def faults_of(error: ValidationError) -> str:
    """Return the first faults of a file's content in one line."""
    faults = error.errors()[:_MAX_FAULTS]
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'content'}: {fault['msg']}" for fault in faults)


def onnx_sha256(folder: Path) -> str:
    """Hash `model.onnx` and, if stored separately, its weights. Raises ManifestError."""
    weights = folder / WEIGHTS_FILE
    return sha256_of(folder / "model.onnx", *([weights] if weights.exists() else []))


def sha256_of(*files: Path) -> str:
    """Return the hex SHA-256 of concatenated files. Raises ManifestError if one cannot be read."""
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                hashlib.file_digest(stream, lambda: digest)
        except OSError as error:
            raise ManifestError(f"{file} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
