"""R@1 and mMP@5 as UnED defines them (arXiv 2309.01858, section 4).

A hit is relevant if it is of the query's domain and has one of the query's classes (`relevance.py`). `n_q` is
the number of relevant gallery items without the query itself; `mMP@5` divides by `m = min(n_q, 5)`. A query
without any relevant item scores 0 (UDON's choice; UnED's code has no guard) and counts, and so does a query
that failed.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Record
from benchmarks.errors import RunError
from benchmarks.scoring.relevance import Relevance

DEPTH = 5  # hits that mMP@5 counts
MEASURES = ("R@1", "mMP@5")  # the order of columns in every array of measures
COUNTS = ("queries", "gallery", "without_match", "failed")


@dataclass(frozen=True, slots=True)
class QueryScore:
    """Measures of one query."""

    r_at_1: float  # 1.0 if the first hit is relevant, else 0.0
    mmp_at_5: float
    n_q: int


@dataclass(frozen=True, slots=True)
class DomainScore:
    """Means over a domain's queries, as unrounded shares in [0, 1]."""

    queries: int
    gallery: int
    r_at_1: float
    mmp_at_5: float
    without_match: int  # queries with n_q == 0
    failed: int
    values: NDArray[np.float64] = field(repr=False, compare=False)  # (queries, 2): R@1 and mMP@5 of each

    def to_json(self) -> dict[str, float]:
        """Measures by name, and the counts."""
        counts = {name: getattr(self, name) for name in COUNTS}
        return {"R@1": self.r_at_1, "mMP@5": self.mmp_at_5, **counts}


def measures(matches: NDArray[np.bool_], n_q: NDArray[np.int64]) -> NDArray[np.float64]:
    """(Q, 2): R@1 and mMP@5 of each query. `matches` (Q, DEPTH) marks the relevant ones of its first hits."""
    m = np.minimum(n_q, DEPTH)
    counted = matches & (np.arange(DEPTH) < m[:, None])
    return np.stack([counted[:, 0].astype(np.float64), counted.sum(axis=1) / np.maximum(m, 1)], axis=1)


def domain_score(
    matches: NDArray[np.bool_], n_q: NDArray[np.int64], gallery: int, failed: int
) -> DomainScore:
    """Means over a domain's queries; `matches` and `n_q` as in `measures`."""
    values = measures(matches, n_q)
    return DomainScore(
        queries=len(n_q),
        gallery=gallery,
        r_at_1=_mean(values[:, 0]),
        mmp_at_5=_mean(values[:, 1]),
        without_match=int((n_q == 0).sum()),
        failed=failed,
        values=values,
    )


class Judge:
    """Scores rankings of ids, as a service returns them, against a gallery of several domains."""

    def __init__(self, gallery: Iterable[Record], by_position: bool = False) -> None:
        """`by_position` means that each ranking lost its first hit, whether or not that was the query.

        The query may then be among the other hits, and counts as relevant there, as in the reference.
        """
        self._by_position = by_position
        items: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
        for record in gallery:
            items[record.domain][record.id] = record.class_ids
        self._sizes = {domain: len(class_ids) for domain, class_ids in items.items()}
        self._relevance = {domain: Relevance(class_ids.items()) for domain, class_ids in items.items()}

    def gallery_size(self, domain: str) -> int:
        """Number of gallery items of the domain."""
        return self._sizes.get(domain, 0)

    def relevant_ids(self, query: Record) -> set[str]:
        """Ids of the gallery items that are relevant to the query, itself included if it is one of them."""
        relevance = self._relevance.get(query.domain)
        return relevance.items(query.class_ids) if relevance else set()

    def score(self, query: Record, hit_ids: Sequence[str] | None) -> QueryScore:
        """Score one ranking, best first, or None for a query that failed.

        An id that is not in the gallery counts as a wrong hit. Raises RunError if the query is among its own
        hits although it was to be excluded.
        """
        hit_ids = hit_ids or ()
        if query.id in hit_ids and not self._by_position:
            raise RunError(f"query {query.id} is among its own hits: the service did not exclude it")
        relevant = self.relevant_ids(query)
        matches = np.zeros((1, DEPTH), dtype=np.bool_)
        matches[0, : len(hit_ids)] = [hit_id in relevant for hit_id in hit_ids[:DEPTH]]
        n_q = len(relevant - {query.id})
        ((r_at_1, mmp_at_5),) = measures(matches, np.array([n_q])).tolist()
        return QueryScore(r_at_1, mmp_at_5, n_q)


def mean_over_domains(scores: Mapping[str, DomainScore]) -> dict[str, float]:
    """Unweighted mean of each measure over domains."""
    return {name: _mean([score.to_json()[name] for score in scores.values()]) for name in MEASURES}


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
