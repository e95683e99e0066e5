"""What is trained on: records, labels, and the pictures or descriptors of a batch."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.datasets.dataset import Dataset, Record
from model_export.descriptors.images import read_pixels, require_images, require_training_images
from model_export.errors import SourceError
from model_export.training.augment import augmented
from model_export.training.sampling import Batch
from service.manifest import Preprocessing


@dataclass(frozen=True)
class TrainingSet:
    """The training split of some domains, labels counted from 0 in each."""

    data: Dataset
    records: dict[str, list[Record]]
    labels: dict[str, NDArray[np.int64]]
    classes: dict[str, int]

    @property
    def sizes(self) -> dict[str, int]:
        """Images of each domain."""
        return {domain: len(records) for domain, records in self.records.items()}


def training_set(data: Dataset, domains: Sequence[str]) -> TrainingSet:
    """All domains if none is named. Raises SourceError for a domain that is empty or not there.

    An image of several classes is trained as one of the first.
    """
    missing = sorted(set(domains) - set(data.domains))
    if missing:
        raise SourceError(
            f"{data.root} has no domain {', '.join(missing)}; it has: {', '.join(data.domains)}"
        )
    domains = domains or data.domains
    require_training_images(data, domains)
    records = {domain: data.records(domain, "train") for domain in domains}
    galleries = [(domain, data.gallery_split(domain, "val")) for domain in domains]
    splits = [(domain, split) for domain in domains for split in ("train", "val")]
    require_images(data, dict.fromkeys([*splits, *galleries]))
    labels, classes = {}, {}
    for domain, rows in records.items():
        known, labels[domain] = np.unique([record.class_ids[0] for record in rows], return_inverse=True)
        classes[domain] = len(known)
    return TrainingSet(data, records, labels, classes)


class Inputs(Protocol):
    """Where the inputs of a stage come from."""

    def of(self, batches: list[Batch], seed: int) -> Iterator[Tensor]:
        """Descriptors float32 (B, D), or pixels uint8 (B, H, W, 3), of every batch in turn."""
        ...


@dataclass(frozen=True)
class CachedDescriptors:
    """Of a frozen backbone: each view is float32 (N, D) for each domain."""

    views: list[dict[str, NDArray[np.float32]]]

    def of(self, batches: list[Batch], seed: int) -> Iterator[Tensor]:
        """A view is drawn for each batch."""
        rng = np.random.default_rng(seed)
        for batch in batches:
            view = self.views[rng.integers(len(self.views))]
            yield torch.from_numpy(view[batch.domain][batch.rows])


@dataclass(frozen=True)
class Pictures:
    """Read, and augmented if asked for, as they are needed."""

    images: TrainingSet
    preprocessing: Preprocessing
    augment: bool
    workers: int  # processes that read; 0: none but this one

    def of(self, batches: list[Batch], seed: int) -> Iterator[Tensor]:
        """The same picture is cut anew each time it comes."""
        keys = [
            [(batch.domain, int(row), zlib.crc32(f"{seed}/{number}/{row}".encode())) for row in batch.rows]
            for number, batch in enumerate(batches)
        ]
        loader: Iterable[Tensor | SourceError] = DataLoader(
            self,  # type: ignore[arg-type]
            batch_sampler=keys,
            num_workers=self.workers,
            multiprocessing_context=_forkserver() if self.workers else None,
            collate_fn=_stacked,
        )
        for batch in loader:
            if isinstance(batch, SourceError):
                raise batch
            yield batch

    def __getitem__(self, key: tuple[str, int, int]) -> NDArray[np.uint8] | SourceError:
        # Raised in a worker, an error would come back with the worker's traceback in its words.
        domain, row, seed = key
        file = self.images.data.image(self.images.records[domain][row])
        try:
            return picture(file, self.preprocessing, seed if self.augment else None)
        except SourceError as error:
            return error


def picture(file: Path, preprocessing: Preprocessing, seed: int | None) -> NDArray[np.uint8]:
    """One training picture, uint8 (H, W, 3): as the service would see it, or augmented by a seed."""
    if seed is None:
        return read_pixels(file, preprocessing)
    return augmented(file, preprocessing, seed)


def _forkserver() -> BaseContext:
    """Readers come from a clean process: a fork of this one, which has threads, may hang."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _stacked(pictures: list[NDArray[np.uint8] | SourceError]) -> Tensor | SourceError:
    read = []
    for one in pictures:
        if isinstance(one, SourceError):
            return one
        read.append(one)
    return torch.from_numpy(np.stack(read))
