"""The asynchronous interface to the index: limits on the calls in flight, and errors of requests."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from service.errors import FingerprintMismatch, IndexUnavailable, Overloaded, UnknownItem
from service.index.base import Hit, Item, Query
from service.index.commands import Command, Counts, Delete, Domains, Get, Search, Upsert
from service.index.links import Link

_LONGEST_S = 60  # of any call, its wait included


class IndexWorker:
    """Asynchronous access to an index. Every method may raise IndexUnavailable or Overloaded."""

    def __init__(
        self,
        link: Link,
        fingerprint: str,
        max_calls: int = 512,
        on_refusal: Callable[[], object] = lambda: None,
    ) -> None:
        """`fingerprint` is the served model's; `max_calls` may be in flight, the running one included."""
        self._link = link
        self._served_fingerprint = fingerprint
        self._max_calls = max_calls
        self._on_refusal = on_refusal
        self._calls = 0
        self._call_s = 0.0  # duration of the latest call, its wait included

    async def open(self) -> None:
        """Connect to the index. Raises StartupError."""
        await self._link.open()

    @property
    def backend(self) -> str:
        """The engine's name."""
        return self._link.backend

    @property
    def quantization(self) -> str:
        """The quantization of the index."""
        return self._link.quantization

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model that computed the indexed embeddings."""
        return self._link.fingerprint

    async def upsert(
        self, items: Sequence[Item], admitted: bool = False, check: Callable[[], None] = lambda: None
    ) -> list[bool]:
        """Add or replace items; of equal ids the last counts. Returns True for each new id.

        `admitted` items, whose embeddings are already computed, wait instead of being refused. `check` is
        called just before the write. Raises FingerprintMismatch, and the errors of `check`.
        """
        self.check_fingerprint()
        return await self._finish(Upsert(items), admitted, check)

    async def search(self, query: Query) -> list[Hit]:
        """Raises FingerprintMismatch, or UnknownDomain if a requested domain has no item."""
        self.check_fingerprint()
        hits: list[Hit] = await self._call(Search(query))
        return hits

    async def get(self, item_id: str) -> Item:
        """Raises UnknownItem."""
        item: Item | None = await self._call(Get(item_id))
        if item is None:
            raise UnknownItem("no item has this id", id=item_id)
        return item

    async def delete(self, item_id: str) -> bool:
        """Remove an item. Returns True if it existed."""
        existed: bool = await self._finish(Delete(item_id))
        return existed

    async def domains(self) -> dict[str, int]:
        """Return the number of items by domain."""
        counts: dict[str, int] = await self._call(Domains())
        return counts

    async def counts(self) -> tuple[int, int]:
        """Return the numbers of items and of vectors in an HNSW graph."""
        items, indexed_vectors = await self._call(Counts())
        return items, indexed_vectors

    async def close(self) -> None:
        """Finish the calls in flight."""
        await self._link.close()

    def check_fingerprint(self) -> None:
        """Raise FingerprintMismatch if the index holds another model's vectors."""
        if self.fingerprint != self._served_fingerprint:
            raise FingerprintMismatch(
                "the index contains vectors of another model; serve that model, or use another collection",
                index=self.fingerprint,
                model=self._served_fingerprint,
            )

    async def _finish(
        self, command: Command, admitted: bool = False, check: Callable[[], None] = lambda: None
    ) -> Any:
        """Call as `_call`; a disconnect does not cancel the call: a write is either refused or complete."""
        check()
        call = asyncio.ensure_future(self._call(command, admitted))
        call.add_done_callback(lambda done: done.cancelled() or done.exception())  # the link has logged it
        return await asyncio.shield(call)

    async def _call(self, command: Command, admitted: bool = False) -> Any:
        if not admitted and self._calls >= self._max_calls:
            self._on_refusal()
            retry_s = min(60, max(1, math.ceil(self._call_s)))
            raise Overloaded("too many index calls in flight", limit=self._max_calls, retry_after_s=retry_s)
        self._calls += 1
        start = time.perf_counter()
        try:
            async with asyncio.timeout(_LONGEST_S):
                return await self._link.run(command)
        except TimeoutError as error:
            raise IndexUnavailable(f"the index did not answer within {_LONGEST_S} s") from error
        finally:
            self._calls -= 1
            self._call_s = time.perf_counter() - start
