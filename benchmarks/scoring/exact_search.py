"""Exact nearest neighbours by inner product: the k best rows of a gallery; equal scores keep its order.

float32 products select candidates, float64 products decide. BLAS adds up in an order that depends on where in
a matrix a row stands, so two equal rows may get two float32 scores. The few rows near the k best are
therefore scored again from the same float32 values, each in the same order (as the service does).

A query's own domain is searched first: this is its separate ranking, and sets the bar for other domains.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

_CORES = len(os.sched_getaffinity(0))
_QUERIES = 512  # per tile; with _ROWS, 2 MB of scores, which stay in the cache
_ROWS = 1024
_GROUP = 32  # rows of a tile whose best score is compared with the bar; a group below it is skipped
_PIECE = 4096  # pairs merged, groups inspected, thousands of float64 numbers: bounds memory when many tie

Value = TypeVar("Value")
Mapped = TypeVar("Mapped")


@dataclass(frozen=True)
class BySetting(Generic[Value]):
    """One value for each of UnED's two search settings."""

    merged: Value  # the gallery holds the items of all domains
    separate: Value  # the gallery holds the items of the query's domain only

    def map(self, function: Callable[[Value], Mapped]) -> "BySetting[Mapped]":
        """Apply a function to both values."""
        return BySetting(function(self.merged), function(self.separate))


# (Q, k) rows of the merged gallery, best first; -1 if there are no more, or the query's image is missing.
Neighbours = BySetting[NDArray[np.int64]]


def nearest(
    queries: Mapping[str, NDArray[np.float32]],
    gallery: Mapping[str, NDArray[np.float32]],
    own_rows: Mapping[str, NDArray[np.int64]],
    k: int,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, Neighbours]:
    """Find the k best of a float32 (N, D) gallery of unit norm for every query, by domain.

    Queries are float32 (Q, D) of unit norm, or zeros if the image is missing. `own_rows` holds (Q,) the row
    of its domain's gallery that a query excludes, or -1.

    The merged gallery is the domains' galleries in the given order. Rows of zeros are never found. `advance`
    is called with the number of queries that were searched since the last call. Memory: 10 MB per core
    besides the arguments, and a copy of a domain's rows if some are zeros or occur more than k + 1 times.
    """
    blocks, firsts, first = {}, {}, 0
    for domain, rows in gallery.items():
        blocks[domain], firsts[domain] = _block(rows, first, k + 1), first
        first += len(rows)
    neighbours: dict[str, Neighbours] = {
        domain: BySetting(*(np.full((len(rows), k), -1) for _ in range(2)))
        for domain, rows in queries.items()
    }

    def search(domain: str, part: NDArray[np.intp]) -> int:
        own = own_rows[domain][part]
        best = _Best(queries[domain][part], np.where(own < 0, -1, own + firsts.get(domain, 0)), k)
        for other in sorted(blocks, key=lambda other: other != domain):
            best.search(blocks[other])
            if other == domain:
                neighbours[domain].separate[part] = best.numbers()
        neighbours[domain].merged[part] = best.numbers()
        return len(part)

    # One single-threaded product per core: on a busy machine, a product over all cores waits for the slowest
    # core at every tile.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(_CORES) as pool:
        futures = [
            pool.submit(search, domain, part) for domain, rows in queries.items() for part in _parts(rows)
        ]
        try:
            for done in as_completed(futures):
                advance(done.result())
        finally:
            pool.shutdown(cancel_futures=True)
    return neighbours


def _parts(rows: NDArray[np.float32]) -> list[NDArray[np.intp]]:
    """Numbers of the rows that are not zeros, in parts of about the same size."""
    present = np.flatnonzero(rows.any(axis=1))
    return np.array_split(present, -(-len(present) // _QUERIES)) if len(present) else []


@dataclass(frozen=True)
class _Block:
    """Searchable rows of a domain."""

    rows: NDArray[np.float32]  # (n, D)
    numbers: NDArray[np.int64]  # (n,) in the merged gallery


def _block(rows: NDArray[np.float32], first: int, copies: int) -> _Block:
    """Leave out rows of zeros, and all but the first `copies` of equal rows.

    A gallery may hold ten thousand blank images, which all tie for a blank query; those left out here cannot
    be among its k best.
    """
    numbers = np.arange(first, first + len(rows))
    if not len(rows):
        return _Block(rows, numbers)
    as_bytes = np.ascontiguousarray(rows).view(f"S{rows.shape[1] * rows.itemsize}")[:, 0]
    order = np.argsort(as_bytes, kind="stable")
    ordered = as_bytes[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    nth = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
    keep: NDArray[np.bool_] = np.any(rows, axis=1)
    keep[order[nth >= copies]] = False
    return _Block(rows, numbers) if keep.all() else _Block(rows[keep], numbers[keep])


class _Best:
    """The k best rows so far of up to _QUERIES queries."""

    def __init__(self, rows: NDArray[np.float32], own: NDArray[np.int64], k: int) -> None:
        queries, dim = rows.shape
        self._k, self._own = k, own
        self._columns = np.ascontiguousarray(rows.T)  # (D, Q)
        self._exact = rows.astype(np.float64)
        self._tile = np.empty((_ROWS, queries), dtype=np.float32)
        self._scores = np.full((queries, k), -np.inf)  # descending
        self._numbers = np.full((queries, k), np.iinfo(np.int64).max)
        self._full = False  # every query has k
        # Twice the bound on the float32 error, in any order of summation: dim half-units in the last place.
        self._margin = 2 * (dim + 4) * 2.0**-24
        # A row with a lower float32 score is not among the k best. Padding, at -inf, never passes.
        self._bar = np.full(queries, np.finfo(np.float32).min)

    def numbers(self) -> NDArray[np.int64]:
        """(Q, k) rows of the merged gallery, -1 if there are no more."""
        return np.where(np.isneginf(self._scores), -1, self._numbers)

    def search(self, block: _Block) -> None:
        """Collect pairs that pass the bar and merge many together: a merge costs as much as half a tile."""
        pending: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
        count = 0
        for start in range(0, len(block.rows), _ROWS):
            for query, row in self._passed(block.rows[start : start + _ROWS]):
                pending.append((query, row + start))
                count += len(query)
                if count >= _PIECE:
                    self._merge(block, pending)
                    pending, count = [], 0
        if pending:
            self._merge(block, pending)

    def _passed(self, rows: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Yield arrays of (query, row) pairs that may be among the k best."""
        padded = -(-len(rows) // _GROUP) * _GROUP
        np.matmul(rows, self._columns, out=self._tile[: len(rows)])
        self._tile[len(rows) : padded] = -np.inf
        groups = self._tile[:padded].reshape(-1, _GROUP, len(self._own))
        peaks = groups.max(axis=1)  # (groups, Q)
        if not self._full and len(peaks) > self._k:
            # At least k + 1 rows reach the (k + 1)-th best peak, and one may be the query itself.
            reached = np.partition(peaks, -self._k - 1, axis=0)[-self._k - 1]
            self._raise_bar(slice(None), reached.astype(np.float64))
        passed = np.flatnonzero(peaks >= self._bar)
        for start in range(0, len(passed), _PIECE):
            group, query = np.divmod(passed[start : start + _PIECE], len(self._own))
            pair, nth = np.nonzero(groups[group, :, query] >= self._bar[query, None])
            yield query[pair], group[pair] * _GROUP + nth

    def _raise_bar(self, query: slice | NDArray[np.intp], reached: NDArray[np.float64]) -> None:
        lower = np.maximum(reached - self._margin, -2).astype(np.float32)  # -2: below any score
        self._bar[query] = np.maximum(self._bar[query], lower)

    def _merge(self, block: _Block, pending: list[tuple[NDArray[np.intp], NDArray[np.intp]]]) -> None:
        query, row = (np.concatenate(part) for part in zip(*pending, strict=True))
        number, score = block.numbers[row], self._score(query, block.rows, row)
        last, last_number = self._scores[query, -1], self._numbers[query, -1]
        better = (score > last) | ((score == last) & (number < last_number))
        better &= number != self._own[query]
        query, number, score = query[better], number[better], score[better]
        touched = np.unique(query)
        query = np.concatenate([np.repeat(touched, self._k), query])
        score = np.concatenate([self._scores[touched].ravel(), score])
        number = np.concatenate([self._numbers[touched].ravel(), number])
        order = np.lexsort((number, -score, query))
        heads = np.searchsorted(query[order], touched)
        chosen = order[heads[:, None] + np.arange(self._k)]  # (touched, k)
        self._scores[touched], self._numbers[touched] = score[chosen], number[chosen]
        self._raise_bar(touched, self._scores[touched, -1])
        self._full = not np.isneginf(self._scores[:, -1]).any()

    def _score(
        self, query: NDArray[np.intp], rows: NDArray[np.float32], row: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Score pairs in float64, each separately, so that equal vectors get equal scores."""
        step = max(1, _PIECE * 1000 // rows.shape[1])
        parts = [slice(start, start + step) for start in range(0, len(row), step)]
        return np.concatenate([(self._exact[query[at]] * rows[row[at]]).sum(axis=1) for at in parts])
