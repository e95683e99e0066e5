"""Embeddings of images that were here before, by the hash of their bytes; and of those that are on their way.

One process serves one model, so the fingerprint need not be part of the key.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
How = Literal["hit", "miss", "coalesced"]  # coalesced: waited for another request's image, the same one


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class Cache(Generic[T]):
    """Keeps the results of the images that were asked for last. Errors are not kept."""

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._known: OrderedDict[bytes, T] = OrderedDict()
        self._flights: dict[bytes, _Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._known)

    async def get(self, data: bytes, make: Callable[[bytes], Awaitable[T]]) -> tuple[T, How]:
        """What `make` gives for these bytes, made once for all who ask meanwhile.

        One of them that is cancelled takes nothing from the others; when the last is, `make` is, too.
        """
        key = hashlib.blake2b(data, digest_size=16).digest()
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key], "hit"
        how: How = "coalesced" if key in self._flights else "miss"
        if how == "miss":
            self._flights[key] = _Flight(asyncio.ensure_future(self._make(key, data, make)))
        flight = self._flights[key]
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task), how
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                flight.task.cancel()  # does nothing to one that is done
                if self._flights.get(key) is flight:
                    del self._flights[key]

    async def _make(self, key: bytes, data: bytes, make: Callable[[bytes], Awaitable[T]]) -> T:
        made = await make(data)
        self._known[key] = made
        if len(self._known) > self._max_items:
            self._known.popitem(last=False)
        return made
