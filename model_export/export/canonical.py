"""Known answers that travel with a model: a picture of our own making, and real ones by name.

`canonical.png` and `canonical.json` are what the service checks itself against at start: of an fp32 model
the embedding that torch gave, of a variant its own. `parity.json` keeps torch's embeddings of real
pictures, by path and hash, so that `verify` needs no torch weights.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from benchmarks.datasets.dataset import Dataset, Record
from model_export.descriptors.images import read_pixels
from model_export.errors import SourceError
from service.manifest import Canonical, Preprocessing, sha256_of

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # (N, H, W, 3) -> (N, dim)

_PHOTOS = 16


class Photo(BaseModel):
    """One picture of a data set, and its embedding in torch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str  # relative to data/images
    sha256: str  # of the file
    embedding: tuple[float, ...]


class Parity(BaseModel):
    """`parity.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_fingerprint: str
    photos: tuple[Photo, ...]

    @model_validator(mode="after")
    def _of_one_width(self) -> Self:
        if len({len(photo.embedding) for photo in self.photos}) > 1:
            raise ValueError("embeddings of several widths")
        return self


def canonical_picture() -> Image.Image:
    """A picture of our own making, 320 x 256: shapes and colours, so that no licence is asked."""
    y, x = np.mgrid[0:256, 0:320].astype(np.float64)
    red = 127 + 127 * np.sin(x / 17) * np.cos(y / 29)
    green = np.where((x - 200) ** 2 + (y - 120) ** 2 < 70**2, 220, x * 255 / 319)
    blue = np.where((x // 40 + y // 32) % 2 == 0, 40, y * 255 / 255)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).round().astype(np.uint8))


def drawn_pixels(count: int, input_px: int) -> NDArray[np.uint8]:
    """`count` different pictures without any data: cuts of the canonical one. uint8 (count, px, px, 3)."""
    picture = canonical_picture()
    sides = np.linspace(250, 60, count)
    boxes = [(shift := 7.0 * (n % 10), 0.0, shift + side, side) for n, side in enumerate(sides)]
    size = (input_px, input_px)
    return np.stack([np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box=box)) for box in boxes])


def write_canonical(embed: Embed, preprocessing: Preprocessing, folder: Path) -> None:
    """`canonical.png` and `canonical.json`."""
    file = folder / "canonical.png"
    canonical_picture().save(file, optimize=True)
    (embedding,) = embed(read_pixels(file, preprocessing)[None])
    said = Canonical(image_sha256=sha256_of(file), embedding=tuple(embedding.tolist()))
    (folder / "canonical.json").write_text(json.dumps(said.model_dump(), indent=1) + "\n")


def parity_records(data: Dataset) -> list[Record]:
    """Training pictures of all domains, in turn."""
    domains = [data.records(domain, "train") for domain in data.domains]
    turns = [rows[turn] for turn in range(_PHOTOS) for rows in domains if turn < len(rows)]
    return turns[:_PHOTOS]


def parity_pixels(data: Dataset, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """uint8 (N, H, W, 3)."""
    return np.stack([read_pixels(data.image(one), preprocessing) for one in parity_records(data)])


def write_parity(data: Dataset, embeddings: NDArray[np.float32], folder: Path) -> None:
    """`parity.json`: torch's embeddings (N, dim) of `parity_records`."""
    photos = [
        Photo(path=one.path, sha256=sha256_of(data.image(one)), embedding=tuple(row.tolist()))
        for one, row in zip(parity_records(data), embeddings, strict=True)
    ]
    said = Parity(data_fingerprint=data.fingerprint, photos=tuple(photos))
    (folder / "parity.json").write_text(json.dumps(said.model_dump()) + "\n")


def load_parity(folder: Path) -> Parity | None:
    """None where the model was exported without data. Raises SourceError."""
    file = folder / "parity.json"
    if not file.exists():
        return None
    try:
        return Parity.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise SourceError(f"{file} is not what an export writes: {error}") from error


def photos_here(
    parity: Parity, data: Dataset, preprocessing: Preprocessing
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The photos that `data` has unaltered: pixels (N, H, W, 3) and torch's embeddings (N, dim)."""
    found = []
    for photo in parity.photos:
        file = data.root / "data" / "images" / photo.path
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == photo.sha256:
            found.append((read_pixels(file, preprocessing), photo.embedding))
    px, dim = preprocessing.input_px, len(parity.photos[0].embedding)
    pixels = [one for one, _ in found] or np.empty((0, px, px, 3), dtype=np.uint8)
    wanted = [one for _, one in found] or np.empty((0, dim))
    return np.asarray(pixels, dtype=np.uint8), np.asarray(wanted, dtype=np.float32)
