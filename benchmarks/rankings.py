"""A run's observations to rankings: the service's own hits, or an exact search over its embeddings."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.dataset import Dataset, Record
from benchmarks.errors import RunError
from benchmarks.metrics import Judge
from benchmarks.offline import Vectors, rank
from benchmarks.replay import queries_of
from benchmarks.runs import Observation

Rankings = dict[str, list[str] | None]  # hit ids by query, best first; None: the query failed
Latest = Mapping[str, Observation]  # by query or picture, the last time it was asked


def rankings_of(data: Dataset, said: Mapping[str, Any], latest: Latest) -> dict[str, Rankings]:
    """By scope, merged or separate: the one asked for; then the other, where the harness searches."""
    queries = queries_of(data, said)
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


def judge_of(data: Dataset, said: Mapping[str, Any]) -> Judge:
    """Of the run's gallery and its way of leaving out the query itself."""
    gallery = (one for domain in said["domains"] for one in data.gallery(domain, said["split"]))
    return Judge(gallery, by_position=said["self_exclusion"] == "position")


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
