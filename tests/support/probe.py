"""The real app under uvicorn, with the service's own protocol, and the CPU time that its event loop takes."""

import asyncio
import gc
import http.client
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import uvicorn
import uvloop
from numpy.typing import NDArray

from service.core import Core
from service.http.app import create_app
from service.http.envelope import Envelope
from service.http.heads import BoundedHeads
from service.inference.encoder import Encoder
from service.settings import Settings
from tests.support.waiting import LIMIT_S

_INTERVAL_S = 0.001


@dataclass(frozen=True)
class Call:
    """A request, and the status of its response."""

    name: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"
    status: int = 200


class FastEncoder(Encoder):
    """The model, for a single image; for a batch a constant, so that the images cost no CPU."""

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(pixels) == 1:
            return super().encode(pixels)
        return np.full((len(pixels), self.manifest.dim), self.manifest.dim**-0.5, dtype=np.float32)


class ProbedServer:
    """The app in a thread of this process. A timer in its event loop records the thread's CPU time."""

    def __init__(self, data_dir: Path) -> None:
        self._core = Core(Settings(data_dir=data_dir, cache_items=1000), FastEncoder)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._max_s = self._last_s = (0.0, 0.0)
        self._started = threading.Event()

    def run(self) -> None:
        """Serve until `stop`."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._core.start()
        gc.collect()
        gc.freeze()  # as the service does
        config = uvicorn.Config(
            Envelope(create_app(self._core), self._core),
            http=BoundedHeads,
            lifespan="off",
            log_config=None,
        )
        self._server = uvicorn.Server(config)
        self._tick()
        self._started.set()
        await self._server.serve([self._socket])
        await self._core.close()

    def _tick(self) -> None:
        now_s = (time.thread_time(), time.process_time())
        turn_s = [now - last for now, last in zip(now_s, self._last_s, strict=True)]
        self._max_s = (max(self._max_s[0], turn_s[0]), max(self._max_s[1], turn_s[1]))
        self._last_s = now_s
        self._loop.call_later(_INTERVAL_S, self._tick)

    def wait(self) -> None:
        """Wait until the server has started."""
        assert self._started.wait(LIMIT_S)

    def stop(self) -> None:
        """Stop the server."""
        self._server.should_exit = True

    def max_cpu_ms(self, call: Call) -> tuple[float, float]:
        """Send a request, and return the longest CPU times between two turns of the event loop.

        The first is of the loop's thread, the second of all threads: it includes calls in other threads that
        hold Python's lock, so that the loop cannot run.
        """
        # FastAPI reads the source of a route at its first request.
        headers = {name: value for name, value in call.headers.items() if name != "Transfer-Encoding"}
        self._send(replace(call, body=b"", headers=headers))
        self._max_s = (0.0, 0.0)
        status, content = self._send(call)
        # The response may arrive before the timer that measures the turn in which it was sent.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(10 * _INTERVAL_S), self._loop).result(LIMIT_S)
        assert status == call.status, f"{call.name}: {status} {content[:300]!r}"
        return self._max_s[0] * 1e3, self._max_s[1] * 1e3

    def _send(self, call: Call) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._socket.getsockname()[1], timeout=LIMIT_S)
        with closing(connection):
            connection.request(call.method, call.path, call.body, dict(call.headers))
            response = connection.getresponse()
            return response.status, response.read()


@contextmanager
def probed_server(data_dir: Path) -> Iterator[ProbedServer]:
    """A running server."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)  # the service's own
    server = ProbedServer(data_dir)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        server.wait()
        yield server
    finally:
        server.stop()
        thread.join(LIMIT_S)
        sys.setswitchinterval(interval_s)
        gc.unfreeze()
