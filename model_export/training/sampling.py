"""Sampling: the domain and the images of each batch.

Batches are planned up to the next evaluation. The plan depends only on the seed, the stage and the step (for
UDON also on the teachers' losses so far), so a resumed run continues exactly as it would have.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_export.errors import ConfigError
from model_export.training.config import Sampling


@dataclass(frozen=True)
class Batch:
    """The input of one step: rows of one domain's training images."""

    domain: str
    rows: NDArray[np.intp]


class Planner:
    """Plans one stage. `visits` and `teacher_loss` are its state, stored in a checkpoint."""

    def __init__(
        self,
        config: Sampling,
        sizes: Mapping[str, int],
        batch: int,
        steps: int,
        seed: int,
        visits: Mapping[str, int],
    ) -> None:
        self._config, self._sizes, self._batch, self._seed = config, sizes, batch, seed
        self._plan = domain_plan(config, sizes, steps, seed)
        self._orders: dict[str, tuple[int, NDArray[np.intp]]] = {}
        self.visits = {**dict.fromkeys(sizes, 0), **visits}
        self.teacher_loss: dict[str, float] = {}

    def segment(self, start: int, stop: int) -> list[Batch]:
        """Return the batches of the steps from `start` up to `stop`."""
        domains = self._plan[start:stop]
        if self._config.kind == "teacher-loss" and self.teacher_loss:
            # Domains whose teacher has a higher loss are sampled more often.
            mean = float(np.mean(list(self.teacher_loss.values())))  # for domains that were not sampled yet
            shares = np.array([self.teacher_loss.get(name, mean) for name in self._sizes])
            domains = _by_shares(list(self._sizes), shares, stop - start, [self._seed, start])
        return [Batch(domain, self._rows(domain)) for domain in domains]

    def learned(self, domain: str, teacher_loss: float) -> None:
        """Update the running mean of the loss of the domain's teacher."""
        before = self.teacher_loss.get(domain, teacher_loss)
        self.teacher_loss[domain] = 0.9 * before + 0.1 * teacher_loss

    def _rows(self, domain: str) -> NDArray[np.intp]:
        # Every image of a domain is used before any is repeated. A domain smaller than a batch is used whole.
        size = min(self._batch, self._sizes[domain])
        start = self.visits[domain] * size
        self.visits[domain] += 1
        passes, positions = np.divmod(np.arange(start, start + size), self._sizes[domain])
        pairs = zip(passes, positions, strict=True)
        return np.array([self._order(domain, int(number))[position] for number, position in pairs])

    def _order(self, domain: str, number: int) -> NDArray[np.intp]:
        """Return the order of the images in a pass over the domain."""
        if domain not in self._orders or self._orders[domain][0] != number:
            entropy = [self._seed, number, *domain.encode()]
            order = np.random.default_rng(entropy).permutation(self._sizes[domain])
            self._orders[domain] = number, order
        return self._orders[domain][1]


def domain_plan(config: Sampling, sizes: Mapping[str, int], steps: int, seed: int) -> list[str]:
    """Return the domain of every step of a stage. Kind `teacher-loss` starts with equal shares."""
    names = list(sizes)
    if config.kind == "round-robin":
        return [names[step % len(names)] for step in range(steps)]
    shares = np.ones(len(names))
    if config.kind == "dataset-size":
        shares = np.array([float(sizes[name]) for name in names]) ** config.size_power
    if config.kind == "steps":
        if set(config.steps) != set(names):
            raise ConfigError(f"sampling.steps names {sorted(config.steps)}, the data has {sorted(names)}")
        shares = np.array([float(config.steps[name]) for name in names])
    return _by_shares(names, shares, steps, [seed])


def _by_shares(names: list[str], shares: NDArray[np.float64], steps: int, seed: list[int]) -> list[str]:
    """Plan exact shares (largest remainders are rounded up) in random order; all zeros mean equal shares."""
    if not shares.any():  # teachers with a single class have no loss
        shares = np.ones(len(names))
    exact = shares / shares.sum() * steps
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: steps - counts.sum()]] += 1
    plan = np.repeat(np.arange(len(names)), counts)
    return [names[number] for number in np.random.default_rng(seed).permutation(plan)]
