"""The planner against an engine that gives hand-made answers."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from service.index import Query
from service.index.base import Candidates, ItemIds, Nearest, Stats
from service.index.planner import plan

NORTH = np.array([0, 1], dtype=np.float32)


def at(score: float) -> tuple[float, float]:
    """A vector of this similarity to NORTH."""
    return ((1 - score * score) ** 0.5, score)


def stats(items: int = 1_000_000, graph: int | None = None, removed: int = 0, **domains: int) -> Stats:
    return Stats(domains or {"a": items}, items, items if graph is None else graph, removed)


class Engine:
    """Answers each request for points with the next of the rankings, and records the requests.

    A ranking is a list of scores; the point `p3` has the fourth of them, and its item's id is `names[3]`.
    """

    def __init__(self, *rankings: Sequence[float], names: Sequence[str] = ()) -> None:
        self.rankings = list(rankings)
        self.names = names
        self.requests: list[Nearest | ItemIds] = []

    def run(self, query: Query, sizes: Stats) -> list[tuple[Any, float]]:
        steps, answer = plan(query, sizes), cast(Any, None)
        while True:
            try:
                request = steps.send(answer)
            except StopIteration as finished:
                ranked: list[tuple[Any, float]] = finished.value
                return ranked
            self.requests.append(request)
            if isinstance(request, ItemIds):
                answer = {point: self.names[int(str(point)[1:])] for point in request.points}
            else:
                answer = self._nearest(self.rankings.pop(0)[: request.limit])

    def _nearest(self, scores: Sequence[float]) -> Candidates:
        vectors = np.array([at(score) for score in scores], dtype=np.float32).reshape(-1, 2)
        return Candidates([f"p{n}" for n in range(len(scores))], vectors)


FALLING = [0.9 - n / 1000 for n in range(300)]


def test_the_best_are_ranked_by_the_stored_vectors() -> None:
    engine = Engine([0.1, 0.5, 0.3] + [0.0 - n / 100 for n in range(8)])
    assert [point for point, _ in engine.run(Query(NORTH, 3), stats())] == ["p1", "p2", "p0"]
    assert engine.requests == [Nearest(11, False, 1484)]  # 14 times the cube root of a million, and 6% for k


def test_an_index_without_a_graph_is_searched_once() -> None:
    engine = Engine(FALLING[:4])
    assert len(engine.run(Query(NORTH, 10), stats(1000, graph=0))) == 4
    assert [request.exact for request in engine.requests if isinstance(request, Nearest)] == [False]


@pytest.mark.parametrize(
    ("query", "sizes", "exact"),
    [
        (Query(NORTH, 1), stats(), False),
        (Query(NORTH, 1, exact=True), stats(), True),
        (Query(NORTH, 1), stats(20_000), True),  # fewer items than a search in the graph compares
        (Query(NORTH, 1, ef=16), stats(20_000), False),
        (Query(NORTH, 1, ("a",)), stats(a=150_000, b=850_000), True),
        (Query(NORTH, 1, ("b",)), stats(a=150_000, b=850_000), False),
        (Query(NORTH, 1, ("a", "b")), stats(a=150_000, b=850_000), False),
        (Query(NORTH, 1), stats(removed=150_000), False),
        (Query(NORTH, 1), stats(removed=250_000), True),
        (Query(NORTH, 1), stats(3_000_000, graph=1_000_000, removed=250_000), True),
    ],
)
def test_the_first_request_is_the_cheaper_that_finds_enough(query: Query, sizes: Stats, exact: bool) -> None:
    request = next(plan(query, sizes))
    assert isinstance(request, Nearest)
    assert request.exact is exact


def test_a_filter_takes_more_candidates_and_one_of_all_items_does_not() -> None:
    sizes = stats(a=400_000, b=600_000)
    plans = [
        (request.ef, request.acorn)
        for domains in ((), ("b",), ("a", "b"))
        if isinstance(request := next(plan(Query(NORTH, 10, domains), sizes)), Nearest)
    ]
    assert plans == [(1680, False), (2400, True), (1680, False)]


def test_short_hits_of_a_graph_are_searched_again_exactly() -> None:
    engine = Engine([0.5], FALLING)
    ranked = engine.run(Query(NORTH, 10), stats())
    assert [point for point, _ in ranked] == [f"p{n}" for n in range(10)]
    assert engine.requests == [Nearest(18, False, 1680), Nearest(18, True, 1680)]


def test_all_that_match_are_not_short() -> None:
    excluded = tuple(str(n) for n in range(99_995))
    engine = Engine(FALLING[:5])
    assert len(engine.run(Query(NORTH, 10, exclude=excluded), stats(100_000))) == 5
    assert len(engine.requests) == 1


def test_copies_in_a_graph_are_searched_again_exactly() -> None:
    seven, eight = [[0.9] * count + FALLING[1:20] for count in (7, 8)]
    names = [f"id{9 - n}" for n in range(8)]
    engine = Engine(seven, names=names)
    engine.run(Query(NORTH, 10), stats())
    assert len([request for request in engine.requests if isinstance(request, Nearest)]) == 1
    engine = Engine(eight, eight, names=names)
    ranked = engine.run(Query(NORTH, 10), stats())
    exact = [request.exact for request in engine.requests if isinstance(request, Nearest)]
    assert exact == [False, True]
    assert [point for point, _ in ranked[:8]] == [f"p{n}" for n in reversed(range(8))]


def test_ties_that_fill_the_limit_are_searched_again_with_more_candidates() -> None:
    names = [f"{99 - n:02}" for n in range(100)]
    engine = Engine([0.5] * 100, [0.5] * 100, names=names)
    ranked = engine.run(Query(NORTH, 5), stats())
    assert [point for point, _ in ranked] == ["p99", "p98", "p97", "p96", "p95"]
    assert engine.requests[:2] == [Nearest(13, False, 1540), Nearest(104, True, 1540)]
    assert [type(request) for request in engine.requests[2:]] == [ItemIds]


def test_candidates_are_bounded() -> None:
    engine = Engine(*[[0.5] * 3000] * 9, names=[f"{n:04}" for n in range(3000)])
    assert len(engine.run(Query(NORTH, 5), stats())) == 5
    limits = [request.limit for request in engine.requests if isinstance(request, Nearest)]
    assert limits == [13, 104, 832, 2048]


def test_only_the_ids_of_tied_points_are_requested() -> None:
    engine = Engine([0.9, 0.8, 0.8, 0.7, *FALLING[250:270]], names=["d", "c", "b", "a"])
    ranked = engine.run(Query(NORTH, 2), stats())
    assert [point for point, _ in ranked] == ["p0", "p2"]
    assert engine.requests[1:] == [ItemIds(["p1", "p2"])]


def test_scores_are_clipped() -> None:
    long = np.array([0, 1.0001], dtype=np.float32)
    ranked = Engine([1.0, 0.5, -1.0]).run(Query(long, 3), stats(3, graph=0))
    assert [score for _, score in ranked] == [1.0, pytest.approx(0.50005), -1.0]


def test_an_empty_index_has_no_hits() -> None:
    assert Engine([]).run(Query(NORTH, 3), stats(0)) == []
