"""Scores of descriptors, without a service: exact search and the measures over arrays.

Similarity is the inner product of L2-normalised vectors (UnED, arXiv 2309.01858). Equal scores keep the
gallery's order. A query that is itself in the gallery is excluded by id, or by position as in the reference:
the search returns one more hit and the first is dropped, even if it is another item.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Record
from benchmarks.errors import DataError
from benchmarks.scoring.exact_search import BySetting, Neighbours, nearest
from benchmarks.scoring.measures import DEPTH, DomainScore, domain_score
from benchmarks.scoring.relevance import Relevance

_BLOCK = 65_536  # rows normalised together, in float64
_UNIT_ERROR = 1e-6  # a norm this near to 1 differs by float32's rounding only

SelfExclusion = Literal["id", "position"]
Ranked = BySetting[dict[str, list[str]]]  # gallery ids by query, best first, without queries that failed
Scores = BySetting[dict[str, DomainScore]]  # by domain


@dataclass(frozen=True)
class Vectors:
    """Records and their descriptors, row for row."""

    records: list[Record]
    rows: NDArray[np.float32]  # (N, D), of any norm; zeros if the image is missing

    def __post_init__(self) -> None:
        if len(self.records) != len(self.rows):
            raise DataError(f"{len(self.records)} records, but {len(self.rows)} descriptors")


@dataclass(frozen=True)
class UnitVectors:
    """Normalised descriptors and their class ids, row for row: less memory than `Vectors`."""

    rows: NDArray[np.float32]  # (N, D), unit norm; zeros if the image is missing
    class_ids: Sequence[tuple[int, ...]]


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Normalise rows to unit L2 norm. Rows of zeros, and rows of unit norm, are returned bit for bit."""
    units = np.empty(rows.shape, dtype=np.float32)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        norms = np.linalg.norm(block.astype(np.float64), axis=1, keepdims=True)
        norms[(norms == 0) | (np.abs(norms - 1) < _UNIT_ERROR)] = 1
        units[start : start + _BLOCK] = block / norms
    return units


def rank(
    queries: Mapping[str, Vectors], gallery: Mapping[str, Vectors], self_exclusion: SelfExclusion = "id"
) -> Ranked:
    """Find the first DEPTH hits of every query, in both settings.

    A row of zeros stands for a missing image: a query of zeros gets no ranking, so it counts as failed, and
    an item of zeros is never found.
    """
    query_units, gallery_units, own_rows = _normalised(queries, gallery)
    hits = _search(query_units, gallery_units, own_rows, self_exclusion)
    ids = [record.id for vectors in gallery.values() for record in vectors.records]
    ranked: Ranked = BySetting({}, {})
    for domain, vectors in queries.items():
        for row in np.flatnonzero(query_units[domain].rows.any(axis=1)):
            query_id = vectors.records[row].id
            ranked.merged[query_id] = [ids[hit] for hit in hits[domain].merged[row] if hit >= 0]
            ranked.separate[query_id] = [ids[hit] for hit in hits[domain].separate[row] if hit >= 0]
    return ranked


def score_vectors(queries: Mapping[str, Vectors], gallery: Mapping[str, Vectors]) -> dict[str, DomainScore]:
    """Score each domain's queries against the merged gallery of all domains in `gallery`."""
    return score(*_normalised(queries, gallery), "id").merged


def score(
    queries: Mapping[str, UnitVectors],
    gallery: Mapping[str, UnitVectors],
    own_rows: Mapping[str, NDArray[np.int64]],
    self_exclusion: SelfExclusion,
    advance: Callable[[int], object] = lambda _: None,
) -> Scores:
    """Score each domain's queries, in both settings.

    `own_rows` holds, (Q,) by domain, the row of each query in its domain's gallery, or -1. `advance` is
    called with the number of queries that were searched since the last call.
    """
    hits = _search(queries, gallery, own_rows, self_exclusion, advance)
    scores: Scores = BySetting({}, {})
    first_row = 0
    for domain, items in gallery.items():
        if domain in queries:
            own = np.where(own_rows[domain] < 0, -1, own_rows[domain] + first_row)
            of_domain = _domain_scores(queries[domain], items, own, hits[domain], first_row)
            scores.merged[domain], scores.separate[domain] = of_domain.merged, of_domain.separate
        first_row += len(items.rows)
    return scores


def _search(
    queries: Mapping[str, UnitVectors],
    gallery: Mapping[str, UnitVectors],
    own_rows: Mapping[str, NDArray[np.int64]],
    self_exclusion: SelfExclusion,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, Neighbours]:
    """Find DEPTH hits of every query, itself excluded."""
    by_position = self_exclusion == "position"
    excluded = {domain: np.full_like(rows, -1) if by_position else rows for domain, rows in own_rows.items()}
    query_rows, gallery_rows = (
        {domain: vectors.rows for domain, vectors in side.items()} for side in (queries, gallery)
    )
    hits = nearest(query_rows, gallery_rows, excluded, DEPTH + by_position, advance)
    if by_position:
        hits = {domain: _without_first(rows, own_rows[domain] >= 0) for domain, rows in hits.items()}
    return hits


def _domain_scores(
    queries: UnitVectors, gallery: UnitVectors, own: NDArray[np.int64], hits: Neighbours, first_row: int
) -> BySetting[DomainScore]:
    """Score one domain. `own`, `hits` and `first_row`, the domain's first, are rows of the merged gallery."""
    relevance = Relevance(enumerate(gallery.class_ids, start=first_row))
    matches = hits.map(lambda rows: np.zeros(rows.shape, dtype=np.bool_))
    n_q = np.zeros(len(own), dtype=np.int64)
    per_query = zip(own.tolist(), hits.merged.tolist(), hits.separate.tolist(), strict=True)
    for query, (own_row, merged, separate) in enumerate(per_query):
        relevant = relevance.items(queries.class_ids[query])
        n_q[query] = len(relevant) - (own_row in relevant)
        matches.merged[query] = [row in relevant for row in merged]
        matches.separate[query] = [row in relevant for row in separate]
    failed = int((~queries.rows.any(axis=1)).sum())
    return matches.map(lambda rows: domain_score(rows, n_q, len(gallery.rows), failed))


def _without_first(hits: Neighbours, in_gallery: NDArray[np.bool_]) -> Neighbours:
    """Drop the first hit of queries in the gallery, the last hit of the others."""
    return hits.map(lambda rows: np.where(in_gallery[:, None], rows[:, 1:], rows[:, :-1]))


def _normalised(
    queries: Mapping[str, Vectors], gallery: Mapping[str, Vectors]
) -> tuple[dict[str, UnitVectors], dict[str, UnitVectors], dict[str, NDArray[np.int64]]]:
    """Normalised queries and gallery, and `own_rows` as `score` takes them."""

    def normalise(vectors: Vectors) -> UnitVectors:
        return UnitVectors(unit(vectors.rows), [record.class_ids for record in vectors.records])

    query_units, own_rows = {}, {}
    gallery_units = {domain: normalise(vectors) for domain, vectors in gallery.items()}
    for domain, vectors in queries.items():
        items = gallery[domain]
        query_units[domain] = gallery_units[domain] if vectors is items else normalise(vectors)
        row_of = {record.id: row for row, record in enumerate(items.records)}
        own_rows[domain] = np.array([row_of.get(record.id, -1) for record in vectors.records], np.int64)
    return query_units, gallery_units, own_rows
