"""Limits on request heads, which uvicorn does not limit in bytes or time.

A header of 100 MB took 120 MB of memory and blocked the event loop for more than 8 s (decision 13).
"""

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import HeadersTooLarge, RequestTimeout, ServiceError
from service.http.problems import problem_response

MAX_HEAD_BYTES = 64 * 2**10


class BoundedHeads(HttpToolsProtocol):
    """One connection. Counts the bytes since the last complete head or the last piece of a body.

    So trailers and the sizes of chunks are limited as well. At most one read above the limit is kept.

    A timer runs while the rest of a head is awaited, but not for a head that arrived in one read, for a
    request that is being processed, or between two requests: those have uvicorn's own timers.
    """

    head_s: ClassVar[float] = 10  # the longest time of a head, from the connection or its first byte

    _unfinished_bytes = 0
    _finished = False  # in this read: a head, or a piece of a body
    _in_head = False
    _in_message = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the event loop, as are the next two methods."""
        super().connection_made(transport)
        self._pieces: list[bytes] = []  # of a body, in this read
        self._start_timer(self.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timer."""
        super().connection_lost(exc)
        self._cancel_timer()

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
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._finished, self._in_head = True, False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._finished = True
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._finished, self._in_message = True, False
        self._pass_on_body()
        super().on_message_complete()

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
        response = problem_response(error)
        response.headers["connection"] = "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
        head = f"HTTP/1.1 {error.status} {error.title}\r\n{lines}\r\n"
        self.transport.write(head.encode() + response.body)
