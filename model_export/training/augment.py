"""Reading training images, optionally augmented: crops, colours, blur, small rotations.

There is no mirroring, because a mirrored flag is another flag.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from model_export.descriptors.images import MAX_PIXELS, read_pixels
from model_export.errors import SourceError
from service.errors import ServiceError
from service.inference.images import decode_rgb
from service.manifest import Preprocessing

_WHITE = 255
_LARGEST = 1.5  # larger images are reduced to this multiple of the input's side before a crop


def read_image(file: Path, preprocessing: Preprocessing, seed: int | None) -> NDArray[np.uint8]:
    """Read uint8 (H, W, 3) as the service does, or augmented by a seed. Raises SourceError."""
    if seed is None:
        return read_pixels(file, preprocessing)
    try:
        image = decode_rgb(file.read_bytes(), preprocessing.exif, MAX_PIXELS)
    except (OSError, ServiceError) as error:
        raise SourceError(f"{file}: {error}") from error
    side = round(preprocessing.input_px * _LARGEST)
    if min(image.size) > side:
        scale = side / min(image.size)
        image = image.resize((max(side, round(image.width * scale)), max(side, round(image.height * scale))))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return np.array(_recipe(preprocessing.input_px)(image), dtype=np.uint8)


@cache
def _recipe(px: int) -> v2.Compose:
    return v2.Compose(
        [
            v2.RandomResizedCrop(px, scale=(0.4, 1), ratio=(3 / 4, 4 / 3)),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.05)], 0.8),
            v2.RandomGrayscale(0.05),
            v2.RandomApply([v2.GaussianBlur(7, (0.1, 2.0))], 0.2),
            v2.RandomApply([v2.RandomAffine(15, fill=_WHITE)], 0.3),
        ]
    )
