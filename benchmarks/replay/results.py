"""A replay as it was observed, and its rankings: the service's hits, or an exact search over embeddings."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Dataset, Record
from benchmarks.errors import RunError
from benchmarks.replay.replay import latest_of, queries_of
from benchmarks.runs.run import Observation, Run
from benchmarks.scoring.evaluation import Vectors, rank
from benchmarks.scoring.measures import Judge, QueryScore

Rankings = dict[str, list[str] | None]  # hit ids by query, best first; None: the query failed
Latest = Mapping[str, Observation]  # by query or picture, the last time it was asked


@dataclass(frozen=True)
class Replayed:
    """A run read and ranked once, for all that is said of it."""

    run: Run
    data: Dataset
    said: dict[str, Any]  # run.json
    observations: list[Observation]
    latest: Latest
    queries: dict[str, list[Record]]  # by domain
    by_scope: dict[str, Rankings]  # the scope asked for comes first
    judge: Judge

    @property
    def rankings(self) -> Rankings:
        """Of the scope that was asked for."""
        return next(iter(self.by_scope.values()))


def replayed(run: Run, data: Dataset | None = None) -> Replayed:
    """`data` is the run's data set, where it lies elsewhere than `run.json` says.

    Raises RunError where it is another one or the run is no replay, DataError where it is not there.
    """
    said, observations = run.said(), run.observations()
    if said["kind"] != "replay":
        raise RunError(f"{run.folder} is a run of `{said['kind']}`: it has no accuracy")
    data = data or Dataset(Path(said["data"]))
    if data.fingerprint != said["data_fingerprint"]:
        raise RunError(f"{run.folder} is of another data set than {data.root} is now")
    queries, latest = queries_of(data, said), latest_of(observations)
    gallery = (one for domain in said["domains"] for one in data.gallery(domain, said["split"]))
    return Replayed(
        run=run,
        data=data,
        said=said,
        observations=observations,
        latest=latest,
        queries=queries,
        by_scope=_rankings(data, said, queries, latest),
        judge=Judge(gallery, by_position=said["self_exclusion"] == "position"),
    )


def _rankings(
    data: Dataset, said: Mapping[str, Any], queries: Mapping[str, list[Record]], latest: Latest
) -> dict[str, Rankings]:
    """By scope, merged or separate: the one asked for; then the other, where the harness searches."""
    if not any(one.embedding for one in latest.values()):
        records = [one for some in queries.values() for one in some]
        return {said["scope"]: {one.id: _hits(data, said, one, latest) for one in records}}
    dim = _dim(latest)
    asked = {domain: _vectors(records, latest, dim) for domain, records in queries.items()}
    indexed = {
        domain: _vectors(data.gallery(domain, said["split"]), latest, dim) for domain in said["domains"]
    }
    ranked = rank(asked, indexed, said["self_exclusion"])
    ids = [one.id for records in queries.values() for one in records]
    by_scope = {
        scope: {one: hits.get(one) for one in ids}
        for scope, hits in (("merged", ranked.merged), ("separate", ranked.separate))
    }
    return dict(sorted(by_scope.items(), key=lambda item: item[0] != said["scope"]))


def _hits(data: Dataset, said: Mapping[str, Any], query: Record, latest: Latest) -> list[str] | None:
    seen = latest.get(query.id)
    if seen is None or seen.status != 200:
        return None
    in_gallery = data.gallery_split(query.domain, said["split"]) == said["split"]
    # The reference drops the first hit, whichever it is.
    return seen.hit_ids[1:] if in_gallery and said["self_exclusion"] == "position" else seen.hit_ids


def _vectors(records: Sequence[Record], latest: Latest, dim: int) -> Vectors:
    rows = np.zeros((len(records), dim), dtype=np.float32)  # zeros: not there, so nothing finds it
    for row, record in enumerate(records):
        seen = latest.get(record.id)
        if seen is not None and seen.embedding:
            rows[row] = embedding_of(seen)
    return Vectors(list(records), rows)


def embedding_of(seen: Observation) -> NDArray[np.float32]:
    """float32 (D,)."""
    return np.frombuffer(base64.b64decode(seen.embedding), dtype="<f4").astype(np.float32)


def _dim(latest: Latest) -> int:
    dims = {len(embedding_of(one)) for one in latest.values() if one.embedding}
    if len(dims) > 1:
        raise RunError(f"the service gave embeddings of {', '.join(map(str, sorted(dims)))} dimensions")
    return dims.pop()


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
