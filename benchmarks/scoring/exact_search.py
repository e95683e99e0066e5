"""Exact nearest neighbours by inner product: the k best rows of a gallery, equal scores in its order.

Products in float32 propose, float64 decides. BLAS adds up in an order that depends on where in a matrix a
row stands, so two equal rows may get two scores in float32; the few rows near the k best are therefore
scored again, each in the same order, from the same stored float32 (as the service does).

A queries' own domain is looked through first: that is its separate ranking, and the bar for the rest.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

_CORES = len(os.sched_getaffinity(0))
_QUERIES = 512  # of a tile; with _ROWS, 2 MB of scores, which stay in the cache
_ROWS = 1024
_GROUP = 32  # rows of a tile whose best score is held against the bar; a group below it is not looked into
_PIECE = 4096  # pairs merged, groups looked into, float64 numbers in thousands: bounds memory when many tie


@dataclass(frozen=True)
class Asked:
    """Queries of one domain."""

    rows: NDArray[np.float32]  # (Q, D), unit norm; zeros for a query that is not there
    own: NDArray[np.int64]  # (Q,) the row of its domain's gallery to leave out, -1 for none


@dataclass(frozen=True)
class Neighbours:
    """Rows of the merged gallery, best first; -1 where there are no more, or the query was not there."""

    merged: NDArray[np.int64]  # (Q, k)
    separate: NDArray[np.int64]  # (Q, k) of the query's own domain only


def nearest(
    queries: Mapping[str, Asked],
    gallery: Mapping[str, NDArray[np.float32]],
    k: int,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, Neighbours]:
    """The k best of every domain's queries among float32 (N, D) of unit norm, by domain.

    The merged gallery is the domains' in the order given. Rows of zeros are found by nothing. `advance` is
    told how many queries are done. Memory: 10 MB a core beside the arguments, and a copy of a domain's
    rows where some are zeros or there more than k + 1 times.
    """
    blocks, firsts, first = {}, {}, 0
    for domain, rows in gallery.items():
        blocks[domain], firsts[domain] = _block(rows, first, k + 1), first
        first += len(rows)
    found = {
        domain: Neighbours(*(np.full((len(asked.rows), k), -1) for _ in range(2)))
        for domain, asked in queries.items()
    }

    def find(domain: str, part: NDArray[np.intp]) -> int:
        asked, own = queries[domain], queries[domain].own[part]
        best = _Best(asked.rows[part], np.where(own < 0, -1, own + firsts.get(domain, 0)), k)
        for other in sorted(blocks, key=lambda other: other != domain):
            best.look_through(blocks[other])
            if other == domain:
                found[domain].separate[part] = best.numbers()
        found[domain].merged[part] = best.numbers()
        return len(part)

    # A product on one core each: where others use the cores too, one product on all of them waits for the
    # slowest at every tile.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(_CORES) as pool:
        waiting = [
            pool.submit(find, domain, part)
            for domain, asked in queries.items()
            for part in _parts(asked.rows)
        ]
        try:
            for done in as_completed(waiting):
                advance(done.result())
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def _parts(rows: NDArray[np.float32]) -> list[NDArray[np.intp]]:
    """The queries that are there, in parts of about the same size."""
    there = np.flatnonzero(rows.any(axis=1))
    return np.array_split(there, -(-len(there) // _QUERIES)) if len(there) else []


@dataclass(frozen=True)
class _Block:
    """What can be found of a domain."""

    rows: NDArray[np.float32]  # (n, D)
    numbers: NDArray[np.int64]  # (n,) in the merged gallery


def _block(rows: NDArray[np.float32], first: int, copies: int) -> _Block:
    """Without rows of zeros and without what comes after the first `copies` of the same row.

    A gallery may hold ten thousand blank pictures: all would tie for a blank query, and none of those
    left out here can be among its k best.
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
    """The k best so far of up to _QUERIES queries."""

    def __init__(self, rows: NDArray[np.float32], own: NDArray[np.int64], k: int) -> None:
        queries, dim = rows.shape
        self._k, self._own = k, own
        self._columns = np.ascontiguousarray(rows.T)  # (D, Q)
        self._exact = rows.astype(np.float64)
        self._tile = np.empty((_ROWS, queries), dtype=np.float32)
        self._scores = np.full((queries, k), -np.inf)  # descending
        self._numbers = np.full((queries, k), np.iinfo(np.int64).max)
        self._full = False  # every query has k
        # Twice the bound on what float32 may err by, in any order: dim half-units in the last place.
        self._margin = 2 * (dim + 4) * 2.0**-24
        # Whatever scores less, in float32, is not among the k best. Padding, at -inf, never passes.
        self._bar = np.full(queries, np.finfo(np.float32).min)

    def numbers(self) -> NDArray[np.int64]:
        """(Q, k), -1 where there is no such row."""
        return np.where(np.isneginf(self._scores), -1, self._numbers)

    def look_through(self, block: _Block) -> None:
        """What passes the bar waits until it is worth a merge, which costs as much as half a tile."""
        waiting: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
        count = 0
        for start in range(0, len(block.rows), _ROWS):
            for query, row in self._passed(block.rows[start : start + _ROWS]):
                waiting.append((query, row + start))
                count += len(query)
                if count >= _PIECE:
                    self._merge(block, waiting)
                    waiting, count = [], 0
        if waiting:
            self._merge(block, waiting)

    def _passed(self, rows: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Pairs of query and row that may be among the k best, some at a time."""
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
            which, nth = np.nonzero(groups[group, :, query] >= self._bar[query, None])
            yield query[which], group[which] * _GROUP + nth

    def _raise_bar(self, query: slice | NDArray[np.intp], reached: NDArray[np.float64]) -> None:
        lower = np.maximum(reached - self._margin, -2).astype(np.float32)  # -2: below any score
        self._bar[query] = np.maximum(self._bar[query], lower)

    def _merge(self, block: _Block, waiting: list[tuple[NDArray[np.intp], NDArray[np.intp]]]) -> None:
        query, row = (np.concatenate(part) for part in zip(*waiting, strict=True))
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
        """In float64, a pair by itself: the same two vectors get the same score wherever they stand."""
        step = max(1, _PIECE * 1000 // rows.shape[1])
        parts = [slice(start, start + step) for start in range(0, len(row), step)]
        return np.concatenate([(self._exact[query[at]] * rows[row[at]]).sum(axis=1) for at in parts])
