"""Connections: limits on request heads and on unread responses, and requests that uvicorn misreads.

A header of 100 MB took 120 MB of memory and blocked the event loop for more than 8 s (decision 13).
"""

import asyncio
import math
import re
from typing import Any, ClassVar

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.errors import HeadersTooLarge, InvalidRequest, RequestTimeout, ServiceError
from service.http.problems import problem_response
from service.http.unread import UnreadResponses

MAX_HEAD_BYTES = 64 * 2**10
_MAX_DISCARDED_BYTES = 2**20  # after a refused head; a body may be as long as it needs time
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


class _Parser(HttpRequestParser):
    """Parses a request that offers an upgrade as one that does not.

    llhttp takes all that follows such a head for the other protocol, so the body would be lost. A server may
    ignore the offer (RFC 9110, 7.8): the head is parsed again without it.
    """

    def __init__(self, connection: "BoundedHeads") -> None:
        self._connection = connection
        self._start()

    def feed_data(self, data: Any) -> None:
        """Parse the bytes. Raises HttpParserUpgrade for an upgrade that the service does not ignore."""
        rest = memoryview(data)
        while rest:
            try:
                super().feed_data(rest)
                rest = rest[:0]
            except HttpParserUpgrade as upgrade:
                if not self._connection.ignores_offer:
                    raise
                rest = rest[upgrade.args[0] :]
                head = self._connection.head_without_offer()
                self._start()  # after `Connection: close` llhttp reads no more
                super().feed_data(head)

    def _start(self) -> None:
        super().__init__(self._connection)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does


class _ResponseTransport:
    """The transport of a connection as its responses use it."""

    def __init__(self, connection: "BoundedHeads") -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.close_after_response


class BoundedHeads(HttpToolsProtocol):
    """One connection. Counts the bytes since the last complete head or the last piece of a body.

    So trailers and the sizes of chunks are limited as well. At most one read above the limit is kept.

    A timer runs while the rest of a head is awaited, but not for a head that arrived in one read, for a
    request that is being processed, or between two requests: those have uvicorn's own timers. Another one
    runs while a response waits for the client to read it.
    """

    head_s: ClassVar[float] = 10  # the longest time of a head, from the connection or its first byte
    unread_s: ClassVar[float] = 60  # the longest time in which the client reads nothing of a response
    keep_alive_s: ClassVar[int | None] = None  # None: as uvicorn is configured

    ignores_offer = False  # this head offers an upgrade, and will be parsed again without it
    _unfinished_bytes = 0
    _finished = False  # in this read: a head, or a piece of a body
    _in_head = False
    _in_message = False
    _discards = False  # all that the client still sends
    _timer: asyncio.TimerHandle | None = None

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.parser = _Parser(self)
        self.url = b""
        if self.keep_alive_s is not None:
            self.timeout_keep_alive = self.keep_alive_s

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the event loop, as are the next two methods."""
        super().connection_made(transport)
        self._unread = UnreadResponses(transport, self.loop, self.unread_s)
        self._pieces: list[bytes] = []  # of a body, in this read
        self._response_transport = _ResponseTransport(self)
        self._start_timer(self.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers, and break the reference cycles."""
        super().connection_lost(exc)
        del self._response_transport
        if self.cycle is not None:
            self.cycle.transport = self.transport
        self._cancel_timer()
        self._unread.cancel()

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head; refuse it, or set its timer."""
        if self._discards:
            self._discardable_bytes -= len(data)
            if self._discardable_bytes < 0:
                self.transport.close()
            return
        self._finished = False
        super().data_received(data)
        self._pass_on_body()
        self._unfinished_bytes = 0 if self._finished else self._unfinished_bytes + len(data)
        if self._unfinished_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            # While the response to this connection's last request is being sent, no other can be written.
            if self._idle:
                error = HeadersTooLarge("the request head has too many bytes", limit=MAX_HEAD_BYTES)
                self._write_problem(error)
                self._discard_rest(_MAX_DISCARDED_BYTES)
            else:
                self.transport.close()
        elif self._in_head or (self._idle and not self._in_message and not self._finished):
            self._start_timer(self.head_s)
        elif self._idle:  # the rest of a body after its response: uvicorn's own timer is off
            self._start_timer(self.timeout_keep_alive)
        else:
            self._cancel_timer()

    def on_message_begin(self) -> None:
        """Called by the parser, as are the next three methods."""
        self._in_head = self._in_message = True
        self.ignores_offer = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._finished, self._in_head = True, False
        # uvicorn refuses WebSockets. For CONNECT llhttp reports an upgrade that no header offers.
        offers = self.parser.should_upgrade()
        is_websocket = offers and self._should_upgrade()
        self.ignores_offer = (
            offers and not is_websocket and any(name == b"upgrade" for name, _ in self.headers)
        )
        if self.ignores_offer:
            return
        if not self.url.startswith(b"/"):
            self._accept_absolute_form()
        # Whitespace after a value is not a part of it (RFC 9112, 5.1).
        self.headers[:] = [(name, value.rstrip(b" \t")) for name, value in self.headers]
        super().on_headers_complete()
        if is_websocket:
            return
        self.cycle.transport = self._response_transport  # type: ignore[assignment]
        # Trailers follow, and must not be merged into the head: they would pass as Host or Authorization.
        self.headers = []

    def on_body(self, body: bytes) -> None:
        self._finished = True
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._finished, self._in_message = True, False
        self._pass_on_body()
        if not self.ignores_offer:
            super().on_message_complete()

    def pause_writing(self) -> None:
        """Called by the transport: much of a response is unread."""
        super().pause_writing()
        self._unread.watch()

    def on_response_complete(self) -> None:
        """Called by the request when its response is written."""
        super().on_response_complete()
        self._unread.watch()

    def head_without_offer(self) -> bytes:
        """Return the head that has just been parsed, without its offers to upgrade the connection."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([method + b" " + self.url + b" HTTP/" + version, *lines, b"", b""])

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP, unless another response has begun."""
        if self._idle or not self.cycle.response_started:
            self._write_problem(InvalidRequest(msg))
        if self._idle:
            self._discard_rest(_MAX_DISCARDED_BYTES)
        else:
            self.transport.close()

    def close_after_response(self) -> None:
        """Close the connection after a response: at once, or when the rest of the request has been read."""
        if self.cycle.response_complete and self._in_message:
            self._discard_rest(math.inf)
        else:
            self.transport.close()

    def _discard_rest(self, max_bytes: float) -> None:
        """Close the connection when the client closes it, or has sent more.

        If unread data remains, a close resets the connection, and the client may lose the response.
        """
        if self.transport.is_closing():
            return
        self._discards = self._finished = True
        self._discardable_bytes = max_bytes
        self._in_head = False  # no problem follows at the timeout
        self.transport.write_eof()
        self.flow.resume_reading()
        self._start_timer(self.timeout_keep_alive)

    def _accept_absolute_form(self) -> None:
        # Clients of a proxy send it. The target's host replaces the header's (RFC 9112, 3.2.2).
        if target := _ABSOLUTE.fullmatch(self.url):
            host, path = target.groups()
            self.url = path if path.startswith(b"/") else b"/" + path
            fields = [(name, value) for name, value in self.headers if name != b"host"]
            self.headers[:] = [*fields, (b"host", host)]

    def _pass_on_body(self) -> None:
        """Pass on what one read has of a body: uvicorn copies all of it for each chunk that is added."""
        if self._pieces:
            super().on_body(b"".join(self._pieces))
            self._pieces.clear()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start_timer(self, timeout_s: float) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(timeout_s, self._on_timeout)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        self._timer = None
        if not self._idle:  # the next head arrives slowly while this request is processed
            self._start_timer(self.head_s)
            return
        if self._in_head:  # no response without a head: browsers open connections ahead of time
            self._write_problem(RequestTimeout(f"the request head did not arrive within {self.head_s:g} s"))
        self.transport.close()

    def _write_problem(self, error: ServiceError) -> None:
        response = problem_response(error, self.url.decode("latin-1"))
        response.headers["connection"] = "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
        head = f"HTTP/1.1 {error.status} {error.title}\r\n{lines}\r\n"
        self.transport.write(head.encode() + response.body)
        self._unread.watch()
