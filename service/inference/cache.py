"""Embeddings of recent images by the hash of their bytes. Equal images in flight share one computation.

Each model has its own cache, so the key does not include the fingerprint.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")
Lookup = Literal["hit", "miss", "coalesced"]  # coalesced: waited for an equal image of another request

_HASHED_BYTES = 2**16  # hashed in 60 us


def _key(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class Cache(Generic[T]):
    """Keeps the results of the most recently used images. Errors are not kept."""

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._results: OrderedDict[bytes, T] = OrderedDict()
        self._flights: dict[bytes, _Flight[T]] = {}
        self._generation = 0

    def clear(self) -> None:
        """Forget all results, and do not keep those of the images in flight."""
        self._generation += 1
        self._results.clear()
        self._flights.clear()

    def __len__(self) -> int:
        return len(self._results)

    async def get(self, data: bytes, compute: Callable[[bytes], Coroutine[Any, Any, T]]) -> tuple[T, Lookup]:
        """Return the result for `data`, computed once for all requests that wait for it.

        Cancelling one waiting request does not affect the others; cancelling the last cancels `compute`.
        """
        # On the event loop only if it takes less time than a thread's hand-over.
        key = _key(data) if len(data) < _HASHED_BYTES else await asyncio.to_thread(_key, data)
        if key in self._results:
            self._results.move_to_end(key)
            return self._results[key], "hit"
        lookup: Lookup = "coalesced" if key in self._flights else "miss"
        if lookup == "miss":
            task = asyncio.create_task(compute(data))
            generation = self._generation
            task.add_done_callback(lambda done: self._keep(key, done, generation))
            self._flights[key] = _Flight(task)
        flight = self._flights[key]
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task), lookup
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                flight.task.cancel()  # no effect on a finished task
                if self._flights.get(key) is flight:
                    del self._flights[key]

    def _keep(self, key: bytes, task: asyncio.Task[T], generation: int) -> None:
        if task.cancelled() or task.exception() or generation != self._generation:
            return
        self._results[key] = task.result()
        if len(self._results) > self._max_items:
            self._results.popitem(last=False)
