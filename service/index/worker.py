"""The dedicated thread that owns the index, and its asynchronous interface. Calls run sequentially."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.errors import (
    FingerprintMismatch,
    IndexUnavailable,
    Overloaded,
    ServiceError,
    UnknownDomain,
    UnknownItem,
)
from service.index.base import Hit, Item, Query, VectorIndex
from service.index.planner import search

T = TypeVar("T")
_log = logging.getLogger(__name__)


class IndexWorker:
    """Asynchronous access to an index. Every method may raise IndexUnavailable or Overloaded."""

    def __init__(
        self,
        open_index: Callable[[], VectorIndex],
        fingerprint: str,
        max_calls: int = 512,
        on_refusal: Callable[[], object] = lambda: None,
    ) -> None:
        """`fingerprint` is the served model's; `max_calls` may be in flight, the running one included."""
        self._max_calls = max_calls
        self._on_refusal = on_refusal
        self._calls = 0
        self._call_s = 0.0  # duration of the latest call, its wait included
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._index = self._thread.submit(open_index).result()
        self._served_fingerprint = fingerprint
        self.backend = self._index.backend
        self.quantization = self._index.quantization
        self.fingerprint = self._index.fingerprint

    async def upsert(
        self, items: Sequence[Item], admitted: bool = False, check: Callable[[], None] = lambda: None
    ) -> list[bool]:
        """Add or replace items; of equal ids the last counts. Returns True for each new id.

        `admitted` items, whose embeddings are already computed, wait instead of being refused. The index's
        thread calls `check` just before it writes. Raises FingerprintMismatch, and the errors of `check`.
        """
        return await self._finish(self._upsert, items, check, admitted=admitted)

    async def search(self, query: Query) -> list[Hit]:
        """Raises FingerprintMismatch, or UnknownDomain if a requested domain has no item."""
        return await self._call(self._search, query)

    async def get(self, item_id: str) -> Item:
        """Raises UnknownItem."""
        item = await self._call(self._index.get, item_id)
        if item is None:
            raise UnknownItem("no item has this id", id=item_id)
        return item

    async def delete(self, item_id: str) -> bool:
        """Remove an item. Returns True if it existed."""
        return await self._finish(self._delete, item_id)

    async def domains(self) -> dict[str, int]:
        """Return the number of items by domain."""
        return await self._call(self._index.domains)

    async def counts(self) -> tuple[int, int]:
        """Return the numbers of items and of vectors in an HNSW graph."""
        return await self._call(lambda: (self._index.count(), self._index.indexed_vectors()))

    def close(self) -> None:
        """Finish the calls in flight, then flush."""
        self._thread.submit(self._index.close).result()
        self._thread.shutdown()

    async def _finish(self, function: Callable[..., T], *args: object, admitted: bool = False) -> T:
        """Call as `_call`; a disconnect does not cancel the call: a write is either refused or complete."""
        call = asyncio.ensure_future(self._call(function, *args, admitted=admitted))
        call.add_done_callback(lambda done: done.cancelled() or done.exception())  # `_call` has logged it
        return await asyncio.shield(call)

    async def _call(self, function: Callable[..., T], *args: object, admitted: bool = False) -> T:
        if not admitted and self._calls >= self._max_calls:
            self._on_refusal()
            retry_s = min(60, max(1, math.ceil(self._call_s)))
            raise Overloaded("too many index calls in flight", limit=self._max_calls, retry_after_s=retry_s)
        self._calls += 1
        start = time.perf_counter()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
        except ServiceError:
            raise
        except Exception as error:  # the engines' errors share no base
            _log.exception("the index failed")
            raise IndexUnavailable("the index did not answer") from error
        finally:
            self._calls -= 1
            self._call_s = time.perf_counter() - start

    def check_fingerprint(self) -> None:
        """Raise FingerprintMismatch if the index holds another model's vectors."""
        if self.fingerprint != self._served_fingerprint:
            raise FingerprintMismatch(
                "the index contains vectors of another model; serve that model, or use another collection",
                index=self.fingerprint,
                model=self._served_fingerprint,
            )

    def _upsert(self, items: Sequence[Item], check: Callable[[], None]) -> list[bool]:
        self.check_fingerprint()
        last = {item.id: item for item in items}
        check()
        replaced = self._index.upsert(list(last.values()))
        return [item.id not in replaced for item in items]

    def _delete(self, item_id: str) -> bool:
        return bool(self._index.delete([item_id]))

    def _search(self, query: Query) -> list[Hit]:
        self.check_fingerprint()
        hits = search(self._index, query)
        absent = sorted(set(query.domains) - {hit.item.domain for hit in hits})
        if absent and (unknown := [name for name in absent if name not in self._index.domains()]):
            raise UnknownDomain("no item of this domain is indexed", domains=unknown)
        return hits
