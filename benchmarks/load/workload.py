"""Mixed traffic: kinds of requests, image sizes, and how often images repeat."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, cast

import numpy as np
from PIL import Image

from benchmarks.datasets.dataset import Dataset, Record
from benchmarks.errors import BenchmarkError, DataError
from benchmarks.files import write_atomically
from benchmarks.load.requests import Kind, LoadRequest, QueryImage

SizeName = Literal["own", "uned", "phone"]
CacheName = Literal["hostile", "friendly"]

DOMAIN = "load-test"  # of the items that the load indexes; they are deleted afterwards
_IMAGES = 64
_QUALITY = 90
_ZIPF = 1.5
_KINDS: tuple[Kind, ...] = ("search", "embed", "index", "delete")

# Width and height in pixels, equally often. UnED's eight domains by our estimate (cars, sop, inshop, inat,
# met, gldv2, food2k, rp2k); a phone's camera at 12 MP, landscape and portrait.
SIZES: Mapping[SizeName, tuple[tuple[int, int], ...]] = {
    "own": (),
    "uned": (
        *((700, 480), (500, 500), (256, 256), (800, 600)),
        *((600, 800), (800, 600), (400, 300), (180, 320)),
    ),
    "phone": ((4032, 3024), (3024, 4032)),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """The kinds of requests by share, which add up to 1, and the images that they carry."""

    shares: Mapping[Kind, float]
    sizes: SizeName = "own"
    cache: CacheName = "hostile"  # hostile: all bytes differ; friendly: a few images repeat often
    seed: int = 0


def shares_of(text: str) -> dict[Kind, float]:
    """Parse `search=0.7,embed=0.3` to shares that add up to 1. Raises BenchmarkError."""
    try:
        pairs = (part.split("=") for part in text.split(","))
        weights = {name.strip(): float(weight) for name, weight in pairs}
    except ValueError as error:
        raise BenchmarkError(f"a mix is written search=0.7,embed=0.3, not {text!r}") from error
    unknown = weights.keys() - set(_KINDS)
    total = sum(weights.values())
    if unknown or min(weights.values()) < 0 or not 0 < total < math.inf:  # NaN is not
        raise BenchmarkError(f"a mix has shares of {', '.join(_KINDS)}, none below 0: {text!r}")
    return {cast(Kind, name): weight / total for name, weight in weights.items()}


def requests_of(workload: Workload, images: Sequence[QueryImage], count: int) -> list[LoadRequest]:
    """Return `count` requests, reproducible by seed. A delete removes an item that was indexed before."""
    rng = np.random.default_rng(workload.seed)
    kinds = rng.choice(list(workload.shares), size=count, p=list(workload.shares.values()))
    hostile = workload.cache == "hostile"
    numbers = itertools.cycle(range(len(images))) if hostile else (rng.zipf(_ZIPF, count) - 1) % len(images)
    indexed: list[QueryImage] = []
    requests = []
    for number, (kind, image_number) in enumerate(zip(kinds.tolist(), numbers, strict=False)):
        image = images[image_number]
        salt = number + 1 if hostile else None
        if kind == "delete" and indexed:
            requests.append(LoadRequest("delete", (indexed.pop(0),)))
        elif kind in ("index", "delete"):
            indexed.append(QueryImage(f"{DOMAIN}/{workload.seed}/{number}", DOMAIN, image.file))
            params = (("domain", DOMAIN), ("label", "load"))
            requests.append(LoadRequest("index", (indexed[-1],), params, salt))
        else:
            requests.append(LoadRequest(kind, (image,), (), salt))
    return requests


def images_of(data: Dataset, sizes: SizeName, folder: Path) -> list[QueryImage]:
    """Return test images of all domains alternately; resized ones are written to `folder`.

    Raises DataError, and RunError if they cannot be written.
    """
    records = itertools.islice(data.alternating_queries(), _IMAGES)
    images = []
    for record, size_px in zip(records, itertools.cycle(SIZES[sizes] or (None,)), strict=False):
        file = _resized(data, record, size_px, folder) if size_px else data.image(record)
        images.append(QueryImage(record.id, record.domain, file))
    return images


def _resized(data: Dataset, record: Record, size: tuple[int, int], folder: Path) -> Path:
    file = folder / f"{record.id.replace('/', '-')}-{size[0]}x{size[1]}.jpg"
    if not file.exists():
        try:
            with Image.open(data.image(record)) as image:
                resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        except OSError as error:
            raise DataError(f"{data.image(record)} cannot be read: {error}") from error
        content = BytesIO()
        resized.save(content, "JPEG", quality=_QUALITY)
        write_atomically(file, content.getvalue())
    return file
