"""Responses that the client reads slowly or not at all, on a real server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
from starlette.types import Receive, Scope, Send

from service.http.heads import BoundedHeads
from tests.support.served_app import served_app
from tests.support.waiting import LIMIT_S, until

LARGE = bytes(9_000_000)  # more than the kernel takes
PIECE = 64 * 1024  # less than makes the kernel take more
REQUEST = b"GET /%s HTTP/1.1\r\nHost: x\r\n%s\r\n"


class Observed(BoundedHeads):
    unread_s: ClassVar[float] = LIMIT_S

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connections.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        connections.remove(self)


class Impatient(Observed):
    unread_s = 0.3


connections: list[Observed] = []


async def app(scope: Scope, _: Receive, send: Send) -> None:
    body = LARGE if scope["path"] == "/large" else b"x"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def unread(protocol: type[Observed], request: bytes) -> AsyncIterator[tuple[socket.socket, Observed]]:
    """A client that has sent a request, and the server's side of its connection."""
    loop = asyncio.get_running_loop()
    async with served_app(app, protocol) as port:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, request)
            await until(lambda: bool(connections) and connections[0].transport.get_write_buffer_size() > 0)
            yield client, connections[0]


@pytest.mark.parametrize("header", [b"", b"Connection: close\r\n"])
async def test_a_connection_whose_client_reads_nothing_is_aborted(header: bytes) -> None:
    """A response of 9 MB, and the request behind it, were held until the client disconnected."""
    async with unread(Impatient, REQUEST % (b"large", header)) as (_, connection):
        await until(lambda: not connections)
        assert connection.transport.get_write_buffer_size() == 0


async def test_a_slow_reader_makes_progress_before_the_kernel_takes_more() -> None:
    loop = asyncio.get_running_loop()
    async with unread(Observed, REQUEST % (b"large", b"")) as (client, connection):
        waiting = connection.transport.get_write_buffer_size()
        for _ in range(3):
            before, received = connection._unread._unread_bytes(), 0
            while received < PIECE:
                received += len(await loop.sock_recv(client, PIECE - received))
            await until(lambda before=before: connection._unread._unread_bytes() < before)  # type: ignore[misc]
            connection._unread._on_timeout(before)
            assert not connection.transport.is_closing()
        assert connection.transport.get_write_buffer_size() == waiting
        connection._unread._on_timeout(connection._unread._unread_bytes())
        await until(lambda: not connections)
