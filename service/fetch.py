"""Fetching images by URL, from listed hosts at public addresses, within limits of time and bytes.

    url ──listed?──> name ──resolve──> addresses ──public?──> connection ──200?──> bytes

A name is resolved once per connection, and the connection uses the address that was checked, so a later
change of the name's addresses has no effect. `Host` and the TLS handshake keep the name.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpcore
import httpx

from service import __version__
from service.errors import ImageTooLarge, InvalidRequest, UnfetchableImage
from service.hosts import is_listed, is_public, parse_host
from service.metrics import Metrics
from service.settings import Settings

Resolve = Callable[[str], Sequence[str]]  # a name to its addresses; may block
Reserve = Callable[[int], None]  # reserves capacity for bytes, or raises Overloaded

MAX_URL_CHARS = 8192
_MAX_REDIRECTS = 3
_MAX_ADDRESSES = 4  # to try per name
_LOOKUP_THREADS = 8  # a lookup cannot be cancelled, only abandoned
_REDIRECTS = {301, 302, 303, 307, 308}
_HEADERS = [
    (b"User-Agent", f"universal-image-embedding/{__version__}".encode()),
    (b"Accept", b"image/*, application/octet-stream;q=0.9"),
    (b"Connection", b"close"),
    (b"Accept-Encoding", b"identity"),  # images are compressed already, and decompression bombs are avoided
]
_FAILURES = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    OSError,  # includes timeouts, and errors of TLS and name resolution
)
# The same message for all failures, because details would reveal the network behind the name.
_UNREACHABLE = "no image was received from the URL's host in time"
_log = logging.getLogger(__name__)


class Fetcher:
    """The only part of the service that connects to hosts chosen by a client."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        resolve: Resolve | None = None,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        """`resolve` and `network` default to those of the system."""
        self._hosts = [parse_host(entry) for entry in settings.url_hosts]
        self._timeout_s = settings.url_timeout_s
        self._limits = {"timeout": {"connect": settings.url_timeout_s}}
        self._max_bytes = settings.max_image_bytes
        self._count = metrics.fetches
        # httpx's transport layer, which has no cookies, proxies or logs to disable. Connections are not
        # reused, so each one is checked for its own request.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=None,  # bounded by the queue limit
            max_keepalive_connections=0,
            network_backend=_PublicNetwork(resolve or _resolve, network or httpcore.AnyIOBackend()),
        )

    async def fetch(self, url: str, reserve: Reserve) -> bytes:
        """Return the bytes at a URL; `reserve` is called before bytes are kept in memory.

        Raises InvalidRequest, UnfetchableImage, ImageTooLarge and what `reserve` raises.
        """
        result = "failed"
        try:
            target = self._validate(url)
            async with asyncio.timeout(self._timeout_s):
                data = await self._follow(target, reserve)
            result = "fetched"
        except (InvalidRequest, _Refused):
            result = "refused"
            raise
        except _FAILURES as error:
            # Only the host, because path and query may contain secrets.
            _log.info("no image from %s: %r", target.raw_host.decode("ascii"), error)
            raise UnfetchableImage(_UNREACHABLE) from error
        finally:
            self._count.labels(result).inc()
        return data

    def _validate(self, url: str) -> httpx.URL:
        if len(url) > MAX_URL_CHARS:
            raise InvalidRequest("the URL is too long", limit=MAX_URL_CHARS, got=len(url))
        try:
            target = httpx.URL(url)
        except (httpx.InvalidURL, ValueError) as error:  # a ValueError for invalid IDNA names
            raise InvalidRequest("the URL is malformed") from error
        if target.userinfo:
            raise InvalidRequest("the URL must not contain a user or a password")
        if not is_listed(self._hosts, target.scheme, target.raw_host.decode("ascii"), target.port):
            raise InvalidRequest("UIE_URL_HOSTS does not list the URL's scheme, host and port")
        return target

    async def _follow(self, target: httpx.URL, reserve: Reserve) -> bytes:
        for _ in range(1 + _MAX_REDIRECTS):
            url = httpcore.URL(
                scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path
            )
            exchange = self._pool.stream("GET", url, headers=_HEADERS, extensions=self._limits)
            async with exchange as response:
                if response.status not in _REDIRECTS:
                    return await self._read(response, reserve)
                location = _header(response, b"location")
            try:
                target = self._validate(str(target.join(location)))
            except (InvalidRequest, httpx.InvalidURL, ValueError) as error:
                raise _Refused("the URL redirects to a location that is not allowed") from error
        raise UnfetchableImage(f"the URL redirects more than {_MAX_REDIRECTS} times")

    async def _read(self, response: httpcore.Response, reserve: Reserve) -> bytes:
        if response.status != 200:
            raise UnfetchableImage(f"the URL's host responded with status {response.status}")
        if _header(response, b"content-encoding").lower() not in ("", "identity"):
            raise UnfetchableImage("the URL's host sent the image in an encoding that was not requested")
        header = _header(response, b"content-length")
        length = int(header) if header.isdecimal() else None
        if length is not None:
            self._check_size(length)
            reserve(length)
        chunks, received = [], 0
        async for chunk in response.aiter_stream():
            received += len(chunk)
            self._check_size(received)
            if length is None:
                reserve(len(chunk))
            chunks.append(chunk)
        return await asyncio.to_thread(b"".join, chunks)  # 20 MB may take 80 ms

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise ImageTooLarge("the image at the URL has too many bytes", limit=self._max_bytes, got=size)


class _Refused(UnfetchableImage):
    """A listed host leads to a location or an address that is not allowed."""


class _PublicNetwork(httpcore.AsyncNetworkBackend):
    """Resolves names, and connects to public addresses only."""

    def __init__(self, resolve: Resolve, network: httpcore.AsyncNetworkBackend) -> None:
        self._resolve = resolve
        self._network = network
        self._threads = ThreadPoolExecutor(_LOOKUP_THREADS, "uie-lookup")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore's signature)
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first public address that responds, each with its share of the timeout."""
        addresses = await asyncio.get_running_loop().run_in_executor(self._threads, self._resolve, host)
        public = [address for address in addresses if is_public(address)][:_MAX_ADDRESSES]
        if not public:
            _log.warning("%s has no public address", host)
            raise _Refused(_UNREACHABLE)
        share_s = timeout / len(public) if timeout else None
        for address in public[:-1]:
            try:
                return await self._network.connect_tcp(address, port, share_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._network.connect_tcp(public[-1], port, share_s, local_address, socket_options)


def _resolve(name: str) -> list[str]:
    """Return the distinct addresses in the order that the system prefers."""
    entries = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in entries))


def _header(response: httpcore.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), "")
