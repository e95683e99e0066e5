"""Which wrong answers are worth a look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.datasets.dataset import Dataset, Record
from benchmarks.replay.results import Rankings

HITS = 5
RULE = (
    "Queries whose first hit is wrong: those that met another domain before those that met another label, "
    "then those with fewer right among the first five, then by id; one of each label."
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A query whose first hit is wrong."""

    query: Record
    hits: tuple[Record, ...]  # the first five; one that is not in the gallery has no path
    missed: Record | None  # a right answer that is not among all hits, the gallery's first

    @property
    def right(self) -> tuple[bool, ...]:
        """Hit by hit."""
        return tuple(is_right(self.query, hit) for hit in self.hits)

    @property
    def badness(self) -> tuple[bool, int, str]:
        """The worst sort first."""
        return self.hits[0].domain == self.query.domain, sum(self.right), self.query.id


def is_right(query: Record, hit: Record) -> bool:
    """UnED's rule: the query's domain, and one of its classes."""
    return hit.domain == query.domain and not set(hit.class_ids).isdisjoint(query.class_ids)


def worst_failures(
    data: Dataset, said: Mapping[str, Any], rankings: Rankings, per_domain: int
) -> dict[str, list[Failure]]:
    """By domain, by RULE; domains without a failure are left out. Raises DataError."""
    galleries = {domain: data.gallery(domain, said["split"]) for domain in said["domains"]}
    by_id = {record.id: record for gallery in galleries.values() for record in gallery}
    hit_ids = {query: hits for query, hits in rankings.items() if hits}
    found: dict[str, list[Failure]] = {}
    for domain, gallery in galleries.items():
        asked = [query for query in data.queries(domain, said["split"]) if query.id in hit_ids]
        answers = [Failure(query, _hits(hit_ids[query.id], by_id), None) for query in asked]
        wrong = sorted((one for one in answers if not one.right[0]), key=lambda one: one.badness)
        of_a_label = {one.query.class_ids: one for one in reversed(wrong)}  # the first of each stays
        worst = sorted(of_a_label.values(), key=lambda one: one.badness)[:per_domain]
        if worst:
            found[domain] = [_with_missed(one, set(hit_ids[one.query.id]), gallery) for one in worst]
    return found


def _hits(hit_ids: Sequence[str], by_id: Mapping[str, Record]) -> tuple[Record, ...]:
    unknown = (Record(one, one.partition("/")[0], "", ()) for one in hit_ids[:HITS])
    return tuple(by_id.get(one.id, one) for one in unknown)


def _with_missed(failure: Failure, seen: set[str], gallery: Sequence[Record]) -> Failure:
    query = failure.query
    missed = (one for one in gallery if is_right(query, one) and one.id != query.id and one.id not in seen)
    return Failure(query, failure.hits, next(missed, None))
