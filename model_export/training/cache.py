"""Descriptors of a frozen backbone, kept on disk: computed once for all strategies.

The folder's name is a hash of what decides them: weights, preprocessing, data, augmentation. The file's name
has a hash of the pictures' sizes and times, so that a picture that was replaced is described again.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich import get_console
from torch import nn

from benchmarks.datasets.dataset import Dataset
from benchmarks.progress import progress_bar
from model_export.descriptors.images import describe, pictures_stamp
from model_export.folders import whole_file
from model_export.networks.backbones import Backbone, weights_sha256
from model_export.networks.graph import descriptor_graph
from model_export.training.data import picture

_BATCH = 32
AUGMENTATION = 1  # counts up when the recipe changes


@dataclass(frozen=True)
class DescriptorCache:
    """Of one backbone on one data set."""

    root: Path
    row: Backbone
    weights: str  # as of a backbone: pretrained, a file, random:SEED
    data: Dataset

    def read(self, domain: str, split: str, view: int = 0) -> NDArray[np.float32]:
        """float32 (N, D), rows in the info file's order. View 0 is plain, the others are augmented."""
        file = self._folder / domain / f"{split}-{view}-{self._stamp(domain, split)}.npy"
        if not file.exists():
            save_rows(file, describe_split(self._descriptor, self.row, self.data, domain, split, view))
        return np.load(file, mmap_mode="r")  # type: ignore[no-any-return]

    def _stamp(self, domain: str, split: str) -> str:
        if (domain, split) not in self._stamps:
            self._stamps[domain, split] = pictures_stamp(self.data, domain, split)
        return self._stamps[domain, split]

    @cached_property
    def _stamps(self) -> dict[tuple[str, str], str]:  # once a run: a split is read at every evaluation
        return {}

    @cached_property
    def _descriptor(self) -> nn.Module:  # its own, which no training changes; loaded when it is needed
        return descriptor_graph(self.row, self.weights).to(memory_format=torch.channels_last)

    @cached_property
    def _folder(self) -> Path:
        said = {
            "row": {**asdict(self.row), "preprocessing": self.row.preprocessing.model_dump()},
            "weights": weights_sha256(self.row, self.weights),
            "data": self.data.fingerprint,
            "augmentation": AUGMENTATION,
        }
        key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
        return self.root / f"{self.row.name}-{key}"


def describe_split(
    descriptor: nn.Module, row: Backbone, data: Dataset, domain: str, split: str, view: int = 0
) -> NDArray[np.float32]:
    """Descriptors float32 (N, D) of one split, by a torch graph that takes pixels."""
    records, parts = data.records(domain, split), []
    with progress_bar(get_console()) as progress:
        task = progress.add_task(f"{domain} {split} {view or ''}", total=len(records))
        for start in range(0, len(records), _BATCH):
            pictures = [
                picture(data.image(record), row.preprocessing, view * 10**9 + start + place if view else None)
                for place, record in enumerate(records[start : start + _BATCH])
            ]
            parts.append(describe(descriptor, np.stack(pictures)))
            progress.advance(task, len(pictures))
    return np.concatenate(parts) if parts else np.zeros((0, row.descriptor_dim), np.float32)


def save_rows(file: Path, rows: NDArray[np.float32]) -> None:
    """Whole or not at all. Raises WriteError."""
    with whole_file(file) as unfinished, unfinished.open("wb") as stream:
        np.save(stream, rows)
