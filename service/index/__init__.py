"""The index: items of all domains in one Qdrant collection, embedded (Edge) or on a server.

`base` says what an index is; `edge` and `server` are the two; `worker` calls one from its own thread.
"""

from service.index.base import Hit, Item, Query, VectorIndex
from service.index.open import open_index
from service.index.worker import IndexWorker

__all__ = ["Hit", "IndexWorker", "Item", "Query", "VectorIndex", "open_index"]
