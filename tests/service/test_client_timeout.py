"""The timeout of a client's call is for all its steps: pages, addresses, and the TLS handshake."""

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from service.client import AsyncClient, Client

TIMEOUT_S = 0.5
PAGES = 40
HOST = "gallery.test"


def paged(delay_s: float) -> tuple[httpx.MockTransport, list[int]]:
    """A server with a domain on each page, and the deadlines that it received, in ms."""
    deadlines = list[int]()

    def handle(request: httpx.Request) -> httpx.Response:
        time.sleep(delay_s)
        deadlines.append(int(request.headers["x-deadline-ms"]))
        page = int(request.url.params.get("after", "0"))
        more = {"next": str(page + 1)} if page + 1 < PAGES else {}
        return httpx.Response(200, json={"domains": [{"name": f"d{page}", "items": page}], **more})

    return httpx.MockTransport(handle), deadlines


ALL = {f"d{page}": page for page in range(PAGES)}


async def test_the_domains_of_all_pages_are_counted() -> None:
    transport, _ = paged(0)
    with Client("http://x", transport=transport) as client:
        assert client.domains() == client.domains() == ALL
    async with AsyncClient("http://x", transport=transport) as async_client:
        assert await async_client.domains() == ALL


async def test_pages_share_a_timeout() -> None:
    transport, deadlines = paged(TIMEOUT_S / 10)
    with (
        Client("http://x", timeout_s=TIMEOUT_S, transport=transport) as client,
        pytest.raises(httpx.TimeoutException),
    ):
        client.domains()
    assert 1 < len(deadlines) <= 10
    assert deadlines == sorted(set(deadlines), reverse=True)
    async with AsyncClient("http://x", timeout_s=TIMEOUT_S, transport=transport) as async_client:
        with pytest.raises(httpx.TimeoutException):
            await async_client.domains()
    assert len(deadlines) <= 20


def test_a_refused_page_is_sent_again() -> None:
    transport, _ = paged(0)
    statuses = [200, 429, 200, 503]

    def handle(request: httpx.Request) -> httpx.Response:
        status = statuses.pop(0) if statuses else 200
        return transport.handle_request(request) if status == 200 else httpx.Response(status)

    with Client("http://x", transport=httpx.MockTransport(handle)) as client:
        assert client.domains() == ALL


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts no further connection: its queue is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = server.getsockname()[1]
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield port


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str, delay_s: float = 0) -> None:
    """Let the host have these addresses."""
    lookup = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        if host != HOST:
            return lookup(host, *args, **kwargs)
        time.sleep(delay_s)
        return [info for address in addresses for info in lookup(address, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_the_addresses_of_a_host_share_a_timeout(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, *["127.0.0.1"] * 40)
    start = time.monotonic()
    with (
        Client(f"http://{HOST}:{silent}", timeout_s=TIMEOUT_S) as client,
        pytest.raises(httpx.ConnectTimeout),
    ):
        client.info()
    assert time.monotonic() - start < 10 * TIMEOUT_S  # each address with a full timeout: 40 of them


def test_a_silent_address_leaves_time_for_the_next(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2")
    with (
        socket.create_server(("127.0.0.2", silent)) as server,
        ThreadPoolExecutor(1) as thread,
        Client(f"http://{HOST}:{silent}", timeout_s=2) as client,
    ):
        thread.submit(respond, server)
        assert client.info() == {}


def respond(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(2**16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


def test_a_host_without_an_address_is_a_connection_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with Client(f"http://{HOST}") as client, pytest.raises(httpx.ConnectError, match="not known"):
        client.info()


def test_a_handshake_has_the_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = list[float | None]()

    def wrap_socket(_: ssl.SSLContext, connection: socket.socket, **__: Any) -> ssl.SSLSocket:
        timeouts.append(connection.gettimeout())
        raise OSError("no handshake")

    resolve_to(monkeypatch, "127.0.0.1", delay_s=TIMEOUT_S)
    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap_socket)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://{HOST}:{server.getsockname()[1]}"
        with Client(url, timeout_s=10 * TIMEOUT_S) as client, pytest.raises(httpx.ConnectError):
            client.info()
    [timeout_s] = timeouts
    assert timeout_s is not None
    assert timeout_s <= 9 * TIMEOUT_S
