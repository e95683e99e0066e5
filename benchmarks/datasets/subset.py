"""Reproducible subsets of queries."""

import hashlib
from collections.abc import Mapping, Sequence

from benchmarks.datasets.dataset import Record

# About 1,000 queries each, for 1/8 of UnED's mean: the standard error is 1.5 points already.
_COMPLETE = frozenset({"met", "gldv2"})


def subset(queries: Mapping[str, Sequence[Record]], per_domain: int, seed: int) -> dict[str, list[Record]]:
    """Select at most `per_domain` queries of each domain, in the order of their rows; all of met and gldv2.

    Queries are selected by a hash of the seed and the id, so the selection does not depend on other domains,
    and a smaller subset is part of a larger one.
    """
    return {
        domain: list(records) if domain in _COMPLETE else _sample(records, per_domain, seed)
        for domain, records in queries.items()
    }


def _sample(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    def rank(row: int) -> bytes:
        return hashlib.sha256(f"{seed}\0{records[row].id}".encode()).digest()

    return [records[row] for row in sorted(sorted(range(len(records)), key=rank)[:count])]
