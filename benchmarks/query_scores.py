"""A run's score of every query, for what looks at single queries: intervals, paired tests, failures."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.dataset import Dataset, Record
from benchmarks.errors import RunError
from benchmarks.metrics import Judge, QueryScore
from benchmarks.rankings import Rankings, judge_of, rankings_of
from benchmarks.replay import latest_of, queries_of
from benchmarks.runs import Run

MEASURES = ("R@1", "mMP@5")  # the columns of `measured`

Scores = dict[str, dict[str, QueryScore]]  # by domain and query


def query_scores(run: Run, data: Dataset | None = None) -> Scores:
    """A query that failed or was not asked scores 0. Over the merged gallery, where the run has both.

    `data` is the run's data set, where it lies elsewhere than `run.json` says. Raises RunError where it is
    another one, DataError where it is not there.
    """
    said = run.said()
    data = data or Dataset(Path(said["data"]))
    if data.fingerprint != said["data_fingerprint"]:
        raise RunError(f"{run.folder} is of another data set than {data.root} is now")
    rankings = rankings_of(data, said, latest_of(run.observations()))
    return scores_of(judge_of(data, said), queries_of(data, said), next(iter(rankings.values())))


def scores_of(judge: Judge, queries: Mapping[str, Sequence[Record]], rankings: Rankings) -> Scores:
    """In the queries' order."""
    return {
        domain: {one.id: judge.score(one, rankings.get(one.id)) for one in records}
        for domain, records in queries.items()
    }


def measured(scores: Iterable[QueryScore]) -> NDArray[np.float64]:
    """(queries, 2): R@1 and mMP@5."""
    return np.array([(one.r_at_1, one.mmp_at_5) for one in scores])
