"""Items, queries and hits of an index, the protocol that both back ends implement, and exact scoring."""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import StartupError
from service.settings import Quantization


@dataclass(frozen=True, slots=True)
class Item:
    """An indexed image. `(domain, label)` is its class."""

    id: str  # chosen by the client; 1 to 512 characters
    domain: str
    label: str
    embedding: NDArray[np.float32] = field(repr=False)  # (dim,), unit norm
    payload: dict[str, Any] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """Return all fields but the embedding, as in the payload of a point and in the JSON of the item."""
        return {"id": self.id, "domain": self.domain, "label": self.label, "payload": self.payload}


@dataclass(frozen=True, slots=True)
class Query:
    """A search. Empty `domains` means all domains."""

    embedding: NDArray[np.float32] = field(repr=False)  # (dim,), unit norm
    k: int
    domains: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()  # ids
    exact: bool = False
    ef: int | None = None  # candidates of an HNSW search; None: the engine's default


@dataclass(frozen=True, slots=True)
class Hit:
    """An item and its cosine similarity to the query."""

    item: Item
    score: float  # in [-1, 1]


@dataclass(frozen=True, slots=True)
class IndexedItem:
    """An item, and the time at which it was written last."""

    id: str
    domain: str
    indexed_at: str  # ISO 8601, UTC


class VectorIndex(Protocol):
    """Synchronous interface for a single thread. A write is durable when its call returns."""

    backend: str
    quantization: Quantization
    fingerprint: str  # of the model that computed the indexed embeddings

    def upsert(self, items: Sequence[Item]) -> None:
        """Add or replace items with distinct ids."""

    def existing(self, ids: Sequence[str]) -> set[str]:
        """Return the subset of `ids` that is indexed."""

    def get(self, item_id: str) -> Item | None:
        """Return the item, or None."""

    def delete(self, ids: Sequence[str]) -> None:
        """Remove the items that exist."""

    def nearest(self, query: Query, limit: int) -> list[Item]:
        """Return at least the `limit` best items, or all, in any order."""

    def count(self) -> int:
        """Return the number of items."""

    def domains(self) -> dict[str, int]:
        """Return the number of items by domain, sorted by name."""

    def indexed_vectors(self) -> int:
        """Return the number of vectors in an HNSW graph; the others are searched exactly."""

    def indexed(self, start: datetime, end: datetime) -> Iterator[IndexedItem]:
        """Yield the items that were written from `start` to `end`."""

    def undated(self) -> int:
        """Return the number of items without the time of their write, which older versions did not record."""

    def flush(self) -> None:
        """Shorten the log of writes, so that the index opens quickly after a crash."""

    def close(self) -> None:
        """Flush and release the index."""


MAX_DOMAINS = 1_000_000  # that `domains` returns
INDEXED_AT = "indexed_at"  # in the payload of a point, beside the item's fields
INDEXED_FIELDS = ["id", "domain", INDEXED_AT]
INDEXED_PAGE = 1000  # items that `indexed` reads in one call
# Data on disk depends on this namespace.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "universal-image-embedding")


def point_id(item_id: str) -> str:
    """Map an item's id to a UUID, because Qdrant accepts no other strings as ids of points."""
    return str(uuid.uuid5(_NAMESPACE, item_id))


def payload_of(item: Item) -> dict[str, Any]:
    """Return the payload of the item's point, which is written now."""
    return {**item.fields(), INDEXED_AT: datetime.now(UTC).isoformat()}


def indexed_items(points: Iterable[Any]) -> Iterator[IndexedItem]:
    """Convert the points of either engine, with these payload fields."""
    for point in points:
        yield IndexedItem(*(point.payload[name] for name in INDEXED_FIELDS))


def items_of(points: Iterable[Any]) -> list[Item]:
    """Convert the points of either engine, with payload and vector, to items."""
    return [
        Item(
            point.payload["id"],
            point.payload["domain"],
            point.payload["label"],
            np.asarray(point.vector, dtype=np.float32),
            point.payload["payload"],
        )
        for point in points
    ]


def domain_counts(facet_hits: Iterable[Any]) -> dict[str, int]:
    """Convert the facet of either engine; a domain without items is still listed there with a count of 0."""
    return dict(sorted((str(hit.value), hit.count) for hit in facet_hits if hit.count))


def check_quantization(name: str, metadata: dict[str, Any], setting: Quantization, remedy: str) -> None:
    """Raises StartupError if an index has another quantization than the setting."""
    actual = metadata.get("quantization", "none")  # older indexes do not record it
    if actual != setting:
        raise StartupError(
            f"{name} has quantization {actual}, but UIE_INDEX_QUANTIZATION is {setting}: {remedy}"
        )


_MAX_CANDIDATES = 2048


def search(index: VectorIndex, query: Query) -> list[Hit]:
    """Return the k best items, scored in float64 from the stored vectors; ties are sorted by id.

    Engines score in float32 and break ties arbitrarily. Therefore more than k items are fetched and scored
    again, and twice as many if the last one may tie with the k-th, up to a limit: a gallery may contain
    ten thousand blank images.
    """
    vector = query.embedding.astype(np.float64)
    limit = query.k + 8
    while True:
        items = index.nearest(query, limit)
        if not items:
            return []
        # Not `@`: BLAS sums in an order that depends on the row's position, and equal rows would not tie.
        scores = (np.stack([item.embedding for item in items]) * vector).sum(axis=1)  # float64
        pairs = zip(scores.tolist(), items, strict=True)
        ranked = sorted(pairs, key=lambda pair: (-pair[0], pair[1].id))
        # Clipped after sorting: of two scores that rounding puts above 1, the larger is the nearer.
        hits = [Hit(item, min(1.0, max(-1.0, score))) for score, item in ranked]
        cut_is_clear = len(items) < limit or hits[query.k - 1].score - hits[-1].score > 1e-6
        if cut_is_clear or limit >= _MAX_CANDIDATES:
            return hits[: query.k]
        limit *= 2
