"""A replay with its rankings: the service's hits, or an exact search over its embeddings."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Dataset, Record
from benchmarks.errors import RunError
from benchmarks.replay.records import ReplayRecord, Scope
from benchmarks.replay.replay import latest_of, queries_of
from benchmarks.runs.latency import group_latencies_ms
from benchmarks.runs.run import Observation, Run, answered
from benchmarks.scoring.evaluation import Vectors, rank
from benchmarks.scoring.measures import Judge, QueryScore

Rankings = dict[str, list[str] | None]  # hit ids by query, best first; None: the query failed
Latest = Mapping[str, Observation]  # last observation by id of the query or gallery image


@dataclass(frozen=True)
class RankedRun:
    """A replay, read and ranked once for all reports of it."""

    run: Run
    data: Dataset
    record: ReplayRecord
    observations: list[Observation]
    latest: Latest
    queries: dict[str, list[Record]]  # by domain
    by_scope: dict[Scope, Rankings]  # the requested scope comes first
    judge: Judge

    @property
    def rankings(self) -> Rankings:
        """The rankings in the requested scope."""
        return next(iter(self.by_scope.values()))

    @property
    def gallery(self) -> list[Record]:
        """The gallery of all domains."""
        return _gallery(self.data, self.record)

    @property
    def latencies_ms(self) -> list[float]:
        """Of each answered request; if requests were sent in groups, of each group."""
        with_status_200, scenario = answered(self.observations), self.record.scenario
        if max(scenario.group, scenario.bulk) > 1:
            return group_latencies_ms(with_status_200)
        return [observation.latency_ms for observation in with_status_200]

    @property
    def retried(self) -> int:
        """Queries that failed and were answered when the run was resumed: they do not count as wrong."""
        failed = {seen.query_id for seen in self.observations if seen.status != 200}
        return sum(self.latest[query_id].status == 200 for query_id in failed)


def ranked_run(run: Run, data: Dataset | None = None) -> RankedRun:
    """Read and rank a run. `data` is its data set, if that is not where `run.json` says.

    Raises RunError if it is not a replay or the data set has changed, DataError if the data set is missing.
    """
    record, observations = run.record(ReplayRecord), run.observations()
    data = data or Dataset(Path(record.data))
    if data.fingerprint != record.data_fingerprint:
        raise RunError(f"{run.folder} was measured on another data set than {data.root} is now")
    queries, latest = queries_of(data, record), latest_of(observations)
    return RankedRun(
        run=run,
        data=data,
        record=record,
        observations=observations,
        latest=latest,
        queries=queries,
        by_scope=_rankings(data, record, queries, latest),
        judge=Judge(_gallery(data, record), by_position=record.self_exclusion == "position"),
    )


def _gallery(data: Dataset, record: ReplayRecord) -> list[Record]:
    return [image for domain in record.domains for image in data.gallery(domain, record.split)]


def _rankings(
    data: Dataset, record: ReplayRecord, queries: Mapping[str, list[Record]], latest: Latest
) -> dict[Scope, Rankings]:
    """Rankings by scope: only the requested one if the service searched, both if the harness searches."""
    all_queries = [query for records in queries.values() for query in records]
    if not any(observation.embedding for observation in latest.values()):
        return {record.scope: {query.id: _hits(data, record, query, latest) for query in all_queries}}
    dim = _dim(latest)
    query_vectors = {domain: _vectors(records, latest, dim) for domain, records in queries.items()}
    gallery_vectors = {
        domain: _vectors(data.gallery(domain, record.split), latest, dim) for domain in record.domains
    }
    ranked = rank(query_vectors, gallery_vectors, record.self_exclusion)
    merged: Rankings = {query.id: ranked.merged.get(query.id) for query in all_queries}
    separate: Rankings = {query.id: ranked.separate.get(query.id) for query in all_queries}
    if record.scope == "separate":
        return {"separate": separate, "merged": merged}
    return {"merged": merged, "separate": separate}


def _hits(data: Dataset, record: ReplayRecord, query: Record, latest: Latest) -> list[str] | None:
    observation = latest.get(query.id)
    if observation is None or observation.status != 200:
        return None
    in_gallery = data.gallery_split(query.domain, record.split) == record.split
    # The reference drops the first hit, whether or not it is the query.
    drops_first = in_gallery and record.self_exclusion == "position"
    return observation.hit_ids[1:] if drops_first else observation.hit_ids


def _vectors(records: Sequence[Record], latest: Latest, dim: int) -> Vectors:
    rows = np.zeros((len(records), dim), dtype=np.float32)  # a row of zeros: missing, never a hit
    for row, record in enumerate(records):
        observation = latest.get(record.id)
        if observation is not None and observation.embedding:
            rows[row] = embedding_of(observation)
    return Vectors(list(records), rows)


def embedding_of(observation: Observation) -> NDArray[np.float32]:
    """The embedding in an observation: float32 (D,)."""
    return np.frombuffer(base64.b64decode(observation.embedding), dtype="<f4").astype(np.float32)


def _dim(latest: Latest) -> int:
    dims = {len(embedding_of(observation)) for observation in latest.values() if observation.embedding}
    if len(dims) > 1:
        raise RunError(f"the service returned embeddings of {', '.join(map(str, sorted(dims)))} dimensions")
    return dims.pop()


Scores = dict[str, dict[str, QueryScore]]  # by domain and query


def scores_of(judge: Judge, queries: Mapping[str, Sequence[Record]], rankings: Rankings) -> Scores:
    """Score every query, in order; one that failed or was not sent scores 0."""
    return {
        domain: {query.id: judge.score(query, rankings.get(query.id)) for query in records}
        for domain, records in queries.items()
    }


def measured(scores: Iterable[QueryScore]) -> NDArray[np.float64]:
    """(queries, 2): R@1 and mMP@5."""
    return np.array([(score.r_at_1, score.mmp_at_5) for score in scores])
