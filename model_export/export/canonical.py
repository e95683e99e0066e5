"""Reference embeddings stored with a model.

`canonical.png` and `canonical.json` are a generated image and its embedding, which the service checks at
start: the embedding by torch for an fp32 model, its own for a variant. `parity.json` holds torch's embeddings
of photos of a data set, by path and hash, so that `verify` needs no torch weights.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ValidationError, model_validator

from benchmarks.datasets.dataset import Dataset, Record
from model_export.descriptors.images import read_pixels
from model_export.errors import SourceError
from service.manifest import Canonical, Preprocessing, faults_of, sha256_of

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # (N, H, W, 3) -> (N, dim)

_PHOTOS = 16


class Photo(BaseModel, frozen=True, extra="forbid"):
    """A photo of a data set and its embedding by torch."""

    path: str  # relative to data/images
    sha256: str  # of the file
    embedding: tuple[float, ...]


class Parity(BaseModel, frozen=True, extra="forbid"):
    """`parity.json`."""

    data_fingerprint: str
    photos: tuple[Photo, ...]

    @model_validator(mode="after")
    def _have_one_width(self) -> Self:
        if len({len(photo.embedding) for photo in self.photos}) > 1:
            raise ValueError("embeddings of several widths")
        return self


def canonical_image() -> Image.Image:
    """Generate the canonical image, 320 x 256 of shapes and colours. Being generated, it needs no licence."""
    y, x = np.mgrid[0:256, 0:320].astype(np.float64)
    red = 127 + 127 * np.sin(x / 17) * np.cos(y / 29)
    green = np.where((x - 200) ** 2 + (y - 120) ** 2 < 70**2, 220, x * 255 / 319)
    blue = np.where((x // 40 + y // 32) % 2 == 0, 40, y * 255 / 255)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).round().astype(np.uint8))


def generated_pixels(count: int, input_px: int) -> NDArray[np.uint8]:
    """Crop `count` different images from the canonical one: uint8 (count, px, px, 3)."""
    image = canonical_image()
    sides = np.linspace(250, 60, count)
    boxes = [(shift := 7.0 * (n % 10), 0.0, shift + side, side) for n, side in enumerate(sides)]
    size = (input_px, input_px)
    return np.stack([np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box)) for box in boxes])


def write_canonical(embed: Embed, preprocessing: Preprocessing, folder: Path) -> None:
    """Write `canonical.png` and `canonical.json`."""
    file = folder / "canonical.png"
    canonical_image().save(file, optimize=True)
    (embedding,) = embed(read_pixels(file, preprocessing)[None])
    canonical = Canonical(image_sha256=sha256_of(file), embedding=tuple(embedding.tolist()))
    (folder / "canonical.json").write_text(json.dumps(canonical.model_dump(), indent=1) + "\n")


def parity_records(data: Dataset) -> list[Record]:
    """Select training images, alternating between the domains."""
    domains = [data.records(domain, "train") for domain in data.domains]
    turns = [rows[turn] for turn in range(_PHOTOS) for rows in domains if turn < len(rows)]
    return turns[:_PHOTOS]


def parity_pixels(data: Dataset, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Read the images of `parity_records`: uint8 (N, H, W, 3)."""
    return np.stack([read_pixels(data.image(record), preprocessing) for record in parity_records(data)])


def write_parity(data: Dataset, embeddings: NDArray[np.float32], folder: Path) -> None:
    """Write `parity.json` with torch's embeddings (N, dim) of `parity_records`."""
    photos = [
        Photo(path=record.path, sha256=sha256_of(data.image(record)), embedding=tuple(row.tolist()))
        for record, row in zip(parity_records(data), embeddings, strict=True)
    ]
    parity = Parity(data_fingerprint=data.fingerprint, photos=tuple(photos))
    (folder / "parity.json").write_text(json.dumps(parity.model_dump()) + "\n")


def load_parity(folder: Path) -> Parity | None:
    """Read `parity.json`. Return None if the model was exported without data. Raises SourceError."""
    file = folder / "parity.json"
    if not file.exists():
        return None
    try:
        return Parity.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise SourceError(f"{file}: {faults_of(error)}") from error


def available_photos(
    parity: Parity, data: Dataset, preprocessing: Preprocessing
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Read the photos that `data` has unchanged: pixels (N, H, W, 3) and torch's embeddings (N, dim)."""
    images, embeddings = [], []
    for photo in parity.photos:
        file = data.root / "data" / "images" / photo.path
        if file.is_file() and sha256_of(file) == photo.sha256:
            images.append(read_pixels(file, preprocessing))
            embeddings.append(photo.embedding)
    px, dim = preprocessing.input_px, len(parity.photos[0].embedding)
    pixels = np.asarray(images, dtype=np.uint8).reshape(-1, px, px, 3)
    return pixels, np.asarray(embeddings, dtype=np.float32).reshape(-1, dim)
