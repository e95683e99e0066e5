"""Mixed traffic: what is asked, with pictures of which size, and how kind that is to a cache."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, cast

import numpy as np
from PIL import Image

from benchmarks.datasets.dataset import Dataset, Record
from benchmarks.errors import BenchmarkError, DataError
from benchmarks.files import write_atomically
from benchmarks.load.requests import Ask, Kind, Picture

SizeName = Literal["own", "uned", "phone"]
CacheName = Literal["hostile", "friendly"]

DOMAIN = "load-test"  # of what the load indexes; it is deleted again
_PICTURES = 64
_QUALITY = 90
_ZIPF = 1.5
_KINDS: tuple[Kind, ...] = ("search", "embed", "index", "delete")

# Width and height in pixels, each as often as the others. UnED's eight domains by our estimate (cars, sop,
# inshop, inat, met, gldv2, food2k, rp2k); a phone's camera at 12 MP, upright and across.
SIZES: Mapping[SizeName, tuple[tuple[int, int], ...]] = {
    "own": (),
    "uned": (
        *((700, 480), (500, 500), (256, 256), (800, 600)),
        *((600, 800), (800, 600), (400, 300), (180, 320)),
    ),
    "phone": ((4032, 3024), (3024, 4032)),
}


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the requests, which add up to 1, and the pictures they carry."""

    shares: Mapping[Kind, float]
    sizes: SizeName = "own"
    cache: CacheName = "hostile"  # hostile: no picture comes twice; friendly: few come often
    seed: int = 0


def shares_of(text: str) -> dict[Kind, float]:
    """`search=0.7,embed=0.3` to shares that add up to 1. Raises BenchmarkError."""
    try:
        weights = {
            name.strip(): float(weight) for name, weight in (part.split("=") for part in text.split(","))
        }
    except ValueError as error:
        raise BenchmarkError(f"a mix is written search=0.7,embed=0.3, not {text!r}") from error
    unknown = weights.keys() - set(_KINDS)
    if unknown or min(weights.values()) < 0 or not sum(weights.values()):
        raise BenchmarkError(f"a mix has shares of {', '.join(_KINDS)}, none below 0: {text!r}")
    total = sum(weights.values())
    return {cast(Kind, name): weight / total for name, weight in weights.items()}


def asks_of(mix: Mix, pictures: Sequence[Picture], count: int) -> list[Ask]:
    """`count` requests, the same for the same seed. A delete is of what was indexed before it."""
    rng = np.random.default_rng(mix.seed)
    kinds = rng.choice(len(mix.shares), size=count, p=list(mix.shares.values()))
    named = list(mix.shares)
    chosen = iter(_chosen(mix, len(pictures), count, rng))
    indexed: list[Picture] = []
    asks = []
    for number, kind in enumerate(named[one] for one in kinds):
        picture = pictures[next(chosen)]
        salt = number + 1 if mix.cache == "hostile" else None
        if kind == "delete" and indexed:
            asks.append(Ask("delete", (indexed.pop(0),)))
        elif kind in ("index", "delete"):
            indexed.append(Picture(f"{DOMAIN}/{mix.seed}/{number}", DOMAIN, picture.file))
            asks.append(Ask("index", (indexed[-1],), (("domain", DOMAIN), ("label", "load")), salt))
        else:
            asks.append(Ask(kind, (picture,), (), salt))
    return asks


def pictures_of(data: Dataset, sizes: SizeName, folder: Path) -> list[Picture]:
    """Some of the test pictures, of all domains in turn; resized ones are written to `folder`.

    Raises DataError, RunError where they cannot be written.
    """
    records = list(itertools.islice(data.in_turn(), _PICTURES))
    if sizes == "own":
        return [Picture(one.id, one.domain, data.image(one)) for one in records]
    return [
        Picture(one.id, one.domain, _resized(data, one, size, folder))
        for one, size in zip(records, itertools.cycle(SIZES[sizes]), strict=False)
    ]


def _chosen(mix: Mix, pictures: int, count: int, rng: np.random.Generator) -> Iterator[int]:
    if mix.cache == "hostile":
        return itertools.islice(itertools.cycle(range(pictures)), count)
    return iter([int(one) for one in (rng.zipf(_ZIPF, count) - 1) % pictures])


def _resized(data: Dataset, record: Record, size: tuple[int, int], folder: Path) -> Path:
    file = folder / f"{record.id.replace('/', '-')}-{size[0]}x{size[1]}.jpg"
    if not file.exists():
        try:
            with Image.open(data.image(record)) as picture:
                out = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        except OSError as error:
            raise DataError(f"{data.image(record)} cannot be read: {error}") from error
        content = BytesIO()
        out.save(content, "JPEG", quality=_QUALITY)
        write_atomically(file, content.getvalue())
    return file
