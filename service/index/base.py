"""What an index is: items, queries, hits, and the protocol that both back ends implement."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import StartupError
from service.settings import Quantization


@dataclass(frozen=True, slots=True)
class Item:
    """One indexed picture. `(domain, label)` is its class."""

    id: str  # the client's own; 1 to 512 characters
    domain: str
    label: str
    embedding: NDArray[np.float32] = field(repr=False)  # (dim,), unit norm
    payload: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Query:
    """What to search for. Empty `domains` means all of them."""

    embedding: NDArray[np.float32] = field(repr=False)  # (dim,), unit norm
    k: int
    domains: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()  # ids
    exact: bool = False
    ef: int | None = None  # candidates on the way through an HNSW graph; None: the engine's default


@dataclass(frozen=True, slots=True)
class Hit:
    """An item and its cosine similarity to the query."""

    item: Item
    score: float  # in [-1, 1]


class VectorIndex(Protocol):
    """Synchronous, and called from one thread. A write is durable when its call returns."""

    backend: str
    quantization: Quantization

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model whose embeddings the index was made for."""

    def upsert(self, items: Sequence[Item]) -> None:
        """Add or replace. Ids are distinct."""

    def existing(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that are indexed."""

    def get(self, item_id: str) -> Item | None:
        """The item, or None."""

    def delete(self, ids: Sequence[str]) -> None:
        """Remove those that are there."""

    def nearest(self, query: Query, limit: int) -> list[Item]:
        """At least the `limit` best, or all there are; their order is not used."""

    def count(self) -> int:
        """Number of items."""

    def domains(self) -> dict[str, int]:
        """Items by domain, in the order of the names."""

    def indexed_vectors(self) -> int:
        """Vectors in an HNSW graph; the rest is searched exactly."""

    def close(self) -> None:
        """Flush and release."""


# Any fixed namespace does; this one is the UUID of our own name.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "universal-image-embedding")


def point_id(item_id: str) -> str:
    """Qdrant's points are UUIDs: the same string always gives the same one."""
    return str(uuid.uuid5(_NAMESPACE, item_id))


def point_payload(item: Item) -> dict[str, Any]:
    """What a point carries beside its vector."""
    return {"id": item.id, "domain": item.domain, "label": item.label, "payload": item.payload}


def item_of(payload: dict[str, Any], vector: Any) -> Item:
    """The inverse of `point_payload`."""
    return Item(
        payload["id"],
        payload["domain"],
        payload["label"],
        np.asarray(vector, dtype=np.float32),
        payload["payload"],
    )


def check_quantization(place: str, made: str, wanted: Quantization, remedy: str) -> None:
    """Raises StartupError where an index was made as another than the setting says."""
    if made != wanted:
        raise StartupError(
            f"{place} has quantization {made}, and UIE_INDEX_QUANTIZATION says {wanted}: {remedy}"
        )


_MAX_CANDIDATES = 2048


def search(index: VectorIndex, query: Query) -> list[Hit]:
    """The k best, scored in float64 from the stored vectors; equal scores in the order of the ids.

    Engines score in float32 and break ties as they like. So fetch some more than k, score again, and
    fetch twice as many wherever the last one fetched may still tie with the k-th, up to a bound: a
    gallery may hold ten thousand blank pictures.
    """
    wanted = query.embedding.astype(np.float64)
    limit = query.k + 8
    while True:
        items = index.nearest(query, limit)
        if not items:
            return []
        # Not `@`: BLAS adds up in an order that depends on the row's place, and equal rows would not tie.
        scores = (np.stack([item.embedding for item in items]) * wanted).sum(axis=1)  # float64
        pairs = zip(scores.tolist(), items, strict=True)
        ranked = sorted(pairs, key=lambda pair: (-pair[0], pair[1].id))
        # Cut off to [-1, 1] after that: of two just above 1, by rounding, the larger is the nearer.
        hits = [Hit(item, min(1.0, max(-1.0, score))) for score, item in ranked]
        cut_is_clear = len(items) < limit or hits[query.k - 1].score - hits[-1].score > 1e-6
        if cut_is_clear or limit >= _MAX_CANDIDATES:
            return hits[: query.k]
        limit *= 2
