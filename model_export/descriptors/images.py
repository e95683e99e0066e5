"""Descriptors of a data set's images, computed by the torch graph."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.datasets.dataset import Dataset
from model_export.errors import SourceError
from service.errors import ServiceError
from service.inference.images import decode
from service.manifest import Preprocessing

_NAMED = 20
MAX_PIXELS = 10**9


def require_images(data: Dataset, splits: Iterable[tuple[str, str]]) -> None:
    """Raise SourceError with the number and the first names of the missing images, if there are any."""
    files = (data.image(record) for domain, split in splits for record in data.records(domain, split))
    if missing := [file for file in dict.fromkeys(files) if not file.is_file()]:
        names = ", ".join(str(file) for file in missing[:_NAMED])
        part = f", the first {_NAMED}" if len(missing) > _NAMED else ""
        raise SourceError(f"{len(missing)} images of {data.root} are missing{part}: {names}")


def require_training_images(data: Dataset, domains: Sequence[str]) -> None:
    """Raise SourceError if a domain has no training images, or there are no domains."""
    empty = [domain for domain in domains if not data.records(domain, "train")]
    if empty or not domains:
        raise SourceError(f"{data.root}: no training images in {', '.join(empty) or 'any domain'}")


def images_stamp(data: Dataset, domain: str, split: str) -> str:
    """Hash the paths, sizes and times of a split's images: it changes when a file is replaced or missing.

    A data set's fingerprint may cover its info files alone, or the day it was built.
    """
    digest = hashlib.sha256()
    for record in data.records(domain, split):
        try:
            status = data.image(record).stat()
        except OSError:
            digest.update(f"{record.path}\0".encode())
        else:
            digest.update(f"{record.path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def class_counts(data: Dataset) -> dict[str, int]:
    """Return the number of training classes of each domain."""
    return {
        domain: len({class_id for record in data.records(domain, "train") for class_id in record.class_ids})
        for domain in data.domains
    }


def read_pixels(file: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Read one image as the service does: uint8 (H, W, 3). Raises SourceError."""
    try:
        return decode(file.read_bytes(), preprocessing, MAX_PIXELS)
    except (OSError, ServiceError) as error:
        raise SourceError(f"{file}: {error}") from error


def describe(graph: nn.Module, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run uint8 (N, H, W, 3) through a torch graph: float32 (N, D)."""
    device = next((parameter.device for parameter in graph.parameters()), None)
    with torch.inference_mode():
        return np.asarray(graph(torch.tensor(pixels, device=device)).cpu().numpy(), dtype=np.float32)
