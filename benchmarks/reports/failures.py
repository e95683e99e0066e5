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


def worst_failures(ranked: RankedRun, per_domain: int) -> dict[str, list[Failure]]:
    """Failures by domain, selected by RULE; domains without any are left out."""
    gallery = {image.id: image for image in ranked.gallery}
    failures = {}
    for domain, queries in ranked.queries.items():
        by_label: dict[tuple[int, ...], Failure] = {}
        of_domain = (failure for query in queries if (failure := _failure(ranked, query, gallery)))
        for failure in sorted(of_domain, key=_order):
            by_label.setdefault(failure.query.class_ids, failure)
        if by_label:
            failures[domain] = list(by_label.values())[:per_domain]
    return failures


def _order(failure: Failure) -> tuple[bool, int, str]:
    return failure.hits[0].domain == failure.query.domain, sum(failure.right), failure.query.id


def _failure(ranked: RankedRun, query: Record, gallery: Mapping[str, Record]) -> Failure | None:
    hit_ids: Sequence[str] = ranked.rankings.get(query.id) or ()
    relevant = ranked.judge.relevant_ids(query)
    if not hit_ids or hit_ids[0] in relevant:
        return None
    missed = min(relevant - {query.id, *hit_ids}, default=None)  # ids are in the gallery's order
    return Failure(
        query,
        tuple(gallery.get(hit_id, Record(hit_id, hit_id.split("/")[0], "", ())) for hit_id in hit_ids[:HITS]),
        tuple(hit_id in relevant for hit_id in hit_ids[:HITS]),
        gallery[missed] if missed else None,
    )
