"""Heads that come slowly or never, by a real server whose time for them is short."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.http.heads import BoundedHeads

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
REFUSAL = b"HTTP/1.1 413 "
BODY = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


class Impatient(BoundedHeads):
    head_s = 0.3


async def app(scope: Scope, _: Receive, send: Send) -> None:
    """Answers without reading, and takes longer than a head may."""
    await asyncio.sleep(0.5)
    status = 413 if scope["method"] == "POST" else 204
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected() -> AsyncIterator[Connection]:
    config = uvicorn.Config(
        app, port=0, http=Impatient, lifespan="off", log_level="error", timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(20):
        while not server.started:  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()
            server.should_exit = True
            await serving


async def test_who_sends_nothing_is_cut_off_without_a_word() -> None:
    async with connected() as (reader, _):
        assert await reader.read() == b""


async def test_a_head_that_drips_is_cut_off() -> None:
    async with connected() as (reader, writer):
        answer = asyncio.create_task(reader.read())
        for byte in HEAD:
            writer.write(bytes([byte]))
            if (await asyncio.wait([answer], timeout=0.05))[0]:
                break
        assert (await answer).startswith(b"HTTP/1.1 408 ")
        assert b"request-timeout" in await answer


async def answered(connection: Connection, request: bytes) -> bytes:
    connection[1].write(request)
    return await connection[0].readuntil(b"\r\n\r\n")


async def test_an_idle_connection_is_kept_and_its_next_head_has_its_own_time() -> None:
    async with connected() as connection:
        for _ in range(2):
            assert (await answered(connection, HEAD + b"\r\n")).startswith(b"HTTP/1.1 204 ")
            await asyncio.sleep(0.5)
        connection[1].write(HEAD)
        assert (await connection[0].read()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("stray", [b"\r\n", b"G"], ids=["a line break", "a first byte"])
async def test_a_byte_after_an_answer_holds_nothing(stray: bytes) -> None:
    async with connected() as connection:
        await answered(connection, HEAD + b"\r\n")
        connection[1].write(stray)
        assert b"HTTP/1.1 204" not in await connection[0].read()


async def test_an_answer_is_not_cut_off_by_a_slow_head_behind_it() -> None:
    async with connected() as connection:
        assert (await answered(connection, HEAD + b"\r\n" + HEAD)).startswith(b"HTTP/1.1 204 ")
        assert (await connection[0].read()).startswith(b"HTTP/1.1 408 ")


async def test_the_rest_of_a_body_that_was_answered_is_not_waited_for_without_end() -> None:
    async with connected() as connection:
        assert (await answered(connection, BODY)).startswith(REFUSAL)
        connection[1].write(b"x")
        assert await connection[0].read() == b""
