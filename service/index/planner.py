"""The planner of searches: chooses the engine's requests so that a search finds what an exact one would.

`plan` is a generator that does no I/O: it yields requests, is sent the engine's answers, and returns the
ranking. `search` runs it against an index.

The constants were measured with 50,000 to 500,000 clustered vectors of 64 dimensions
(docs/experiments/recall-contract.md).
"""

import math
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.index.base import Candidates, Hit, ItemIds, Nearest, PointId, Query, Stats, VectorIndex

_EXTRA = 8  # candidates beyond k: the engine scores in float32, and its order is not that of float64
_TIE = 1e-6  # scores that differ by less may be equal in the engine
_MAX_CANDIDATES = 2048  # a gallery may contain ten thousand blank images
_GROWTH = 8  # of the number of candidates if ties reach the last one
# Copies of an image link to each other only. All of up to 8 copies were found, 13 of 16, and 46 of 200.
_COPIES = 8
# Candidates of a search in a graph of n vectors: a multiple of the cube root of n, and twice that at k = 100.
_EF, _EF_FILTERED = 15, 22
_EXACT_PER_EF = 80  # items that an exact search compares in the time of one more candidate in a graph
_MIN_LIVE = 0.8  # share of the graph that must not be removed: at .6, ann_recall@10 falls to .96


def plan(query: Query, stats: Stats) -> Generator[Nearest | ItemIds, Any, list[tuple[PointId, float]]]:
    """Return the k nearest points and their scores, best first; ties are sorted by the items' ids.

    `Nearest` is answered with Candidates, and `ItemIds` with the ids by point.
    """
    request = _first_request(query, stats)
    expected = _matching(query, stats) - len(query.exclude)
    while True:
        candidates = yield request
        scores = _scores(candidates, query)
        in_graph = stats.graph > 0 and not request.exact
        if request.limit < _MAX_CANDIDATES and _tied_at_the_cut(scores, query.k, request.limit):
            request = replace(request, limit=min(request.limit * _GROWTH, _MAX_CANDIDATES), exact=True)
        elif in_graph and (len(scores) < min(request.limit, expected) or _has_copies(scores, query.k)):
            request = replace(request, exact=True)
        else:
            break
    if not len(scores):
        return []
    last = np.sort(scores)[-min(query.k, len(scores))]
    best = np.flatnonzero(scores >= last)
    values, counts = np.unique(scores[best], return_counts=True)
    tied = best[np.isin(scores[best], values[counts > 1])]
    ids: dict[PointId, str] = {}
    if tied.size:
        ids = yield ItemIds([candidates.points[row] for row in tied])
    ranked = sorted(
        ((candidates.points[row], float(scores[row])) for row in best),
        key=lambda pair: (-pair[1], ids.get(pair[0], "")),
    )
    # Clipped after sorting: of two scores that rounding puts above 1, the larger is the nearer.
    return [(point, min(1.0, max(-1.0, score))) for point, score in ranked[: query.k]]


def _first_request(query: Query, stats: Stats) -> Nearest:
    """Choose the cheaper of a search in the graph and an exact one, if the graph finds enough."""
    matching = _matching(query, stats)
    multiple = _EF_FILTERED if matching < stats.items else _EF
    ef = query.ef or round(multiple * math.cbrt(stats.graph) * (1 + query.k / 100))
    cheap = matching <= _EXACT_PER_EF * ef
    live = stats.graph - stats.removed
    exact = query.exact or (stats.graph > 0 and (cheap or live < _MIN_LIVE * stats.graph))
    return Nearest(query.k + _EXTRA, exact, ef)


def _matching(query: Query, stats: Stats) -> int:
    """Return the number of items in the query's domains."""
    if not query.domains:
        return stats.items
    return sum(stats.domains.get(domain, 0) for domain in set(query.domains))


def _scores(candidates: Candidates, query: Query) -> NDArray[np.float64]:
    # Not `@`: BLAS sums in an order that depends on the row's position, and equal rows would not tie.
    scores: NDArray[np.float64] = (candidates.vectors * query.embedding.astype(np.float64)).sum(axis=1)
    return scores


def _has_copies(scores: NDArray[np.float64], k: int) -> bool:
    """Return True if so many of the best scores are equal that a graph may hide more of them."""
    ranked = -np.sort(-scores)
    last = ranked[_COPIES - 1 :][:k]  # of the groups of `_COPIES` that start at one of the best k
    return bool((ranked[: len(last)] == last).any())


def _tied_at_the_cut(scores: NDArray[np.float64], k: int, limit: int) -> bool:
    """Return True if points that the limit cut off may have the score of the k-th."""
    if len(scores) < limit:
        return False
    ranked = -np.sort(-scores)
    return bool(ranked[k - 1] - ranked[-1] <= _TIE)


def search(index: VectorIndex, query: Query) -> list[Hit]:
    """Return the k best items, scored in float64 from the stored vectors; ties are sorted by id."""
    steps = plan(query, index.stats())
    answer: Any = None
    while True:
        try:
            request = steps.send(answer)
        except StopIteration as finished:
            ranked: list[tuple[PointId, float]] = finished.value
            break
        if isinstance(request, Nearest):
            answer = index.candidates(query, request)
        else:
            answer = index.item_ids(request.points)
    if not ranked:
        return []
    items = index.items([point for point, _ in ranked])
    return [Hit(items[point], score) for point, score in ranked if point in items]
