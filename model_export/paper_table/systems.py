"""The systems that are compared: what is trained for the table, and how each system embeds a split.

A frozen backbone's descriptors come from the cache. A fine-tuned network describes the pictures anew; its
vectors are kept beside its run.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Dataset
from model_export.descriptors.evaluation import Embed
from model_export.descriptors.images import pictures_stamp, read_pixels
from model_export.errors import TrainingError
from model_export.networks.graph import descriptor_graph
from model_export.networks.head import DIM, fit_pca
from model_export.paper_table.colour import CELLS, colour_histogram
from model_export.training.cache import DescriptorCache, describe_split, save_rows
from model_export.training.config import Strategy, load_strategy
from model_export.training.run_folder import RunFolder, head_of

STRATEGIES = Path(__file__).parents[1] / "strategies" / "octet"
FROZEN = ("ujcrr", "ujcds", "uscrr", "uscds", "balanced", "udon")  # universal, on a frozen backbone


@dataclass(frozen=True)
class Training:
    """One run that the table needs."""

    row: str  # of the table
    seed: int
    strategy: Strategy

    @property
    def folder(self) -> str:
        """Under the folder of all runs."""
        return f"{self.row.replace(': ', '-').lower()}-seed{self.seed}"


def trainings(data: Dataset, strategies: Path, seeds: int) -> list[Training]:
    """Specialists and universal models, `seeds` times; the whole network once, because it takes longest."""
    found = []
    for seed in range(seeds):
        for domain in data.domains:
            said = load_strategy(strategies / "specialist.toml", domains=[domain], seed=seed)
            found.append(Training(f"specialist: {domain}", seed, said))
        universal = [load_strategy(strategies / f"{name}.toml", seed=seed) for name in FROZEN]
        found += [Training(said.title, seed, said) for said in universal]
    last = load_strategy(strategies / "multi-stage.toml", seed=0)
    return [*found, Training(last.title, 0, last)]


def off_the_shelf(data: Dataset, cache: DescriptorCache) -> dict[str, Embed]:
    """Nothing here has seen a label."""
    train = {domain: cache.read(domain, "train") for domain in data.domains}
    pca, whitened = fit_pca(train, DIM), fit_pca(train, DIM, whiten=True)

    def colours(domain: str, split: str) -> NDArray[np.float32]:
        files = [data.image(record) for record in data.records(domain, split)]
        rows = [colour_histogram(read_pixels(file, cache.row.preprocessing)) for file in files]
        return np.reshape(rows, (len(rows), CELLS**3))  # of no pictures, too

    return {
        "colour histogram": colours,
        f"raw {cache.row.descriptor_dim}-d": cache.read,
        f"PCA-{DIM}": lambda domain, split: pca(cache.read(domain, split)),
        f"PCA-{DIM}, whitened": lambda domain, split: whitened(cache.read(domain, split)),
    }


def trained(folder: Path, cache: DescriptorCache) -> Embed:
    """By the best checkpoint of a run. Raises TrainingError where there is none."""
    state = RunFolder(folder).load("best")
    if state is None:
        raise TrainingError(f"{folder} has no best.pt: it has not been trained")
    head = head_of(state["embed"])
    if state["descriptor"] is None:
        return lambda domain, split: head(cache.read(domain, split))
    descriptor = descriptor_graph(cache.row, cache.weights)
    descriptor.load_state_dict(state["descriptor"])

    def tuned(domain: str, split: str) -> NDArray[np.float32]:
        stamp = pictures_stamp(cache.data, domain, split)
        file = folder / "vectors" / domain / f"{split}-{stamp}.npy"
        if not file.exists():
            save_rows(file, head(describe_split(descriptor, cache.row, cache.data, domain, split)))
        return np.asarray(np.load(file))

    return tuned
