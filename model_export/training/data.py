"""Training data: records, labels, and the images or descriptors of a batch."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import BaseContext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.datasets.dataset import Dataset, Record
from benchmarks.scoring.evaluation import Vectors, score_vectors
from model_export.descriptors.images import require_images, require_training_images
from model_export.errors import SourceError
from model_export.training.augment import read_image
from model_export.training.sampling import Batch
from service.manifest import Preprocessing

_R_AT_1_SAMPLE = 2000  # queries per domain, against all training images


@dataclass(frozen=True)
class TrainingSet:
    """The training splits of some domains, with labels counted from 0 in each domain.

    An image with several classes is labelled with the first.
    """

    data: Dataset
    records: dict[str, list[Record]]
    labels: dict[str, NDArray[np.int64]]
    classes: dict[str, int]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images by domain."""
        return {domain: len(records) for domain, records in self.records.items()}

    def r_at_1(self, descriptors: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
        """R@1 of the descriptors, (N, D) by domain, among the training images."""
        if not descriptors:
            return {}
        gallery = {domain: Vectors(self.records[domain], rows) for domain, rows in descriptors.items()}
        queries = {}
        for domain, vectors in gallery.items():
            step = max(1, len(vectors.records) // _R_AT_1_SAMPLE)
            queries[domain] = Vectors(vectors.records[::step], vectors.rows[::step])
        return {domain: score.r_at_1 for domain, score in score_vectors(queries, gallery).items()}


def training_set(data: Dataset, domains: Sequence[str]) -> TrainingSet:
    """Load these domains, or all if there are none. Raises SourceError for an empty or unknown domain."""
    if missing := sorted(set(domains) - set(data.domains)):
        raise SourceError(f"{data.root} has no domain {', '.join(missing)}; it has {', '.join(data.domains)}")
    domains = domains or data.domains
    require_training_images(data, domains)
    records = {domain: data.records(domain, "train") for domain in domains}
    galleries = [(domain, data.gallery_split(domain, "val")) for domain in domains]
    splits = [(domain, split) for domain in domains for split in ("train", "val")]
    require_images(data, dict.fromkeys([*splits, *galleries]))
    labels, classes = {}, {}
    for domain, rows in records.items():
        class_ids, labels[domain] = np.unique([row.class_ids[0] for row in rows], return_inverse=True)
        classes[domain] = len(class_ids)
    return TrainingSet(data, records, labels, classes)


@dataclass(frozen=True)
class CachedDescriptors:
    """Descriptors of a frozen backbone: each view has float32 (N, D) by domain."""

    views: list[dict[str, NDArray[np.float32]]]

    def read(self, batches: list[Batch], seed: int) -> Iterator[Tensor]:
        """Yield descriptors float32 (B, D) of each batch from a random view."""
        rng = np.random.default_rng(seed)
        for batch in batches:
            view = self.views[rng.integers(len(self.views))]
            yield torch.from_numpy(view[batch.domain][batch.rows])


@dataclass(frozen=True)
class ImageInputs:
    """Images that are read, and optionally augmented, when they are needed."""

    images: TrainingSet
    preprocessing: Preprocessing
    augment: bool
    workers: int  # processes that read; 0: this process reads

    def read(self, batches: list[Batch], seed: int) -> Iterator[Tensor]:
        """Yield pixels uint8 (B, H, W, 3) of each batch. An image is augmented differently every time."""
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
        # An error raised in a worker process would arrive with a traceback in its message.
        domain, row, seed = key
        file = self.images.data.image(self.images.records[domain][row])
        try:
            return read_image(file, self.preprocessing, seed if self.augment else None)
        except SourceError as error:
            return error


Inputs = CachedDescriptors | ImageInputs


def _forkserver() -> BaseContext:
    """Return a context for readers. A fork of this process, which has threads, might hang."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _stacked(images: list[NDArray[np.uint8] | SourceError]) -> Tensor | SourceError:
    pixels = []
    for image in images:
        if isinstance(image, SourceError):
            return image
        pixels.append(image)
    return torch.from_numpy(np.stack(pixels))
