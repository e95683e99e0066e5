"""Request heads that arrive slowly or never, on a real server with a short limit for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.server import ServerState

from service.http import patches
from service.http.heads import BoundedHeads
from service.settings import Settings
from tests.support.served_app import served_app
from tests.support.waiting import LIMIT_S

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
REFUSAL = b"HTTP/1.1 413 "
BODY = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


class Impatient(BoundedHeads):
    head_s = 0.3


LONGER_S = 2 * Impatient.head_s  # longer than a head may take


async def app(scope: Scope, _: Receive, send: Send) -> None:
    """Responds without reading the body, after longer than a head may take."""
    await asyncio.sleep(LONGER_S)
    status = 413 if scope["method"] == "POST" else 204
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(keep_alive_s: int = 1) -> AsyncIterator[Connection]:
    async with served_app(app, Impatient, keep_alive_s) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()


async def test_a_silent_connection_is_closed_without_a_response() -> None:
    async with connected() as (reader, _):
        assert await reader.read() == b""


async def test_a_slow_head_is_refused() -> None:
    async with connected() as (reader, writer):
        response = asyncio.create_task(reader.read())
        for byte in HEAD:
            writer.write(bytes([byte]))
            if (await asyncio.wait([response], timeout=0.05))[0]:
                break
        assert (await response).startswith(b"HTTP/1.1 408 ")
        assert b"request-timeout" in await response


async def responded(connection: Connection, request: bytes) -> bytes:
    connection[1].write(request)
    return await connection[0].readuntil(b"\r\n\r\n")


async def test_an_idle_connection_stays_open_and_the_next_head_has_a_new_limit() -> None:
    async with connected(keep_alive_s=LIMIT_S) as connection:
        for _ in range(2):
            assert (await responded(connection, HEAD + b"\r\n")).startswith(b"HTTP/1.1 204 ")
            await asyncio.sleep(LONGER_S)
        connection[1].write(HEAD)
        assert (await connection[0].read()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("stray", [b"\r\n", b"G"], ids=["a line break", "a first byte"])
async def test_a_stray_byte_after_a_response_does_not_keep_the_connection(stray: bytes) -> None:
    async with connected() as connection:
        await responded(connection, HEAD + b"\r\n")
        connection[1].write(stray)
        assert b"HTTP/1.1 204" not in await connection[0].read()


async def test_a_slow_next_head_does_not_cut_off_a_response() -> None:
    async with connected() as connection:
        assert (await responded(connection, HEAD + b"\r\n" + HEAD)).startswith(b"HTTP/1.1 204 ")
        assert (await connection[0].read()).startswith(b"HTTP/1.1 408 ")


async def test_the_rest_of_an_answered_body_is_not_awaited_indefinitely() -> None:
    async with connected() as connection:
        assert (await responded(connection, BODY)).startswith(REFUSAL)
        connection[1].write(b"x")
        assert await connection[0].read() == b""


async def test_the_keep_alive_setting_applies_to_every_way_of_starting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`bentoml serve` ignored it: only `python -m service serve` passed it on."""
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    patches._replace_protocol(Settings(keep_alive_s=12))
    config = uvicorn.Config(app, timeout_keep_alive=5)
    config.load()
    protocol = config.http_protocol_class
    assert issubclass(protocol, BoundedHeads)
    connection = protocol(config, ServerState(), {})
    assert connection.timeout_keep_alive == 12
