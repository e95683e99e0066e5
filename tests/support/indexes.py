"""Indexes for tests: on a real server, opened from a synchronous one, or occupied."""

import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from qdrant_client import QdrantClient

from service.index import IndexWorker, VectorIndex
from service.index.links import ThreadLink
from service.index.server import ServerIndex

# A real server takes part in the index's tests if there is one: `make test-qdrant`.
SERVER_URL = os.environ.get("QDRANT_URL")


def server_index(dim: int, fingerprint: str) -> ServerIndex:
    """Return an index in a new collection on the server."""
    client = QdrantClient(SERVER_URL, timeout=60, check_compatibility=False)
    return ServerIndex(client, f"test-{uuid.uuid4()}", dim, fingerprint)


def delete_collection(index: VectorIndex) -> None:
    """Delete the collection of such an index."""
    assert isinstance(index, ServerIndex)
    index._client.delete_collection(index._collection)


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
