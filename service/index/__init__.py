"""The index: items of all domains in one Qdrant collection, embedded (Edge) or on a server.

`base` defines the interface, `edge` and `server` implement it, and `worker` calls it from a dedicated thread.
"""

from service.index.base import Hit, Item, Query, VectorIndex
from service.index.worker import IndexWorker

__all__ = ["Hit", "IndexWorker", "Item", "Query", "VectorIndex"]
