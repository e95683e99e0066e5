"""R@1 and mMP@5 as UnED defines them (arXiv 2309.01858, section 4), over rankings however they came about.

A hit is relevant if it has the query's domain and one of the query's classes. `n_q` is the number of
relevant gallery items, the query itself left out; `mMP@5` divides by `m = min(n_q, 5)`. A query without
any relevant item scores 0 (UDON's choice; UnED's code has no guard) and is counted, and so is a query
that failed.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Record
from benchmarks.errors import RunError

DEPTH = 5  # mMP@5 looks no further
MEASURES = ("R@1", "mMP@5")  # columns, wherever a query's two measures stand in an array


@dataclass(frozen=True, slots=True)
class QueryScore:
    """One query."""

    r_at_1: float  # 1.0 if the first hit is relevant, else 0.0
    mmp_at_5: float
    n_q: int


@dataclass(frozen=True, slots=True)
class DomainScore:
    """The mean over a domain's queries, as shares in [0, 1], at full precision."""

    queries: int
    gallery: int
    r_at_1: float
    mmp_at_5: float
    without_match: int  # n_q == 0
    failed: int
    values: NDArray[np.float64] = field(repr=False, compare=False)  # (queries, 2): R@1 and mMP@5 of each

    def to_json(self) -> dict[str, float]:
        """Keyed by the names of the measures."""
        counts = ("queries", "gallery", "without_match", "failed")
        return {
            "R@1": self.r_at_1,
            "mMP@5": self.mmp_at_5,
            **{name: getattr(self, name) for name in counts},
        }


def measures(
    matches: NDArray[np.bool_], n_q: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """R@1 and mMP@5 of each query, (Q,), from which of its first DEPTH hits are relevant, (Q, DEPTH)."""
    m = np.minimum(n_q, DEPTH)
    counted = matches & (np.arange(DEPTH) < m[:, None])
    return counted[:, 0].astype(np.float64), counted.sum(axis=1) / np.maximum(m, 1)


def domain_score(
    r_at_1: NDArray[np.float64],
    mmp_at_5: NDArray[np.float64],
    n_q: NDArray[np.int64],
    gallery: int,
    failed: int,
) -> DomainScore:
    """The means of a domain's queries, each (Q,)."""
    return DomainScore(
        queries=len(n_q),
        gallery=gallery,
        r_at_1=_mean(r_at_1),
        mmp_at_5=_mean(mmp_at_5),
        without_match=int((n_q == 0).sum()),
        failed=failed,
        values=np.stack([r_at_1, mmp_at_5], axis=1),
    )


class Judge:
    """Knows the gallery by its ids, as a service answers, and so what is relevant to a query."""

    def __init__(self, gallery: Iterable[Record], by_position: bool = False) -> None:
        """`by_position`: the first hit was dropped as the query itself, whichever it was, so that the query
        may stand further down, and counts there as the reference has it.
        """
        self._by_position = by_position
        self._gallery = {record.id: record for record in gallery}
        self._members: dict[tuple[str, int], set[str]] = defaultdict(set)
        for record in self._gallery.values():
            for class_id in record.class_ids:
                self._members[record.domain, class_id].add(record.id)

    def gallery_size(self, domain: str) -> int:
        """Items of the domain."""
        return sum(record.domain == domain for record in self._gallery.values())

    def score(self, query: Record, hit_ids: Sequence[str] | None) -> QueryScore:
        """Score one ranking, best first; None for a query that failed.

        A hit that is the query itself raises RunError, but by position: it was to be left out.
        An id that is not of this gallery is a wrong answer.
        """
        relevant = self._relevant(query)
        if query.id in (hit_ids or ()) and not self._by_position:
            raise RunError(f"query {query.id} is among its own hits: the service did not leave it out")
        matches = np.zeros((1, DEPTH), dtype=np.bool_)
        for place, hit_id in enumerate((hit_ids or ())[:DEPTH]):
            matches[0, place] = hit_id in relevant or hit_id == query.id
        (r_at_1,), (mmp_at_5,) = measures(matches, np.array([len(relevant)]))
        return QueryScore(float(r_at_1), float(mmp_at_5), len(relevant))

    def _relevant(self, query: Record) -> set[str]:
        found: set[str] = set()
        for class_id in query.class_ids:
            found |= self._members.get((query.domain, class_id), set())
        return found - {query.id}


def mean_over_domains(scores: Mapping[str, DomainScore]) -> dict[str, float]:
    """The unweighted mean over domains."""
    return {
        "R@1": _mean([score.r_at_1 for score in scores.values()]),
        "mMP@5": _mean([score.mmp_at_5 for score in scores.values()]),
    }


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
