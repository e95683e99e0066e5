"""R@1 and mMP@5 as UnED defines them (arXiv 2309.01858, section 4), over the merged index.

A hit is relevant if it has the query's domain and one of the query's classes. `n_q` is the number of
relevant gallery items, the query itself left out; `mMP@5` divides by `m = min(n_q, 5)`. A query without
any relevant item scores 0 (UDON's choice; UnED's code has no guard) and is counted, and so is a query
that failed.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.dataset import Record
from benchmarks.errors import RunError

DEPTH = 5  # mMP@5 looks no further


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

    def to_json(self) -> dict[str, float]:
        """Keyed by the names of the measures."""
        rest = asdict(self)
        return {"R@1": rest.pop("r_at_1"), "mMP@5": rest.pop("mmp_at_5"), **rest}


class Judge:
    """Knows the gallery, and so what is relevant to a query and how much of it there is."""

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
        m = min(len(relevant), 5)
        if hit_ids is None or m == 0:
            return QueryScore(0.0, 0.0, len(relevant))
        matches = [hit_id in relevant or hit_id == query.id for hit_id in hit_ids[:m]]
        return QueryScore(float(matches[:1] == [True]), sum(matches) / m, len(relevant))

    def _relevant(self, query: Record) -> set[str]:
        found: set[str] = set()
        for class_id in query.class_ids:
            found |= self._members.get((query.domain, class_id), set())
        return found - {query.id}


def score_domain(
    judge: Judge, domain: str, queries: Sequence[Record], rankings: Mapping[str, Sequence[str] | None]
) -> DomainScore:
    """`rankings` maps query ids to hit ids; a query that is missing or None has failed."""
    scores = [judge.score(query, rankings.get(query.id)) for query in queries]
    return DomainScore(
        queries=len(queries),
        gallery=judge.gallery_size(domain),
        r_at_1=_mean([score.r_at_1 for score in scores]),
        mmp_at_5=_mean([score.mmp_at_5 for score in scores]),
        without_match=sum(score.n_q == 0 for score in scores),
        failed=sum(rankings.get(query.id) is None for query in queries),
    )


def mean_over_domains(scores: Mapping[str, DomainScore]) -> dict[str, float]:
    """The unweighted mean over domains."""
    return {
        "R@1": _mean([score.r_at_1 for score in scores.values()]),
        "mMP@5": _mean([score.mmp_at_5 for score in scores.values()]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
