"""Access to an index: opened from a synchronous one, or occupied."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.index import IndexWorker, VectorIndex
from service.index.links import ThreadLink


async def worker_of(
    index: VectorIndex,
    fingerprint: str,
    max_calls: int = 512,
    on_refusal: Callable[[], object] = lambda: None,
) -> IndexWorker:
    """Return an open worker of the index."""
    worker = IndexWorker(ThreadLink(lambda: index), fingerprint, max_calls, on_refusal)
    await worker.open()
    return worker


@asynccontextmanager
async def occupied(worker: IndexWorker) -> AsyncIterator[None]:
    """Keep all commands of the worker waiting."""
    for _ in range(worker._link.width):
        await worker._slots.acquire()
    yield
    for _ in range(worker._link.width):
        worker._slots.release()
