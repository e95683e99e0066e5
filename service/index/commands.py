"""The commands of an index, as data that a socket can carry, and their execution on a `VectorIndex`."""

from collections.abc import Sequence
from typing import Any

import msgspec

from service.errors import UnknownDomain
from service.index.base import Hit, Item, Query, VectorIndex
from service.index.planner import search


class Search(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Returns hits. Raises UnknownDomain if a requested domain has no item."""

    query: Query


class Upsert(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Adds or replaces items with distinct ids. Returns the ids that existed."""

    items: Sequence[Item]


class Get(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Returns an item, or None."""

    item_id: str


class Delete(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Removes an item. Returns True if it existed."""

    item_id: str


class Domains(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Returns the number of items by domain."""


class Counts(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Returns the numbers of items and of vectors in an HNSW graph."""


Command = Search | Upsert | Get | Delete | Domains | Counts
RESULTS: dict[type, Any] = {
    Search: list[Hit],
    Upsert: set[str],
    Get: Item | None,
    Delete: bool,
    Domains: dict[str, int],
    Counts: tuple[int, int],
}


def run(index: VectorIndex, command: Command) -> Any:
    """Execute a command. Raises its errors, and those of the engine."""
    match command:
        case Search(query):
            return _search(index, query)
        case Upsert(items):
            return index.upsert(items)
        case Get(item_id):
            return index.get(item_id)
        case Delete(item_id):
            return bool(index.delete([item_id]))
        case Domains():
            return index.domains()
        case Counts():
            return index.count(), index.indexed_vectors()


def changes(command: Command) -> bool:
    """Return True if the command writes."""
    return isinstance(command, Upsert | Delete)


def _search(index: VectorIndex, query: Query) -> list[Hit]:
    hits = search(index, query)
    absent = set(query.domains) - {hit.item.domain for hit in hits}
    if absent and (unknown := sorted(absent.difference(index.domains()))):
        raise UnknownDomain(
            f"no item is indexed in: {', '.join(unknown)[:200]}; GET /v1/domains lists the domains",
            domains=unknown,
        )
    return hits
