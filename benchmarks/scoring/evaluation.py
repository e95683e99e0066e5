"""Descriptors instead of a service: exact search and the same measures, over arrays.

Similarity is the inner product of L2-normalised vectors (UnED, arXiv 2309.01858). Equal scores keep the
gallery's order. A query that is itself in the gallery is left out by id, or by position as in the
reference: k + 1 hits are asked for and the first is dropped, whichever it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Record
from benchmarks.errors import DataError
from benchmarks.scoring.exact_search import Asked, Neighbours, nearest
from benchmarks.scoring.measures import DEPTH, DomainScore, domain_score, measures
from benchmarks.scoring.relevance import Labels, Relevance

_BLOCK = 65_536  # rows normalised at a time, in float64
_ALREADY = 1e-6  # a norm this near 1 is float32's own error

SelfExclusion = Literal["id", "position"]


@dataclass(frozen=True)
class Vectors:
    """Records and their descriptors, row for row."""

    records: list[Record]
    rows: NDArray[np.float32]  # (N, D), of any norm

    def __post_init__(self) -> None:
        if len(self.records) != len(self.rows):
            raise DataError(f"{len(self.records)} records, but {len(self.rows)} descriptors")


@dataclass(frozen=True)
class Ranked:
    """Gallery ids by query, best first, in both settings; nothing of a query that was not there."""

    merged: dict[str, list[str]]
    separate: dict[str, list[str]]


@dataclass(frozen=True)
class Described:
    """Descriptors and classes, row for row: queries or the gallery of one domain."""

    rows: NDArray[np.float32]  # (N, D), unit norm; zeros for an image that was not there
    labels: Labels


@dataclass(frozen=True)
class Scores:
    """By domain, in both settings."""

    merged: dict[str, DomainScore]
    separate: dict[str, DomainScore]


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """L2-normalised; a row of zeros stays one, and so does, to the bit, a row that was of unit norm."""
    units = np.empty(rows.shape, dtype=np.float32)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        norms = np.linalg.norm(block.astype(np.float64), axis=1, keepdims=True)
        norms[(norms == 0) | (np.abs(norms - 1) < _ALREADY)] = 1
        units[start : start + _BLOCK] = block / norms
    return units


def rank(
    queries: Mapping[str, Vectors], gallery: Mapping[str, Vectors], self_exclusion: SelfExclusion = "id"
) -> Ranked:
    """The first DEPTH hits of every query, by domain, in both settings.

    A row of zeros stands for an image that was not there: as a query it has no ranking, so it counts as
    failed, and in the gallery nothing finds it.
    """
    asked = {domain: unit(one.rows) for domain, one in queries.items()}
    own = {domain: _own_rows(one, gallery[domain]) for domain, one in queries.items()}
    known = {domain: unit(one.rows) for domain, one in gallery.items()}
    found = _search(asked, known, own, self_exclusion)
    ids = [record.id for one in gallery.values() for record in one.records]
    ranked = Ranked({}, {})
    for domain, one in queries.items():
        for row in np.flatnonzero(asked[domain].any(axis=1)):
            query = one.records[row].id
            ranked.merged[query] = [ids[hit] for hit in found[domain].merged[row] if hit >= 0]
            ranked.separate[query] = [ids[hit] for hit in found[domain].separate[row] if hit >= 0]
    return ranked


def score_vectors(queries: Mapping[str, Vectors], gallery: Mapping[str, Vectors]) -> dict[str, DomainScore]:
    """Each domain's queries against the merged gallery of all domains given."""
    known = {domain: _described(one) for domain, one in gallery.items()}
    asked = {
        domain: known[domain] if one is gallery[domain] else _described(one)
        for domain, one in queries.items()
    }
    own = {domain: _own_rows(one, gallery[domain]) for domain, one in queries.items()}
    return score(asked, known, own, "id").merged


def score(
    queries: Mapping[str, Described],
    gallery: Mapping[str, Described],
    own: Mapping[str, NDArray[np.int64]],
    self_exclusion: SelfExclusion,
    advance: Callable[[int], object] = lambda _: None,
) -> Scores:
    """Each domain's queries against the merged gallery, and against their own domain's.

    `own` is, (Q,) by domain, the row of its domain's gallery that a query itself is, or -1. `advance` is
    told how many queries are done.
    """
    asked = {domain: one.rows for domain, one in queries.items()}
    known = {domain: one.rows for domain, one in gallery.items()}
    found = _search(asked, known, own, self_exclusion, advance)
    scores, first = Scores({}, {}), 0
    for domain, known_of in gallery.items():
        if domain in queries:
            merged, separate = _judged(queries[domain], known_of, own[domain], found[domain], first)
            scores.merged[domain], scores.separate[domain] = merged, separate
        first += len(known_of.rows)
    return scores


def _search(
    queries: Mapping[str, NDArray[np.float32]],
    gallery: Mapping[str, NDArray[np.float32]],
    own: Mapping[str, NDArray[np.int64]],
    self_exclusion: SelfExclusion,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, Neighbours]:
    """DEPTH hits a query, itself left out."""
    by_position = self_exclusion == "position"
    asked = {
        domain: Asked(rows, np.full_like(own[domain], -1) if by_position else own[domain])
        for domain, rows in queries.items()
    }
    found = nearest(asked, gallery, DEPTH + by_position, advance)
    if by_position:
        found = {domain: _without_first(hits, own[domain] >= 0) for domain, hits in found.items()}
    return found


def _judged(
    queries: Described, gallery: Described, own: NDArray[np.int64], hits: Neighbours, first: int
) -> tuple[DomainScore, DomainScore]:
    """Merged and separate; the domain's gallery begins at row `first` of the merged one."""
    relevance = Relevance(gallery.labels)
    n_q = relevance.counts(queries.labels) - relevance.matches(queries.labels, own[:, None])[:, 0]
    failed = int((~queries.rows.any(axis=1)).sum())

    def judged(merged_rows: NDArray[np.int64]) -> DomainScore:
        rows = merged_rows - first
        rows[(rows < 0) | (rows >= len(gallery.rows))] = -1  # of another domain
        r_at_1, mmp_at_5 = measures(relevance.matches(queries.labels, rows), n_q)
        return domain_score(r_at_1, mmp_at_5, n_q, len(gallery.rows), failed)

    return judged(hits.merged), judged(hits.separate)


def _without_first(found: Neighbours, in_gallery: NDArray[np.bool_]) -> Neighbours:
    """DEPTH of the DEPTH + 1 hits."""
    merged, separate = (
        np.where(in_gallery[:, None], hits[:, 1:], hits[:, :-1]) for hits in (found.merged, found.separate)
    )
    return Neighbours(merged, separate)


def _described(vectors: Vectors) -> Described:
    return Described(unit(vectors.rows), Labels.of(record.class_ids for record in vectors.records))


def _own_rows(queries: Vectors, gallery: Vectors) -> NDArray[np.int64]:
    row_of = {record.id: row for row, record in enumerate(gallery.records)}
    return np.array([row_of.get(record.id, -1) for record in queries.records], dtype=np.int64)
