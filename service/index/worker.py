"""One thread that owns the index, and the only way to it: async in, one call at a time."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.errors import FingerprintMismatch, IndexUnavailable, Overloaded, UnknownDomain, UnknownItem
from service.index.base import Hit, Item, Query, VectorIndex, search

T = TypeVar("T")
_log = logging.getLogger(__name__)


class IndexWorker:
    """What the routes ask of an index. Every method may raise IndexUnavailable, or Overloaded."""

    def __init__(
        self,
        open_index: Callable[[], VectorIndex],
        fingerprint: str,
        max_calls: int = 512,
        on_refusal: Callable[[], object] = lambda: None,
    ) -> None:
        """`fingerprint` is the served model's; `max_calls` that wait, the one at work among them."""
        self._max_calls = max_calls
        self._on_refusal = on_refusal
        self._calls = 0
        self._call_s = 0.0  # the latest one's, its wait included
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._index = self._thread.submit(open_index).result()
        self._served = fingerprint
        self.backend = self._index.backend
        self.quantization = self._index.quantization
        self.fingerprint = self._index.fingerprint  # of the model whose vectors it holds

    async def upsert(self, items: Sequence[Item]) -> list[bool]:
        """Add or replace; of equal ids the last counts. True where the id is new.

        Raises FingerprintMismatch.
        """
        return await self._call(self._upsert, items)

    async def search(self, query: Query) -> list[Hit]:
        """Raises FingerprintMismatch, or UnknownDomain where a domain asked for has no item."""
        return await self._call(self._search, query)

    async def get(self, item_id: str) -> Item:
        """Raises UnknownItem."""
        item = await self._call(self._index.get, item_id)
        if item is None:
            raise UnknownItem("no item has this id", id=item_id)
        return item

    async def delete(self, item_id: str) -> bool:
        """Whether there was such an item."""
        return await self._call(self._delete, item_id)

    async def domains(self) -> dict[str, int]:
        """Items by domain."""
        return await self._call(self._index.domains)

    async def counts(self) -> tuple[int, int]:
        """Items, and how many of their vectors are in an HNSW graph."""
        return await self._call(lambda: (self._index.count(), self._index.indexed_vectors()))

    def close(self) -> None:
        """Finish what was asked, then flush."""
        self._thread.submit(self._index.close).result()
        self._thread.shutdown()

    async def _call(self, function: Callable[..., T], *args: object) -> T:
        if self._calls >= self._max_calls:
            self._on_refusal()
            retry_s = min(60, max(1, math.ceil(self._call_s)))
            raise Overloaded("the index has no room", limit=self._max_calls, retry_after_s=retry_s)
        self._calls += 1
        start = time.perf_counter()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
        except (FingerprintMismatch, UnknownDomain):
            raise
        except Exception as error:  # the engines' errors share no base
            _log.exception("the index failed")
            raise IndexUnavailable("the index did not answer") from error
        finally:
            self._calls -= 1
            self._call_s = time.perf_counter() - start

    def _check_fingerprint(self) -> None:
        if self.fingerprint != self._served:
            raise FingerprintMismatch(
                "the index holds vectors of another model; serve that one, or use another collection",
                index=self.fingerprint,
                model=self._served,
            )

    def _upsert(self, items: Sequence[Item]) -> list[bool]:
        self._check_fingerprint()
        last = {item.id: item for item in items}
        known = self._index.existing(list(last))
        self._index.upsert(list(last.values()))
        return [item.id not in known for item in items]

    def _delete(self, item_id: str) -> bool:
        known = bool(self._index.existing([item_id]))
        self._index.delete([item_id])
        return known

    def _search(self, query: Query) -> list[Hit]:
        self._check_fingerprint()
        hits = search(self._index, query)
        # Only a domain that is not among the hits needs to be asked for.
        absent = sorted(set(query.domains) - {hit.item.domain for hit in hits})
        unknown = [name for name in absent if not self._index.nearest(Query(query.embedding, 1, (name,)), 1)]
        if unknown:
            raise UnknownDomain("no item of this domain is indexed", domains=unknown)
        return hits
