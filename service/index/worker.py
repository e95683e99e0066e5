"""The asynchronous interface to the index: limits on the calls in flight, and errors of requests."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from service.errors import FingerprintMismatch, IndexUnavailable, Overloaded, UnknownItem
from service.index.base import Hit, Item, Query
from service.index.commands import Command, Counts, Delete, Domains, Get, Search, Upsert
from service.index.links import Link

T = TypeVar("T")
Admission = contextlib.AbstractContextManager[object]
Check = Callable[[], None]
_LONGEST_S = 60  # of any command, without its wait
# Items of one command. Edge takes 90 ms for 1,000 items with payloads of 16 KB, and other commands wait.
_PART = 64


class IndexWorker:
    """Asynchronous access to an index. Every method may raise IndexUnavailable or Overloaded."""

    def __init__(
        self,
        link: Link,
        fingerprint: str,
        max_calls: int = 512,
        on_refusal: Callable[[], object] = lambda: None,
    ) -> None:
        """`fingerprint` is the served model's; `max_calls` may be in flight, the running ones included."""
        self._link = link
        self._served_fingerprint = fingerprint
        self._max_calls = max_calls
        self._on_refusal = on_refusal
        self._calls = 0
        self._call_s = 0.0  # duration of the latest call, its wait included
        self._slots = asyncio.Semaphore(link.width)

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
        self, items: Sequence[Item], admission: Admission | None = None, check: Check = lambda: None
    ) -> list[bool]:
        """Add or replace items; of equal ids the last counts. Returns True for each new id.

        `admission` is held until they are written, also after a disconnect; without it the call may be
        refused. `check` is called just before the write. Raises FingerprintMismatch, and the errors of
        `check`.
        """
        self.check_fingerprint()
        return await _finished(self._upsert(items, admission, check))

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
        return await _finished(self._call(Delete(item_id)))

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
        for _ in range(self._link.width):
            await self._slots.acquire()
        await self._link.close()

    def check_fingerprint(self) -> None:
        """Raise FingerprintMismatch if the index holds another model's vectors."""
        if self.fingerprint != self._served_fingerprint:
            raise FingerprintMismatch(
                "the index contains vectors of another model; serve that model, or use another collection",
                index=self.fingerprint,
                model=self._served_fingerprint,
            )

    def check_capacity(self) -> None:
        """Raise Overloaded if too many calls are in flight."""
        if self._calls >= self._max_calls:
            self._on_refusal()
            retry_s = min(60, max(1, math.ceil(self._call_s)))
            raise Overloaded("too many index calls in flight", limit=self._max_calls, retry_after_s=retry_s)

    async def _upsert(self, items: Sequence[Item], admission: Admission | None, check: Check) -> list[bool]:
        """Write a few items by each command: with large payloads, 1,000 of them would stop all searches."""
        last = list({item.id: item for item in items}.values())
        replaced = set[str]()
        if admission is None:
            self.check_capacity()
        with admission or contextlib.nullcontext():
            for start in range(0, len(last), _PART):
                replaced |= await self._call(Upsert(last[start : start + _PART]), check, admitted=True)
        return [item.id not in replaced for item in items]

    async def _call(self, command: Command, check: Check = lambda: None, admitted: bool = False) -> Any:
        if not admitted:
            self.check_capacity()
        self._calls += 1
        start = time.perf_counter()
        try:
            # Few commands are sent: those that wait here are still cancelled, or refused by `check`.
            async with self._slots, asyncio.timeout(_LONGEST_S):
                check()
                return await self._link.run(command)
        except TimeoutError as error:
            raise IndexUnavailable(f"the index did not answer within {_LONGEST_S} s") from error
        finally:
            self._calls -= 1
            self._call_s = time.perf_counter() - start


async def _finished(call: Coroutine[Any, Any, T]) -> T:
    """Return the result of a write. A disconnect does not cancel it: it is either refused or complete."""
    task = asyncio.ensure_future(call)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # the link has logged it
    return await asyncio.shield(task)
