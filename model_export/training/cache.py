"""Cache of a frozen backbone's descriptors, computed once for all strategies.

The folder's name hashes everything the descriptors depend on: weights, preprocessing, data, augmentation. The
file's name hashes the sizes and times of the images, so that replaced images are described again.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich import get_console
from torch import nn

from benchmarks.datasets.dataset import Dataset
from benchmarks.progress import progress_bar
from model_export.descriptors.images import describe, images_stamp
from model_export.folders import save_array
from model_export.networks.backbones import Backbone, weights_sha256
from model_export.networks.graph import descriptor_graph
from model_export.training.augment import read_image

_BATCH = 32
AUGMENTATION = 1  # incremented when the augmentation changes


@dataclass(frozen=True)
class DescriptorCache:
    """Cache of one backbone on one data set."""

    root: Path
    row: Backbone
    weights: str  # as for `load_backbone`
    data: Dataset

    def read(self, domain: str, split: str, view: int = 0) -> NDArray[np.float32]:
        """Return float32 (N, D), rows in the info file's order. View 0 is plain, the others are augmented."""
        file = self._folder / domain / f"{split}-{view}-{self._stamp(domain, split)}.npy"
        if not file.exists():
            save_array(file, describe_split(self._descriptor, self.row, self.data, domain, split, view))
        return np.load(file, mmap_mode="r")  # type: ignore[no-any-return]

    @cached_property
    def _stamp(self) -> Callable[[str, str], str]:  # computed once per run: every evaluation reads splits
        return cache(partial(images_stamp, self.data))

    @cached_property
    def _descriptor(self) -> nn.Module:  # separate from the network that is trained
        return descriptor_graph(self.row, self.weights).to(memory_format=torch.channels_last)

    @cached_property
    def _folder(self) -> Path:
        parts = {
            "row": {**asdict(self.row), "preprocessing": self.row.preprocessing.model_dump()},
            "weights": weights_sha256(self.row, self.weights),
            "data": self.data.fingerprint,
            "augmentation": AUGMENTATION,
        }
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        return self.root / f"{self.row.name}-{key}"


def describe_split(
    descriptor: nn.Module, row: Backbone, data: Dataset, domain: str, split: str, view: int = 0
) -> NDArray[np.float32]:
    """Compute descriptors float32 (N, D) of a split by a torch graph that takes pixels."""
    records, parts = data.records(domain, split), []
    with progress_bar(get_console()) as progress:
        task = progress.add_task(f"{domain} {split} {view or ''}", total=len(records))
        for start in range(0, len(records), _BATCH):
            images = [
                read_image(data.image(record), row.preprocessing, view * 10**9 + number if view else None)
                for number, record in enumerate(records[start : start + _BATCH], start)
            ]
            parts.append(describe(descriptor, np.stack(images)))
            progress.advance(task, len(images))
    return np.concatenate(parts) if parts else np.zeros((0, row.descriptor_dim), np.float32)
