"""Descriptors of a data set's images, by the torch graph."""

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


def missing_images(data: Dataset, splits: Iterable[tuple[str, str]]) -> list[Path]:
    """Files that the info files of these (domain, split) name and the disk has not; each once, in order."""
    files = (data.image(record) for domain, split in splits for record in data.records(domain, split))
    return [file for file in dict.fromkeys(files) if not file.is_file()]


def require_images(data: Dataset, splits: Iterable[tuple[str, str]]) -> None:
    """Raises SourceError where images are missing: how many, and which, or the first of many."""
    missing = missing_images(data, splits)
    if missing:
        named = ", ".join(str(file) for file in missing[:_NAMED])
        part = f", the first {_NAMED}" if len(missing) > _NAMED else ""
        raise SourceError(f"{len(missing)} images of {data.root} are not there{part}: {named}")


def require_training_images(data: Dataset, domains: Sequence[str]) -> None:
    """Raises SourceError where a domain has no training images, or there are no domains."""
    empty = [domain for domain in domains if not data.records(domain, "train")]
    if empty or not domains:
        raise SourceError(f"{data.root}: no training images in {', '.join(empty) or 'any domain'}")


def pictures_stamp(data: Dataset, domain: str, split: str) -> str:
    """Other whenever a file of the split was replaced; one that is not there counts as such.

    A data set's fingerprint may be of its info files alone, or of the day when it was laid out.
    """
    digest = hashlib.sha256()
    for record in data.records(domain, split):
        try:
            found = data.image(record).stat()
        except OSError:
            digest.update(f"{record.path}\0".encode())
        else:
            digest.update(f"{record.path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def class_counts(data: Dataset) -> dict[str, int]:
    """How many classes each domain's training images have."""
    return {
        domain: len({one for record in data.records(domain, "train") for one in record.class_ids})
        for domain in data.domains
    }


def read_pixels(file: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """One picture as the service would see it: uint8 (H, W, 3). Raises SourceError."""
    try:
        return decode(file.read_bytes(), preprocessing, MAX_PIXELS)
    except (OSError, ServiceError) as error:
        raise SourceError(f"{file}: {error}") from error


def describe(graph: nn.Module, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (N, H, W, 3) through a torch graph: float32 (N, D)."""
    device = next((one.device for one in graph.parameters()), None)
    with torch.inference_mode():
        return np.asarray(graph(torch.tensor(pixels, device=device)).cpu().numpy(), dtype=np.float32)
