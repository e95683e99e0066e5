"""Asynchronous execution of commands: in the index process, or in a thread with a Qdrant client."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

from service.errors import IndexUnavailable, ServiceError
from service.index import wire
from service.index.base import VectorIndex
from service.index.commands import Command, run
from service.settings import Quantization

_RECONNECT_S = 0.1
_log = logging.getLogger(__name__)


class Link(Protocol):
    """Executes commands, up to `width` concurrently. After `open` it has the properties of the index."""

    width: int
    backend: str
    quantization: Quantization
    fingerprint: str

    async def open(self) -> None:
        """Connect. Raises StartupError or IndexUnavailable."""

    async def run(self, command: Command) -> Any:
        """Return the command's result. Raises its errors, or IndexUnavailable."""

    async def close(self) -> None:
        """Finish the commands in flight."""


class ThreadLink:
    """Calls a synchronous index from one thread, sequentially."""

    width = 1

    def __init__(self, open_index: Callable[[], VectorIndex]) -> None:
        self._open_index = open_index
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index")

    async def open(self) -> None:
        self._index = await asyncio.get_running_loop().run_in_executor(self._thread, self._open_index)
        self.backend = self._index.backend
        self.quantization = self._index.quantization
        self.fingerprint = self._index.fingerprint

    async def run(self, command: Command) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run, self._index, command)
        except ServiceError:
            raise
        except Exception as error:  # the client's errors share no base
            _log.exception("the index failed")
            raise IndexUnavailable("the index did not answer") from error

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._index.close)
        self._thread.shutdown()


class _Connection(asyncio.Protocol):
    """Matches the responses of the index process with their requests."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.hello: asyncio.Future[wire.Hello] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._frames = wire.Frames()
        self._pending: dict[int, asyncio.Future[wire.Response]] = {}
        self._number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            if not self.hello.done():
                self.hello.set_result(wire.decode_hello(frame))
                continue
            response = wire.decode_response(frame)
            future = self._pending.pop(response.number)
            if not future.cancelled():
                future.set_result(response)

    def connection_lost(self, _: Exception | None) -> None:
        futures: list[asyncio.Future[Any]] = [self.hello, *self._pending.values()]
        for future in futures:
            if not future.done():
                future.set_exception(IndexUnavailable("the index process ended"))
        self.closed.set_result(None)

    def request(self, command: Command) -> asyncio.Future[wire.Response]:
        """Send a command. Raises IndexUnavailable if the connection is lost."""
        if self.closed.done():
            raise IndexUnavailable("the index process is starting again")
        self._number += 1
        future: asyncio.Future[wire.Response] = asyncio.get_running_loop().create_future()
        self._pending[self._number] = future
        self.transport.write(wire.framed(wire.Request(self._number, command)))
        return future


class ProcessLink:
    """Sends commands to the index process, and connects again after it ended."""

    width = 16
    backend = "qdrant-edge"

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._reconnecting: asyncio.Task[None] | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, self._connection = await loop.create_unix_connection(_Connection, self._socket)
        except OSError as error:
            raise IndexUnavailable("the index process does not respond") from error
        hello = await self._connection.hello
        self.quantization, self.fingerprint = hello.quantization, hello.fingerprint
        if self._reconnecting is None:
            self._reconnecting = asyncio.create_task(self._reconnect())

    async def run(self, command: Command) -> Any:
        response = await self._connection.request(command)
        if response.fault:
            raise response.fault.error()
        return wire.decode_result(command, response.result)

    async def close(self) -> None:
        if self._reconnecting:
            self._reconnecting.cancel()
        self._connection.transport.close()

    async def _reconnect(self) -> None:
        while True:
            await asyncio.wait([self._connection.closed])
            try:
                await self.open()
            except IndexUnavailable:
                await asyncio.sleep(_RECONNECT_S)
