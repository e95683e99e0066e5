"""Class-disjoint splits: 40 % of the classes train, 10 % validate, 50 % test.

Classes are ordered by a hash of seed, domain and class name. The order depends on no random generator, and
adding or removing a class moves only the borders between splits, not the other classes.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.errors import DataError

SPLITS = ("train", "val", "test")
SEED = 2309  # the start of the UnED paper's arXiv number; any fixed number would do


@dataclass(frozen=True)
class Split:
    """Class names of one domain by split."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names by class id. Train classes come first, so that their ids have no gaps."""
        return self.train + self.val + self.test


def split_classes(domain: str, classes: Iterable[str], *, seed: int = SEED) -> Split:
    """Split classes: at least half for test, and no split is empty. Raises DataError for fewer than three."""

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{domain}\0{name}".encode()).digest()

    shuffled = sorted(set(classes), key=rank)
    n_classes = len(shuffled)
    if n_classes < 3:
        raise DataError(f"{domain}: {n_classes} classes cannot fill train, val and test")
    n_test = min(-(-n_classes // 2), n_classes - 2)
    n_rest = n_classes - n_test
    n_val = max(round(n_classes / 10), 2 if n_rest >= 4 else 1)
    parts = shuffled[n_test + n_val :], shuffled[n_test : n_test + n_val], shuffled[:n_test]
    return Split(*(tuple(sorted(names)) for names in parts))
