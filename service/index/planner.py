"""The planner of searches: chooses the engine's requests so that a search finds what an exact one would.

`plan` is a generator that does no I/O: it yields requests, is sent the engine's answers, and returns the
ranking. `search` runs it against an index.

The constants were measured with 50,000 to 500,000 clustered vectors of 64 dimensions
(docs/experiments/recall-contract.md).
"""

import math
from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np

from service.index.base import Candidates, Hit, ItemIds, Nearest, PointId, Query, Stats, VectorIndex

_Scored = tuple[float, PointId]

_EXTRA = 8  # candidates beyond k: the engine scores in float32, and its order is not that of float64
_TIE = 1e-6  # scores that differ by less may be equal in the engine
_MAX_CANDIDATES = 2048  # a gallery may contain ten thousand blank images
_GROWTH = 8  # of the number of candidates if ties reach the last one
# Copies of an image link to each other only. All of up to 8 copies were found, 13 of 16, and 46 of 200.
_COPIES = 8
# Candidates of a search in a graph of n vectors: a multiple of the cube root of n, three times at k = 100.
_EF, _EF_FILTERED = 14, 20
_MIN_EF = 100  # the engine's default
_EXACT_PER_EF = 80  # items that an exact search compares in the time of one more candidate in a graph
_MIN_LIVE = 0.8  # share of the graph that must not be removed: at .6, ann_recall@10 falls to .96


def plan(query: Query, stats: Stats) -> Generator[Nearest | ItemIds, Any, list[tuple[PointId, float]]]:
    """Return the k nearest points and their scores, best first; ties are sorted by the items' ids.

    `Nearest` is answered with Candidates, and `ItemIds` with the ids by point.
    """
    request = _first_request(query, stats)
    expected = _matching(query, stats) - len(query.exclude)
    while True:
        ranked = _ranked((yield request), query)
        in_graph = stats.graph > 0 and not request.exact
        if request.limit < _MAX_CANDIDATES and _tied_at_the_cut(ranked, query.k, request.limit):
            request = replace(request, limit=min(request.limit * _GROWTH, _MAX_CANDIDATES), exact=True)
        elif in_graph and (len(ranked) < min(request.limit, expected) or _has_copies(ranked, query.k)):
            request = replace(request, exact=True)
        else:
            break
    last = ranked[: query.k][-1:]
    best = [pair for pair in ranked if pair[0] >= last[0][0]]
    counts = Counter(score for score, _ in best)
    ids: dict[PointId, str] = {}
    if tied := [point for score, point in best if counts[score] > 1]:
        ids = yield ItemIds(tied)
        best.sort(key=lambda pair: (-pair[0], ids.get(pair[1], "")))
    # Clipped after sorting: of two scores that rounding puts above 1, the larger is the nearer.
    return [(point, min(1.0, max(-1.0, score))) for score, point in best[: query.k]]


def _first_request(query: Query, stats: Stats) -> Nearest:
    """Choose the cheaper of a search in the graph and an exact one, if the graph finds enough."""
    matching = _matching(query, stats)
    filtered = matching < stats.items
    multiple = _EF_FILTERED if filtered else _EF
    ef = query.ef or max(_MIN_EF, round(multiple * math.cbrt(stats.graph) * (1 + query.k / 50)))
    cheap = matching <= _EXACT_PER_EF * ef
    live = stats.graph - stats.removed
    exact = query.exact or (stats.graph > 0 and (cheap or live < _MIN_LIVE * stats.graph))
    # Deleted items do not match: with 20% of them, ACORN would take four times as long without a filter.
    return Nearest(query.k + _EXTRA, exact, ef, acorn=filtered)


def _matching(query: Query, stats: Stats) -> int:
    """Return the number of items in the query's domains."""
    if not query.domains:
        return stats.items
    return sum(stats.domains.get(domain, 0) for domain in set(query.domains))


def _ranked(candidates: Candidates, query: Query) -> list[_Scored]:
    # Not `@`: BLAS sums in an order that depends on the row's position, and equal rows would not tie.
    scores = (candidates.vectors * query.embedding.astype(np.float64)).sum(axis=1)
    return sorted(zip(scores.tolist(), candidates.points, strict=True), key=itemgetter(0), reverse=True)


def _has_copies(ranked: list[_Scored], k: int) -> bool:
    """Return True if so many of the best scores are equal that a graph may hide more of them."""
    return any(first[0] == last[0] for first, last in zip(ranked[:k], ranked[_COPIES - 1 :], strict=False))


def _tied_at_the_cut(ranked: list[_Scored], k: int, limit: int) -> bool:
    """Return True if points that the limit cut off may have the score of the k-th."""
    return len(ranked) == limit and ranked[k - 1][0] - ranked[-1][0] <= _TIE


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
