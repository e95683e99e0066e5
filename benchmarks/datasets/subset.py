"""Some of the queries, the same ones for the same seed."""

import hashlib
from collections.abc import Mapping, Sequence

from benchmarks.datasets.dataset import Record

# Some 1,000 queries, and 1/8 of UnED's mean each: a standard error of 1.5 points already.
_WHOLE = frozenset({"met", "gldv2"})


def subset(queries: Mapping[str, Sequence[Record]], per_domain: int, seed: int) -> dict[str, list[Record]]:
    """At most `per_domain` queries of each domain, rows in their order; met and gldv2 stay whole.

    A query is taken by a hash of the seed and its id: other domains change nothing, and a smaller subset
    is part of a larger one.
    """
    return {
        domain: list(records) if domain in _WHOLE else _some(records, per_domain, seed)
        for domain, records in queries.items()
    }


def _some(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    def place(row: int) -> bytes:
        return hashlib.sha256(f"{seed}\0{records[row].id}".encode()).digest()

    return [records[row] for row in sorted(sorted(range(len(records)), key=place)[:count])]
