"""Records of an index, and the protocol that both back ends implement."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    ef: int | None = None  # candidates of an HNSW search; None: the planner chooses


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


PointId = uuid.UUID | str | int  # as the engine returns it


@dataclass(frozen=True, slots=True)
class Stats:
    """Sizes by which a search is planned."""

    domains: Mapping[str, int]  # items of each
    items: int
    graph: int  # vectors in an HNSW graph, including those that were removed after it was built
    removed: int  # vectors in the graph whose items have been deleted or replaced


@dataclass(frozen=True, slots=True)
class Nearest:
    """A request to the engine for the `limit` nearest points that match a query, in any order."""

    limit: int
    exact: bool
    ef: int  # candidates, if the search uses a graph
    acorn: bool = False  # follow links across points that do not match


@dataclass(frozen=True, slots=True)
class Candidates:
    """Points that the engine returned for a request."""

    points: Sequence[PointId]
    vectors: NDArray[np.float32]  # (n, dim), as stored


@dataclass(frozen=True, slots=True)
class ItemIds:
    """A request for the items' ids of these points."""

    points: Sequence[PointId]


class VectorIndex(Protocol):
    """Synchronous interface for a single thread. A write is durable when its call returns."""

    backend: str
    quantization: Quantization
    fingerprint: str  # of the model that computed the indexed embeddings

    def upsert(self, items: Sequence[Item]) -> set[str]:
        """Add or replace items with distinct ids. Return the ids that existed."""

    def get(self, item_id: str) -> Item | None:
        """Return the item, or None."""

    def delete(self, ids: Sequence[str]) -> set[str]:
        """Remove the items that exist, and return their ids."""

    def stats(self) -> Stats:
        """Return the sizes by which a search is planned."""

    def candidates(self, query: Query, request: Nearest) -> Candidates:
        """Return the points that are nearest to the query and match it, without payloads."""

    def item_ids(self, points: Sequence[PointId]) -> dict[PointId, str]:
        """Return the ids of the points' items."""

    def items(self, points: Sequence[PointId]) -> dict[PointId, Item]:
        """Return the items of the points that exist."""

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
# The engine scans `OVERSAMPLING` times the limit by quantized vectors, and scores these by the stored ones.
# At turbo-4bit, ann_recall@10 is .989 at 1, and .995 at 2, at 4 and without quantization.
OVERSAMPLING = 2.0
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


def items_of(points: Iterable[Any]) -> dict[PointId, Item]:
    """Convert the points of either engine, with payload and vector, to items."""
    return {
        point.id: Item(
            point.payload["id"],
            point.payload["domain"],
            point.payload["label"],
            np.asarray(point.vector, dtype=np.float32),
            point.payload["payload"],
        )
        for point in points
    }


def candidates_of(points: Sequence[Any], dim: int) -> Candidates:
    """Convert the points of either engine, with vector, to candidates."""
    vectors = np.array([point.vector for point in points], dtype=np.float32).reshape(-1, dim)
    return Candidates([point.id for point in points], vectors)


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
