"""The service's model in mosec, with dynamic batching: one process per thread of the service.

`python -m benchmarks.baselines.apps.mosec_app --address 127.0.0.1 --port 8000`
"""

from typing import Any

import numpy as np
import orjson
from mosec import Server, Worker

from benchmarks.baselines.apps.model import PATH, Pixels, load_model, stop_with_parent, threads

# Two processes share 16 concurrent requests: with 16, one of them takes all, and the other is idle.
_MAX_BATCH = 8
_MAX_WAIT_MS = 1


class Embedder(Worker):
    """Decodes and infers; separate stages cost more, because pixels are copied between their processes."""

    def __init__(self) -> None:
        """Raises StartupError."""
        self._model = load_model()

    def deserialize(self, data: bytes) -> Pixels:
        """Decode one image."""
        return self._model.decode(data)

    def forward(self, data: list[Pixels]) -> list[Any]:
        """Infer a batch."""
        embeddings: list[Any] = self._model.infer(np.stack(data)).tolist()
        return embeddings

    def serialize(self, data: list[float]) -> bytes:
        """Return the body of one response."""
        return orjson.dumps({"embedding": data})


def main() -> None:
    """Serve until SIGTERM, or until the parent process ends. mosec reads the command line."""
    stop_with_parent()
    server = Server()
    server.append_worker(
        Embedder,
        num=threads(),
        max_batch_size=_MAX_BATCH,
        max_wait_time=_MAX_WAIT_MS,
        route=PATH,
    )
    server.run()


if __name__ == "__main__":
    main()
