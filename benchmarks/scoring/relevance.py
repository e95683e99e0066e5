"""What is relevant to a query, over arrays: an item of its domain that has one of its classes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Labels:
    """The classes of N rows in one flat array: row i has `values[starts[i]:starts[i + 1]]`, each once."""

    starts: NDArray[np.int64]  # (N + 1,)
    values: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> "Labels":
        """From each row's class ids."""
        distinct = [row if len(row) < 2 else sorted(set(row)) for row in rows]
        starts = np.zeros(len(distinct) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in distinct], out=starts[1:])
        flat = (value for row in distinct for value in row)
        return cls(starts, np.fromiter(flat, dtype=np.int64, count=int(starts[-1])))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of each value."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))


class Relevance:
    """Of one domain's gallery."""

    def __init__(self, gallery: Labels) -> None:
        self._classes, codes = np.unique(gallery.values, return_inverse=True)
        rows = gallery.rows
        self._pairs = np.sort(rows * len(self._classes) + codes)  # each (row, class), as one number
        by_class = np.argsort(codes, kind="stable")
        self._members = rows[by_class]  # rows of class 0, of class 1, ...
        self._firsts = np.searchsorted(codes[by_class], np.arange(len(self._classes) + 1))

    def matches(self, queries: Labels, hits: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of each query's hits, rows (Q, K) of the gallery or -1, are relevant to it."""
        found = np.zeros(hits.shape, dtype=np.bool_)
        rows, codes = self._known(queries)
        if not len(codes):
            return found
        pairs = hits[rows] * len(self._classes) + codes[:, None]
        at = np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)
        np.logical_or.at(found, rows, (self._pairs[at] == pairs) & (hits[rows] >= 0))
        return found

    def counts(self, queries: Labels) -> NDArray[np.int64]:
        """How much of the gallery is relevant to each query: (Q,)."""
        rows, codes = self._known(queries)
        counts = np.zeros(len(queries), dtype=np.int64)
        np.add.at(counts, rows, np.diff(self._firsts)[codes])
        # An item may have several of a query's classes, and is one item.
        starts = np.searchsorted(rows, np.arange(len(queries) + 1))
        for query in np.flatnonzero(np.diff(starts) > 1):
            of_classes = [
                self._members[self._firsts[code] : self._firsts[code + 1]]
                for code in codes[starts[query] : starts[query + 1]]
            ]
            counts[query] = len(np.unique(np.concatenate(of_classes)))
        return counts

    def _known(self, queries: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and class codes of those of the queries' classes that the gallery has."""
        if not len(self._classes):
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        codes = np.minimum(np.searchsorted(self._classes, queries.values), len(self._classes) - 1)
        known = self._classes[codes] == queries.values
        return queries.rows[known], codes[known]
