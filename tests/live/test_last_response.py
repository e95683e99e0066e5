"""The response before a connection is closed, trailers, and whitespace around header values."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from service.http.heads import MAX_HEAD_BYTES, BoundedHeads
from tests.support.served_app import served_app

UPLOAD_BYTES = 16 * 2**20  # more than the socket buffers hold
LARGE = b"a" * 16 * MAX_HEAD_BYTES


class Impatient(BoundedHeads):
    head_s = 0.3


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Responds without reading the body."""
    headers = {"Connection": "close"} if scope["path"] == "/close" else {}
    await JSONResponse("refused", 413, headers)(scope, receive, send)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Responds with the headers."""
    request = Request(scope, receive)
    await request.body()
    await JSONResponse(list(request.headers.items()))(scope, receive, send)


async def response_to(port: int, head: bytes, body: bytes = b"") -> bytes:
    """Send everything, and then read everything, as simple clients do."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head + body)
        await writer.drain()
        await asyncio.sleep(0.05)
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n",
        b"POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n",
        b"POST /close HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n",
    ],
    ids=["the client closes", "HTTP/1.0", "the service closes"],
)
async def test_a_refused_upload_gets_its_response(head: bytes) -> None:
    async with served_app(refuse) as port:
        response = await response_to(port, head % UPLOAD_BYTES, bytes(UPLOAD_BYTES))
    assert response.startswith(b"HTTP/1.1 413 ")
    assert response.endswith(b'"refused"')


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (
            b"GET /v1/embeddings HTTP/1.1\r\nHost: x\r\nCookie: %b\r\n\r\n" % (b"a" * 16 * MAX_HEAD_BYTES),
            b"431",
        ),
        (b"GET /v1/embeddings HTTP/x\r\n\r\n" + LARGE, b"400"),
    ],
    ids=["too large", "not HTTP"],
)
async def test_a_refused_head_gets_its_response(head: bytes, status: bytes) -> None:
    async with served_app(refuse) as port:
        response = await response_to(port, head)
    assert response.startswith(b"HTTP/1.1 %b " % status)
    assert b'"error": {"message":' in response  # for the vendors' clients


async def test_nothing_follows_the_last_response() -> None:
    """A request after the one that closed the connection must not run: no client gets its response."""
    paths: list[str] = []

    async def record(scope: Scope, receive: Receive, send: Send) -> None:
        paths.append(scope["path"])
        await refuse(scope, receive, send)

    async with served_app(record) as port:
        head = b"POST /close HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % UPLOAD_BYTES
        body = bytes(UPLOAD_BYTES) + b"DELETE /next HTTP/1.1\r\nHost: x\r\n\r\n"
        assert (await response_to(port, head, body)).count(b"HTTP/1.1 ") == 1
    assert paths == ["/close"]


async def test_trailers_are_not_merged_into_the_head() -> None:
    """They would pass as Host or Authorization, and a second Host was a 400."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    body = b"2\r\nhi\r\n0\r\nHost: y\r\nAuthorization: Bearer z\r\nContent-Encoding: gzip\r\n\r\n"
    async with served_app(echo) as port:
        response = await response_to(port, head, body)
    assert b'["host","x"]' in response
    assert b"bearer" not in response.lower()
    assert b"gzip" not in response


async def test_whitespace_after_a_header_value_is_removed() -> None:
    head = b"GET / HTTP/1.1\r\nHost: \t x \t\r\nX-Deadline-Ms: 100 \r\nConnection: close\r\n\r\n"
    async with served_app(echo) as port:
        response = await response_to(port, head)
    assert b'["host","x"],["x-deadline-ms","100"]' in response


async def test_a_client_that_keeps_a_refused_connection_is_disconnected() -> None:
    async with served_app(refuse, Impatient) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + LARGE)
        assert (await reader.read()).count(b"HTTP/1.1 ") == 1
        while not writer.is_closing():
            writer.write(b"a")
            await asyncio.sleep(0.01)
