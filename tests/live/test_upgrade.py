"""Requests that offer an upgrade, as Java's HttpClient and `curl --http2` send, and absolute targets."""

import asyncio
from collections.abc import Sequence

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service.http.heads import MAX_HEAD_BYTES
from tests.support.served_app import served_app
from tests.support.waiting import LIMIT_S

OFFER = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQB\r\n"
)
HEAD = b"POST /a?b=c HTTP/1.1\r\nHost: localhost\r\n" + OFFER
SIZED = HEAD + b"Content-Length: 5\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
LAST = b"PUT /z HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
ANSWERS = ["POST /a hello", "PUT /z ok"]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    body = (await request.body()).decode()
    content = f"{request.method} {request.url.path} {body}\n"
    await PlainTextResponse(content, headers={"X-Host": request.headers["host"]})(scope, receive, send)


async def answered(port: int, parts: Sequence[bytes], pause_s: float = 0.001) -> bytes:
    """Everything that the server sends for the parts, which it reads separately."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause_s)
        return await reader.read()
    finally:
        writer.close()


def echoes(responses: bytes) -> list[str]:
    return [line for line in responses.decode().splitlines() if line.startswith(("POST ", "PUT ", "GET "))]


@pytest.mark.parametrize("first", [SIZED + b"hello", CHUNKED + CHUNKS], ids=["sized", "chunked"])
async def test_a_request_with_an_offer_keeps_its_body_wherever_it_is_split(first: bytes) -> None:
    data = first + first + LAST
    async with served_app(echo) as port:
        splits = range(len(first) + 20)  # beyond the end of the first request
        for start in splits[::8]:  # concurrency 8
            group = [answered(port, (data[:at], data[at:])) for at in splits[start : start + 8]]
            for responses in await asyncio.gather(*group):
                assert echoes(responses) == [ANSWERS[0], *ANSWERS]
        assert echoes(await answered(port, [bytes([byte]) for byte in data], 0)) == [ANSWERS[0], *ANSWERS]


async def test_many_pipelined_offers_are_answered() -> None:
    async with served_app(echo) as port:
        assert echoes(await answered(port, [(SIZED + b"hello") * 200 + LAST])) == [ANSWERS[0]] * 200 + [
            ANSWERS[1]
        ]


async def test_the_body_of_an_offer_may_wait_for_100_continue() -> None:
    async with served_app(echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello" + LAST)
        assert echoes(await reader.read()) == ANSWERS
        writer.close()


@pytest.mark.parametrize(
    "offer",
    [
        b"Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
        b"Upgrade: h2c, websocket\r\nConnection: close, Upgrade\r\n",
    ],
)
async def test_any_other_offer_is_ignored(offer: bytes) -> None:
    request = b"POST /a HTTP/1.1\r\nHost: localhost\r\n" + offer + b"Content-Length: 5\r\n\r\nhello"
    async with served_app(echo) as port:
        assert echoes(await answered(port, [request]))[:1] == ANSWERS[:1]


async def test_a_websocket_is_refused() -> None:
    websocket = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    offer = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "websocket"
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.close"})

    async with served_app(refuse) as port:
        assert (await answered(port, [offer + websocket])).startswith(b"HTTP/1.1 403 ")


async def test_the_limit_of_a_head_counts_an_offer() -> None:
    long = HEAD + b"X-Long: "
    async with served_app(echo, keep_alive_s=LIMIT_S) as port:
        refused = await answered(port, [long + b"x" * (MAX_HEAD_BYTES + 1 - len(long))])
        assert refused.startswith(b"HTTP/1.1 431 ")
        almost = long + b"x" * (MAX_HEAD_BYTES - len(long) - 100) + b"\r\nContent-Length: 5\r\n\r\nhello"
        assert echoes(await answered(port, [almost + LAST])) == ANSWERS


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"http://example.org:8080/x?y", "/x", "example.org:8080"),
        (b"HTTP://example.org", "/", "example.org"),
        (b"http://example.org?y", "/", "example.org"),
    ],
)
async def test_a_target_may_be_absolute(target: bytes, path: str, host: str) -> None:
    request = b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with served_app(echo) as port:
        response = await answered(port, [request])
    assert response.startswith(b"HTTP/1.1 200 ")
    assert f"x-host: {host}\r\n".encode() in response
    assert f" {path} \n".encode() in response


async def test_bytes_that_are_not_http_are_refused_with_a_problem() -> None:
    async with served_app(echo) as port:
        refused = await answered(port, [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
    assert refused.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in refused
