"""The service's model in mosec, with dynamic batching: a process per thread of the service.

`python -m benchmarks.baselines.apps.mosec_app --port 8000`
"""

import orjson
import numpy as np
from mosec import Server, Worker
from mosec.errors import ValidationError

from benchmarks.baselines.apps.model import PATH, load_model, stop_with_parent
from service.settings import load_settings


class Embedder(Worker):
    """Decodes and infers batches of images."""

    def __init__(self) -> None:
        """Raises StartupError."""
        self._model = load_model()

    def deserialize(self, data: bytes):
        return self._model.decode(data)

    def forward(self, data):
        return self._model.infer(np.stack(data)).tolist()

    def serialize(self, data) -> bytes:
        return orjson.dumps({"embedding": data})


class Decoder(Worker):
    def __init__(self) -> None:
        self._model = load_model()

    def deserialize(self, data: bytes):
        return data

    def forward(self, data):
        return self._model.decode(data)


class Infer(Embedder):
    def deserialize(self, data: bytes):
        return data


if __name__ == "__main__":
    import os

    if "--":
        pass
    settings = load_settings()
    stop_with_parent()
    server = Server()
    mode = os.environ.get("MODE", "single")
    b = int(os.environ.get("B", "16"))
    w = int(os.environ.get("W", "10"))
    if mode == "single":
        server.append_worker(Embedder, num=settings.threads, max_batch_size=b, max_wait_time=w, route=PATH)
    else:
        server.append_worker(Decoder, num=settings.threads, route=PATH)
        server.append_worker(
            Infer, num=settings.threads if mode == "two" else 1, max_batch_size=b, max_wait_time=w, route=PATH
        )
    server.run()
