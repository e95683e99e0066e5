"""A fake internet for the fetcher: names, addresses, and one loopback server behind all of them."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import httpcore
import pytest

from service.errors import ServiceError
from service.fetch import Fetcher
from service.metrics import Metrics
from service.settings import Settings
from tests.support.waiting import LIMIT_S

PUBLIC = "93.184.215.14"
HOST = "http://pics.example.org"
URL = f"{HOST}/a.png"
IMAGE = b"an image's bytes"
NOT_HAD = "no image could be had from the URL's host in time"
Page = bytes | Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answer(body: bytes = b"", status: str = "200 OK", **headers: object) -> bytes:
    """A complete HTTP response; `content_length=None` omits that header."""
    lines = {"Content-Length": len(body), "Connection": "close"}
    lines |= {name.replace("_", "-").title(): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def redirect(to: str) -> bytes:
    return answer(status="302 Found", location=to)


class World(httpcore.AsyncNetworkBackend):
    """A resolver and network for a fetcher: every address leads to the same server."""

    def __init__(self) -> None:
        self.names: dict[str, list[list[str]]] = {}  # successive answers; the last one is repeated
        self.lookups: list[str] = []
        self.connected: list[tuple[str, int]] = []
        self.dead: set[str] = set()  # addresses that refuse connections
        self.pages: dict[str, Page] = {}
        self.heads: list[str] = []  # request heads the server received
        self.ended = asyncio.Event()  # set when a connection has ended
        self.serving: set[asyncio.Task[Any]] = set()
        self.port = 0
        self._network = httpcore.AnyIOBackend()

    def resolve(self, name: str) -> list[str]:
        self.lookups.append(name)
        answers = self.names.get(name)
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore's signature)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.connected.append((host, port))
        if host in self.dead:
            raise httpcore.ConnectError("refused")
        return await self._network.connect_tcp("127.0.0.1", self.port, timeout, local_address, socket_options)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self.serving.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                page = self.pages.get(head.split()[1].split("?")[0], answer(status="404 Not Found"))
                if isinstance(page, bytes):
                    writer.write(page)
                    await writer.drain()
                else:
                    await page(reader, writer)
            finally:
                self.ended.set()
                writer.close()
                await writer.wait_closed()

    async def closed(self) -> None:
        """Cancels the open connections, so that none outlives its test."""
        for task in self.serving:
            task.cancel()
        await asyncio.gather(*self.serving, return_exceptions=True)

    def fetcher(self, **settings: Any) -> Fetcher:
        """A fetcher that allows plain HTTP hosts by default."""
        defaults = {
            "url_hosts": ("http://pics.example.org", "http://*.cdn.example.org"),
            "url_timeout_s": LIMIT_S,
        }
        return Fetcher(Settings(**{**defaults, **settings}), Metrics(), self.resolve, self)


@contextlib.asynccontextmanager
async def served(tls: ssl.SSLContext | None = None) -> AsyncIterator[World]:
    """A world with a listening server; `pics.example.org` has a public address and serves an image."""
    world = World()
    world.names["pics.example.org"], world.pages["/a.png"] = [[PUBLIC]], answer(IMAGE)
    async with await asyncio.start_server(world.serve, "127.0.0.1", 0, ssl=tls) as server:
        world.port = server.sockets[0].getsockname()[1]
        try:
            yield world
        finally:
            await world.closed()


async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends single bytes indefinitely."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Sends no response until the peer disconnects."""
    await reader.read()


async def fetch(fetcher: Fetcher, url: str = URL) -> bytes:
    return await fetcher.fetch(url, lambda _: None)


async def refusal(fetcher: Fetcher, url: str = URL) -> ServiceError:
    """The error of a fetch that must fail."""
    with pytest.raises(ServiceError) as refused:
        await fetch(fetcher, url)
    return refused.value


def counts(fetcher: Fetcher) -> dict[str, float]:
    """The number of fetches by result."""
    [family] = fetcher._count.collect()
    return {
        sample.labels["result"]: sample.value for sample in family.samples if sample.name.endswith("_total")
    }
