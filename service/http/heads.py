"""Heads of requests, bounded: an endless one goes into memory, in quadratic time, a slow one is waited for.

A header of 100 MB took 120 MB and more than eight seconds of everybody's time (decision 13).
"""

import asyncio
from typing import ClassVar

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import HeadersTooLarge, RequestTimeout, ServiceError
from service.http.envelope import problem_body, problem_headers

MAX_HEAD_BYTES = 64 * 2**10


class BoundedHeads(HttpToolsProtocol):
    """One connection. What is counted is what has come since the last piece of a body, or the last whole
    head: so trailers and the sizes of chunks are bounded, too. At most one read more than the limit is kept.

    There is a timer where something is waited for, and none for a request that came in one read, for one that
    is being answered, or between two: those have uvicorn's.
    """

    head_s: ClassVar[float] = 10  # the longest that a head may take, from the connection or its first byte

    _unfinished_bytes = 0
    _finished = False  # something was, in this read
    _in_head = False
    _in_message = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """From the event loop, as the next two."""
        super().connection_made(transport)
        self._wait(self.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """No timer outlives it."""
        super().connection_lost(exc)
        self._wait_no_more()

    def data_received(self, data: bytes) -> None:
        """More of a head or a body, or what is neither."""
        self._finished = False
        super().data_received(data)
        self._unfinished_bytes = 0 if self._finished else self._unfinished_bytes + len(data)
        if self._unfinished_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()
        elif self._in_head or (self._idle and not self._in_message and not self._finished):
            self._wait(self.head_s)
        elif self._idle:  # the rest of a body that was answered already: uvicorn's own timer is off
            self._wait(self.timeout_keep_alive)
        else:
            self._wait_no_more()

    def on_message_begin(self) -> None:
        """From the parser, as the next three."""
        self._in_head = self._in_message = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._finished, self._in_head = True, False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._finished = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._finished, self._in_message = True, False
        super().on_message_complete()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self, most_s: float) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(most_s, self._give_up)

    def _wait_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self._idle:  # the next head comes slowly while this request is answered
            self._wait(self.head_s)
            return
        if self._in_head:  # who has sent nothing is told nothing: a browser opens connections ahead of time
            self._write_problem(RequestTimeout(f"the request's head was not there within {self.head_s:g} s"))
        self.transport.close()

    def _refuse(self) -> None:
        # In the middle of another answer, of this connection's last request, there is no place for ours.
        if self._idle:
            self._write_problem(HeadersTooLarge("the request's head is too long", limit=MAX_HEAD_BYTES))
        self.transport.close()

    def _write_problem(self, error: ServiceError) -> None:
        body = problem_body(error)
        headers = {**problem_headers(error), "content-length": str(len(body)), "connection": "close"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(f"HTTP/1.1 {error.status} {error.title}\r\n{lines}\r\n".encode() + body)


def bound_heads() -> None:
    """To be called before uvicorn chooses its protocol; BentoML lets it choose."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedHeads.__name__}"
