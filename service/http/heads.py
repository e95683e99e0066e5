"""Connections: limits on request heads and on unread responses, and requests that uvicorn misreads.

A header of 100 MB took 120 MB of memory and blocked the event loop for more than 8 s (decision 13).
"""

import asyncio
import fcntl
import re
import sys
import termios
from typing import Any, ClassVar

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.errors import HeadersTooLarge, InvalidRequest, RequestTimeout, ServiceError
from service.http.problems import problem_response

MAX_HEAD_BYTES = 64 * 2**10
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
    _timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.parser = _Parser(self)
        if self.keep_alive_s is not None:
            self.timeout_keep_alive = self.keep_alive_s

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the event loop, as are the next two methods."""
        super().connection_made(transport)
        self._pieces: list[bytes] = []  # of a body, in this read
        self._start_timer(self.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        super().connection_lost(exc)
        self._cancel_timer()
        self._cancel_unread_timer()

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head; refuse it, or set its timer."""
        self._finished = False
        super().data_received(data)
        self._pass_on_body()
        self._unfinished_bytes = 0 if self._finished else self._unfinished_bytes + len(data)
        if self._unfinished_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            # While the response to this connection's last request is being sent, no other can be written.
            if self._idle:
                error = HeadersTooLarge("the request head has too many bytes", limit=MAX_HEAD_BYTES)
                self._write_problem(error)
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
        self.ignores_offer = (
            self.parser.should_upgrade()
            and not self._should_upgrade()
            and any(name == b"upgrade" for name, _ in self.headers)
        )
        if self.ignores_offer:
            return
        if not self.url.startswith(b"/"):
            self._accept_absolute_form()
        super().on_headers_complete()

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
        self._watch_unread()

    def on_response_complete(self) -> None:
        """Called by the request when its response is written."""
        super().on_response_complete()
        self._watch_unread()

    def head_without_offer(self) -> bytes:
        """Return the head that has just been parsed, without its offers to upgrade the connection."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([method + b" " + self.url + b" HTTP/" + version, *lines, b"", b""])

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP, unless another response has begun."""
        if self._idle or not self.cycle.response_started:
            self._write_problem(InvalidRequest(msg))
        self.transport.close()

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

    def _watch_unread(self) -> None:
        """Abort the connection if the client reads nothing for a time, though a response waits for it.

        A transport that is closed keeps what it has not sent; and a response that waits, its request.
        """
        self._cancel_unread_timer()
        if self.transport.get_write_buffer_size():
            self._unread_timer = self.loop.call_later(self.unread_s, self._on_unread, self._unread_bytes())

    def _cancel_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _on_unread(self, before: int) -> None:
        if self._unread_bytes() < before:
            self._watch_unread()
        else:
            self.transport.abort()

    def _unread_bytes(self) -> int:
        """Return the bytes that the client has not acknowledged.

        With a slow reader the transport alone would seem to stand still: the kernel takes several megabytes,
        and more only when a third of them has been read.
        """
        connection = self.transport.get_extra_info("socket")
        queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    def _write_problem(self, error: ServiceError) -> None:
        response = problem_response(error)
        response.headers["connection"] = "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
        head = f"HTTP/1.1 {error.status} {error.title}\r\n{lines}\r\n"
        self.transport.write(head.encode() + response.body)
        self._watch_unread()
