"""The worst failures of a run: queries whose first hit is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.datasets.dataset import Record
from benchmarks.replay.results import RankedRun

HITS = 5
RULE = (
    "Queries whose first hit is wrong: first those with a hit of another domain, then those with fewer right "
    "hits among the first five, then by id; one per label."
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A query whose first hit is wrong."""

    query: Record
    hits: tuple[Record, ...]  # the first five; one that is not in the gallery has no path
    right: tuple[bool, ...]  # of each hit
    missed: Record | None  # the gallery's first relevant image that is not among all hits

    @property
    def order(self) -> tuple[bool, int, str]:
        """The sort key; the worst failure comes first."""
        return self.hits[0].domain == self.query.domain, sum(self.right), self.query.id


def worst_failures(ranked: RankedRun, per_domain: int) -> dict[str, list[Failure]]:
    """Failures by domain, selected by RULE; domains without any are left out."""
    gallery = {image.id: image for image in ranked.gallery}
    failures = {}
    for domain, queries in ranked.queries.items():
        ordered = sorted(
            (failure for query in queries if (failure := _failure(ranked, query, gallery))),
            key=lambda failure: failure.order,
        )
        first_of_label = {failure.query.class_ids: failure for failure in reversed(ordered)}
        if first_of_label:
            failures[domain] = sorted(first_of_label.values(), key=lambda failure: failure.order)[:per_domain]
    return failures


def _failure(ranked: RankedRun, query: Record, gallery: Mapping[str, Record]) -> Failure | None:
    hit_ids: Sequence[str] = ranked.rankings.get(query.id) or ()
    relevant = ranked.judge.relevant_ids(query)
    if not hit_ids or hit_ids[0] in relevant:
        return None
    missed = min(relevant - {query.id, *hit_ids}, default=None)  # ids are in the gallery's order
    return Failure(
        query,
        tuple(gallery.get(hit_id) or _unknown(hit_id) for hit_id in hit_ids[:HITS]),
        tuple(hit_id in relevant for hit_id in hit_ids[:HITS]),
        gallery[missed] if missed else None,
    )


def _unknown(hit_id: str) -> Record:
    return Record(hit_id, hit_id.partition("/")[0], "", ())
