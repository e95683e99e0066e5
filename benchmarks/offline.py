"""Descriptors instead of a service: exact search in NumPy, scored by the same measures.

Similarity is the inner product of L2-normalised vectors (UnED, arXiv 2309.01858). Equal scores keep the
gallery's order; a query that is itself in the gallery is left out by id.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.dataset import Record
from benchmarks.errors import DataError
from benchmarks.metrics import DomainScore, Judge, score_domain

HITS = 5  # mMP@5 looks no further
_BLOCK = 512  # queries at a time: 512 x gallery scores


@dataclass(frozen=True)
class Vectors:
    """Records and their descriptors, row for row."""

    records: list[Record]
    rows: NDArray[np.float32]  # (N, D), of any norm

    def __post_init__(self) -> None:
        if len(self.records) != len(self.rows):
            raise DataError(f"{len(self.records)} records, but {len(self.rows)} descriptors")


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """L2-normalised; a row of zeros stays one."""
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def rank(queries: Vectors, gallery: Vectors) -> dict[str, list[str]]:
    """The first HITS gallery ids of every query, best first, the query itself left out.

    A row of zeros stands for an image that was not there: as a query it has no ranking, so it counts as
    failed, and in the gallery nothing finds it.
    """
    ids = np.array([record.id for record in gallery.records])
    row_of = {record.id: row for row, record in enumerate(gallery.records)}
    units = unit(gallery.rows)
    absent = ~units.any(axis=1)  # (gallery,)
    ranked: dict[str, list[str]] = {}
    for start in range(0, len(queries.records), _BLOCK):
        block = queries.records[start : start + _BLOCK]
        asked = unit(queries.rows[start : start + _BLOCK])
        scores = asked @ units.T  # (block, gallery)
        scores[:, absent] = -np.inf
        for query, own, row in zip(block, asked, scores, strict=True):
            if not own.any():
                continue
            if query.id in row_of:
                row[row_of[query.id]] = -np.inf
            ranked[query.id] = [str(ids[one]) for one in _best(row)]
    return ranked


def score_vectors(queries: Mapping[str, Vectors], gallery: Mapping[str, Vectors]) -> dict[str, DomainScore]:
    """Each domain's queries against the merged gallery of all domains given."""
    merged = Vectors(
        [record for one in gallery.values() for record in one.records],
        np.concatenate([one.rows for one in gallery.values()]),
    )
    asked = Vectors(
        [record for one in queries.values() for record in one.records],
        np.concatenate([one.rows for one in queries.values()]),
    )
    judge, ranked = Judge(merged.records), rank(asked, merged)
    return {domain: score_domain(judge, domain, one.records, ranked) for domain, one in queries.items()}


def _best(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    hits = min(HITS, int(np.isfinite(scores).sum()))
    if hits == 0:
        return np.array([], dtype=np.intp)
    # All that are as good as the last hit take part, so that ties are settled by the gallery's order.
    candidates = np.flatnonzero(scores >= np.partition(scores, -hits)[-hits])
    order = np.argsort(-scores[candidates], kind="stable")
    return candidates[order[:hits]]
