"""The index: items of all domains in one Qdrant collection, embedded (Edge) or on a server.

`worker` is the interface for the routes. It sends `commands` by a link: over a socket to the `process` that
owns the embedded index, or to a thread with a client of the server. `planner` ranks the candidates of either.
"""

from service.index.base import Hit, Item, Query, VectorIndex
from service.index.worker import IndexWorker

__all__ = ["Hit", "IndexWorker", "Item", "Query", "VectorIndex"]
