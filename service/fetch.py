"""Images by URL: from a listed host, at a public address, within bounds of time and bytes.

    url ──listed?──> name ──look up──> addresses ──public?──> connection ──200?──> bytes

A name is looked up once for each connection, and the connection goes to the very address that was checked;
so it does not matter what the name says the next time. The name stays in `Host` and in the TLS handshake.
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

Resolve = Callable[[str], Sequence[str]]  # a name to its addresses; it may block
Take = Callable[[int], None]  # room for so many bytes, or Overloaded

_MAX_URL_CHARS = 8192
_MAX_REDIRECTS = 3
_MAX_ADDRESSES = 4  # of one name, that are tried
_LOOKUPS = 8  # threads; a lookup cannot be given up, only left behind
_REDIRECTS = {301, 302, 303, 307, 308}
_HEADERS = [
    (b"User-Agent", f"universal-image-embedding/{__version__}".encode()),
    (b"Accept", b"image/*, application/octet-stream;q=0.9"),
    (b"Connection", b"close"),
    (b"Accept-Encoding", b"identity"),  # a picture is compressed already, and a bomb would be, too
]
_FAILURES = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    OSError,  # TLS's and the lookup's among them
    TimeoutError,
)
# One sentence for all of them: which it was would tell a caller what there is behind the name.
_NOT_HAD = "no image could be had from the URL's host in time"
_log = logging.getLogger(__name__)


class Fetcher:
    """The only part of the service that goes out for what a client names."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        resolve: Resolve | None = None,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        """`resolve` looks names up, `network` connects to the addresses: the system's, unless a test's."""
        self._hosts = [parse_host(entry) for entry in settings.url_hosts]
        self._timeout_s = settings.url_timeout_s
        self._limits = {"timeout": {"connect": settings.url_timeout_s}}
        self._max_bytes = settings.max_image_bytes
        self._count = metrics.fetches
        # httpx's engine, without the parts of a client that would have to be kept from cookies, proxies
        # and logs. No connection outlives its answer, so none was checked for somebody else's request.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=None,  # the queue's limit bounds them
            max_keepalive_connections=0,
            network_backend=_Checked(resolve or _addresses, network or httpcore.AnyIOBackend()),
        )

    async def fetch(self, url: str, take: Take) -> bytes:
        """The bytes that are there; `take` is asked for their room before they are kept.

        Raises InvalidRequest, UnfetchableImage, ImageTooLarge and what `take` raises.
        """
        result = "failed"
        try:
            target = self._start(url)
            async with asyncio.timeout(self._timeout_s):
                data = await self._follow(target, take)
            result = "fetched"
        except (InvalidRequest, _Refused):
            result = "refused"
            raise
        except _FAILURES as error:
            # The host alone: a path or a query may hold a secret.
            _log.info("no image from %s: %r", target.raw_host.decode("ascii"), error)
            raise UnfetchableImage(_NOT_HAD) from error
        finally:
            self._count.labels(result).inc()
        return data

    def _start(self, url: str) -> httpx.URL:
        if len(url) > _MAX_URL_CHARS:
            raise InvalidRequest("the URL is too long", limit=_MAX_URL_CHARS, got=len(url))
        try:
            target = httpx.URL(url)
        except (httpx.InvalidURL, ValueError) as error:  # names that IDNA does not have are ValueErrors
            raise InvalidRequest("the URL cannot be read") from error
        if target.userinfo:
            raise InvalidRequest("the URL must not carry a user or a password")
        if not is_listed(self._hosts, target.scheme, target.raw_host.decode("ascii"), target.port):
            raise InvalidRequest("UIE_URL_HOSTS does not list the URL's scheme, host and port")
        return target

    async def _follow(self, target: httpx.URL, take: Take) -> bytes:
        for _ in range(1 + _MAX_REDIRECTS):
            where = httpcore.URL(
                scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path
            )
            asked = self._pool.stream("GET", where, headers=_HEADERS, extensions=self._limits)
            async with asked as answer:
                if answer.status not in _REDIRECTS:
                    return await self._body(answer, take)
                location = _header(answer, b"location")
            try:
                target = self._start(str(target.join(location)))
            except (InvalidRequest, httpx.InvalidURL, ValueError) as error:
                raise _Refused("the URL redirects to where no image is fetched from") from error
        raise UnfetchableImage(f"the URL redirects more than {_MAX_REDIRECTS} times")

    async def _body(self, answer: httpcore.Response, take: Take) -> bytes:
        if answer.status != 200:
            raise UnfetchableImage(f"the URL's host answered {answer.status}")
        if _header(answer, b"content-encoding").lower() not in ("", "identity"):
            raise UnfetchableImage("the URL's host sent the image in an encoding that was not asked for")
        stated = _header(answer, b"content-length")
        length = int(stated) if stated.isdecimal() else None
        if length is not None:
            self._check_size(length)
            take(length)
        chunks, got = [], 0
        async for chunk in answer.aiter_stream():
            got += len(chunk)
            self._check_size(got)
            if length is None:
                take(len(chunk))
            chunks.append(chunk)
        return b"".join(chunks)

    def _check_size(self, got: int) -> None:
        if got > self._max_bytes:
            raise ImageTooLarge("the image at the URL has too many bytes", limit=self._max_bytes, got=got)


class _Refused(UnfetchableImage):
    """A listed host led to where we do not go."""


class _Checked(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only, and looks up which they are itself."""

    def __init__(self, resolve: Resolve, network: httpcore.AsyncNetworkBackend) -> None:
        self._resolve = resolve
        self._network = network
        self._threads = ThreadPoolExecutor(_LOOKUPS, "uie-lookup")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore's signature)
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """To the first of the name's public addresses that answers, each with its share of the time."""
        found = await asyncio.get_running_loop().run_in_executor(self._threads, self._resolve, host)
        public = [address for address in found if is_public(address)][:_MAX_ADDRESSES]
        if not public:
            _log.warning("%s has no public address", host)
            raise _Refused(_NOT_HAD)
        share_s = timeout / len(public) if timeout else None
        for address in public[:-1]:
            try:
                return await self._network.connect_tcp(address, port, share_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._network.connect_tcp(public[-1], port, share_s, local_address, socket_options)


def _addresses(name: str) -> list[str]:
    # Once each, in the order that the system prefers.
    answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in answers))


def _header(answer: httpcore.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in answer.headers if key.lower() == name), "")
