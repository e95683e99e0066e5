"""The systems of the table: the runs to train, and the embedding of a split by each system.

Descriptors of the frozen backbone come from the cache. The embeddings of a fine-tuned network are stored in
its run folder.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Dataset
from model_export.descriptors.evaluation import Embed
from model_export.descriptors.images import images_stamp, read_pixels
from model_export.folders import save_array
from model_export.networks.graph import descriptor_graph
from model_export.networks.head import DIM, fit_pca
from model_export.training.cache import DescriptorCache, describe_split
from model_export.training.config import Strategy, load_strategy
from model_export.training.run_folder import RunFolder

STRATEGIES = Path(__file__).parents[1] / "strategies" / "octet"
_CELLS = 4  # of each colour channel, in the histogram
FROZEN = ("ujcrr", "ujcds", "uscrr", "uscds", "balanced", "udon")  # universal, on a frozen backbone


@dataclass(frozen=True)
class Training:
    """A run that the table needs."""

    row: str  # in the table
    seed: int
    strategy: Strategy

    @property
    def folder(self) -> str:
        """Name in the folder of all runs."""
        return f"{self.row.replace(': ', '-').lower()}-seed{self.seed}"


def trainings(data: Dataset, strategies: Path, seeds: int) -> list[Training]:
    """Plan specialists and universal models `seeds` times, and `multi-stage` once, as it takes longest."""
    plan = []
    for seed in range(seeds):
        for domain in data.domains:
            specialist = load_strategy(strategies / "specialist.toml", domains=[domain], seed=seed)
            plan.append(Training(f"specialist: {domain}", seed, specialist))
        universal = [load_strategy(strategies / f"{name}.toml", seed=seed) for name in FROZEN]
        plan += [Training(strategy.title, seed, strategy) for strategy in universal]
    last = load_strategy(strategies / "multi-stage.toml", seed=0)
    return [*plan, Training(last.title, 0, last)]


def off_the_shelf(data: Dataset, cache: DescriptorCache) -> dict[str, Embed]:
    """Return the systems that use no labels, by row."""
    train = {domain: cache.read(domain, "train") for domain in data.domains}
    pca, whitened = fit_pca(train, DIM), fit_pca(train, DIM, whiten=True)

    def colours(domain: str, split: str) -> NDArray[np.float32]:
        files = [data.image(record) for record in data.records(domain, split)]
        rows = [colour_histogram(read_pixels(file, cache.row.preprocessing)) for file in files]
        return np.reshape(rows, (len(rows), _CELLS**3))  # also if there are no images

    return {
        "colour histogram": colours,
        f"raw {cache.row.descriptor_dim}-d": cache.read,
        f"PCA-{DIM}": lambda domain, split: pca(cache.read(domain, split)),
        f"PCA-{DIM}, whitened": lambda domain, split: whitened(cache.read(domain, split)),
    }


def colour_histogram(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the RGB histogram of an image: uint8 (H, W, 3) -> float32 (64,), the lower bound of the table.

    A value is the square root of a cell's share, so the norm is 1.
    """
    cells = pixels.reshape(-1, 3).astype(np.int64) * _CELLS // 256  # (H * W, 3) in 0..3
    numbers = (cells[:, 0] * _CELLS + cells[:, 1]) * _CELLS + cells[:, 2]
    shares = np.bincount(numbers, minlength=_CELLS**3) / len(numbers)
    return np.sqrt(shares).astype(np.float32)


def trained(folder: Path, cache: DescriptorCache) -> Embed:
    """Return the embedding by the best checkpoint of a run. Raises TrainingError if there is none."""
    best = RunFolder(folder).best()
    if best.descriptor is None:
        return lambda domain, split: best.head(cache.read(domain, split))
    descriptor = descriptor_graph(cache.row, cache.weights)
    descriptor.load_state_dict(best.descriptor)

    def tuned(domain: str, split: str) -> NDArray[np.float32]:
        stamp = images_stamp(cache.data, domain, split)
        file = folder / "vectors" / domain / f"{split}-{stamp}.npy"
        if not file.exists():
            save_array(file, best.head(describe_split(descriptor, cache.row, cache.data, domain, split)))
        return np.asarray(np.load(file))

    return tuned
