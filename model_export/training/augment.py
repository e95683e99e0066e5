"""Pictures that a model should find alike: crops, colours, blur, small turns. No mirroring: a mirrored
flag is another flag."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from model_export.descriptors.images import MAX_PIXELS
from model_export.errors import SourceError
from service.errors import ServiceError
from service.inference.images import decode_whole
from service.manifest import Preprocessing

_WHITE = 255
_ROOM = 1.5  # a crop is cut from a picture of at most this many times the input's side


def augmented(file: Path, preprocessing: Preprocessing, seed: int) -> NDArray[np.uint8]:
    """One picture, uint8 (H, W, 3), the same for the same seed. Raises SourceError."""
    try:
        image = decode_whole(file.read_bytes(), preprocessing.exif, MAX_PIXELS)
    except (OSError, ServiceError) as error:
        raise SourceError(f"{file}: {error}") from error
    room = round(preprocessing.input_px * _ROOM)
    if min(image.size) > room:
        scale = room / min(image.size)
        image = image.resize((max(room, round(image.width * scale)), max(room, round(image.height * scale))))
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
