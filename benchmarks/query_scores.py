"""A run's score of every query, for what looks at single queries: intervals, paired tests, failures."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.dataset import Dataset
from benchmarks.errors import RunError
from benchmarks.metrics import Judge, QueryScore
from benchmarks.runs import Run

MEASURES = ("R@1", "mMP@5")  # the columns of `measured`


def query_scores(run: Run, data: Dataset | None = None) -> dict[str, dict[str, QueryScore]]:
    """Domain to query id to score; a query that failed or was not asked scores 0.

    `data` is the run's data set, where it lies elsewhere than `run.json` says. Raises RunError where it is
    another one, DataError where it is not there.
    """
    said = run.said()
    data = data or Dataset(Path(said["data"]))
    if data.fingerprint != said["data_fingerprint"]:
        raise RunError(f"{run.folder} is of another data set than {data.root} is now")
    domains: list[str] = said["domains"]
    judge = Judge(record for domain in domains for record in data.gallery(domain))
    rankings = {one.query_id: one.hit_ids for one in run.observations() if one.status == 200}
    return {
        domain: {query.id: judge.score(query, rankings.get(query.id)) for query in data.queries(domain)}
        for domain in domains
    }


def measured(scores: Mapping[str, QueryScore], query_ids: Iterable[str]) -> NDArray[np.float64]:
    """Those queries of one domain as (queries, 2): R@1 and mMP@5."""
    return np.array([(scores[one].r_at_1, scores[one].mmp_at_5) for one in query_ids])
