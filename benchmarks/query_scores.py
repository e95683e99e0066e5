"""A run's score of every query, for what looks at single queries: intervals, paired tests, failures."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.dataset import Record
from benchmarks.metrics import Judge, QueryScore
from benchmarks.rankings import Rankings

Scores = dict[str, dict[str, QueryScore]]  # by domain and query


def scores_of(judge: Judge, queries: Mapping[str, Sequence[Record]], rankings: Rankings) -> Scores:
    """In the queries' order; a query that failed or was not asked scores 0."""
    return {
        domain: {one.id: judge.score(one, rankings.get(one.id)) for one in records}
        for domain, records in queries.items()
    }


def measured(scores: Iterable[QueryScore]) -> NDArray[np.float64]:
    """(queries, 2): R@1 and mMP@5."""
    return np.array([(one.r_at_1, one.mmp_at_5) for one in scores])
