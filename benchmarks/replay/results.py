"""A replay with its rankings: the service's hits, or an exact search over its embeddings."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
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
Images = Mapping[str, list[Record]]  # by domain


@dataclass(frozen=True)
class RankedRun:
    """A replay, read and ranked once for all reports of it."""

    run: Run
    data: Dataset
    record: ReplayRecord
    observations: list[Observation]
    latest: Latest
    queries: dict[str, list[Record]]  # by domain
    gallery: list[Record]  # of all domains
    by_scope: dict[Scope, Rankings]  # only the requested scope if the service searched
    judge: Judge

    @property
    def rankings(self) -> Rankings:
        """The rankings in the requested scope."""
        return self.by_scope[self.record.scope]

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
        failed = {observation.query_id for observation in self.observations if observation.status != 200}
        return sum(self.latest[query_id].status == 200 for query_id in failed)


def ranked_run(run: Run, data: Dataset | None = None) -> RankedRun:
    """Read and rank a run. `data` is its data set, if that is not where `run.json` says.

    Raises RunError if it is not a replay or the data set has changed, DataError if the data set is missing.
    """
    record, observations = run.record(ReplayRecord), run.observations()
    data = data or Dataset(Path(record.data))
    if data.fingerprint != record.data_fingerprint:
        raise RunError(f"{run.folder} was measured on another data set than {data.root} is now")
    queries, latest = queries_of(data, record, record.domains), latest_of(observations)
    galleries = {domain: data.gallery(domain, record.split) for domain in record.domains}
    gallery = list(chain.from_iterable(galleries.values()))
    return RankedRun(
        run=run,
        data=data,
        record=record,
        observations=observations,
        latest=latest,
        queries=queries,
        gallery=gallery,
        by_scope=_rankings(data, record, queries, galleries, latest),
        judge=Judge(gallery, by_position=record.self_exclusion == "position"),
    )


def _rankings(
    data: Dataset, record: ReplayRecord, queries: Images, galleries: Images, latest: Latest
) -> dict[Scope, Rankings]:
    """Rankings by scope: only the requested one if the service searched, both if the harness searches."""
    all_queries = list(chain.from_iterable(queries.values()))
    embeddings = {
        observation.query_id: embedding_of(observation)
        for observation in latest.values()
        if observation.embedding
    }
    if not embeddings:
        return {record.scope: {query.id: _hits(data, record, query, latest) for query in all_queries}}
    ranked = rank(_vectors(queries, embeddings), _vectors(galleries, embeddings), record.self_exclusion)
    return {
        "merged": {query.id: ranked.merged.get(query.id) for query in all_queries},
        "separate": {query.id: ranked.separate.get(query.id) for query in all_queries},
    }


def _hits(data: Dataset, record: ReplayRecord, query: Record, latest: Latest) -> list[str] | None:
    observation = latest.get(query.id)
    if observation is None or observation.status != 200:
        return None
    in_gallery = data.gallery_split(query.domain, record.split) == record.split
    # The reference drops the first hit, whether or not it is the query.
    drops_first = in_gallery and record.self_exclusion == "position"
    return observation.hit_ids[1:] if drops_first else observation.hit_ids


def _vectors(images: Images, embeddings: Mapping[str, NDArray[np.float32]]) -> dict[str, Vectors]:
    """Vectors by domain; `embeddings` holds (D,) by id of the image."""
    dims = sorted({len(embedding) for embedding in embeddings.values()})
    if len(dims) > 1:
        raise RunError(f"the service returned embeddings of {', '.join(map(str, dims))} dimensions")
    missing = np.zeros(dims[0], dtype=np.float32)  # never a hit
    vectors = {}
    for domain, records in images.items():
        rows = np.array([embeddings.get(record.id, missing) for record in records], dtype=np.float32)
        vectors[domain] = Vectors(records, rows.reshape(len(records), dims[0]))  # also if there are none
    return vectors


def embedding_of(observation: Observation) -> NDArray[np.float32]:
    """The embedding in an observation: float32 (D,)."""
    return np.frombuffer(base64.b64decode(observation.embedding), dtype="<f4").astype(np.float32)


Scores = dict[str, dict[str, QueryScore]]  # by domain and query


def scores_of(judge: Judge, queries: Mapping[str, Sequence[Record]], rankings: Rankings) -> Scores:
    """Score every query, in order; one that failed or was not sent scores 0."""
    return {
        domain: {query.id: judge.score(query, rankings.get(query.id)) for query in records}
        for domain, records in queries.items()
    }


def measured(scores: Scores) -> dict[str, NDArray[np.float64]]:
    """R@1 and mMP@5, (queries, 2) by domain."""
    return {
        domain: np.array([(score.r_at_1, score.mmp_at_5) for score in of_domain.values()])
        for domain, of_domain in scores.items()
    }
