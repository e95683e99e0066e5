"""Which domain each batch comes from, and which of its images.

A plan is made for the steps up to the next evaluation. It follows from the seed, the stage and the step
alone (and, for UDON, from the teachers' losses so far), so a resumed run goes on as it would have.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_export.errors import ConfigError
from model_export.training.config import Sampling


@dataclass(frozen=True)
class Batch:
    """One step: rows of one domain's training images."""

    domain: str
    rows: NDArray[np.intp]


class Planner:
    """Plans one stage. `visits` and `teacher_loss` are its memory, which a checkpoint keeps."""

    def __init__(
        self,
        said: Sampling,
        sizes: Mapping[str, int],
        batch: int,
        steps: int,
        seed: int,
        visits: Mapping[str, int],
    ) -> None:
        self._said, self._sizes, self._batch, self._seed = said, sizes, batch, seed
        self._plan = domain_plan(said, sizes, steps, seed)
        self._orders: dict[str, tuple[int, NDArray[np.intp]]] = {}
        self.visits = {**dict.fromkeys(sizes, 0), **visits}
        self.teacher_loss: dict[str, float] = {}

    def segment(self, start: int, stop: int) -> list[Batch]:
        """The batches of steps `start` up to `stop`."""
        domains = self._plan[start:stop]
        if self._said.kind == "teacher-loss" and self.teacher_loss:
            # A domain whose teacher still has more to learn comes more often.
            unknown = float(np.mean(list(self.teacher_loss.values())))  # of a domain that was not drawn yet
            shares = np.array([self.teacher_loss.get(name, unknown) for name in self._sizes])
            domains = _by_shares(list(self._sizes), shares, stop - start, [self._seed, start])
        return [Batch(domain, self._rows(domain)) for domain in domains]

    def learned(self, domain: str, teacher_loss: float) -> None:
        """Keep a running mean of what the domain's teacher still loses."""
        before = self.teacher_loss.get(domain, teacher_loss)
        self.teacher_loss[domain] = 0.9 * before + 0.1 * teacher_loss

    def _rows(self, domain: str) -> NDArray[np.intp]:
        # All images of a domain have their turn before one comes again; a domain smaller than a batch
        # gives all it has.
        size = min(self._batch, self._sizes[domain])
        start = self.visits[domain] * size
        self.visits[domain] += 1
        places = np.arange(start, start + size)
        turns = places // self._sizes[domain]
        return np.array(
            [
                self._order(domain, int(turn))[place % self._sizes[domain]]
                for turn, place in zip(turns, places, strict=True)
            ]
        )

    def _order(self, domain: str, turn: int) -> NDArray[np.intp]:
        kept = self._orders.get(domain)
        if kept is None or kept[0] != turn:
            words = [self._seed, turn, *domain.encode()]
            kept = turn, np.random.default_rng(words).permutation(self._sizes[domain])
            self._orders[domain] = kept
        return kept[1]


def domain_plan(said: Sampling, sizes: Mapping[str, int], steps: int, seed: int) -> list[str]:
    """The domain of every step of a stage. Kind `teacher-loss` starts from equal shares."""
    names = list(sizes)
    if said.kind == "round-robin":
        return [names[step % len(names)] for step in range(steps)]
    shares = np.ones(len(names))
    if said.kind == "dataset-size":
        shares = np.array([float(sizes[name]) for name in names]) ** said.size_power
    if said.kind == "steps":
        if set(said.steps) != set(names):
            raise ConfigError(f"sampling.steps names {sorted(said.steps)}, the data has {sorted(names)}")
        shares = np.array([float(said.steps[name]) for name in names])
    return _by_shares(names, shares, steps, [seed])


def _by_shares(names: list[str], shares: NDArray[np.float64], steps: int, seed: list[int]) -> list[str]:
    """Exact shares (the largest remainders are rounded up), in random order; all zeros are equal shares."""
    if not shares.any():  # teachers of one class each have nothing to learn
        shares = np.ones(len(names))
    wanted = shares / shares.sum() * steps
    counts = np.floor(wanted).astype(int)
    for place in np.argsort(counts - wanted, kind="stable")[: steps - counts.sum()]:
        counts[place] += 1
    plan = np.repeat(np.arange(len(names)), counts)
    return [names[one] for one in np.random.default_rng(seed).permutation(plan)]
