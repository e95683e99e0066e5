"""Heads of requests, bounded: uvicorn reads one that never ends into memory, in quadratic time.

A header of 100 MB took 120 MB and more than eight seconds of everybody's time (decision 13).
"""

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import HeadersTooLarge
from service.http.envelope import problem_body, problem_headers

MAX_HEAD_BYTES = 64 * 2**10


class BoundedHeads(HttpToolsProtocol):
    """One connection. What is counted is what has come since the last piece of a body, or the last whole
    head: so trailers and the sizes of chunks are bounded, too. At most one read more than the limit is kept.
    """

    _unfinished_bytes = 0
    _finished = False  # something was, in this read

    def data_received(self, data: bytes) -> None:
        """From the event loop."""
        self._finished = False
        super().data_received(data)
        self._unfinished_bytes = 0 if self._finished else self._unfinished_bytes + len(data)
        if self._unfinished_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_headers_complete(self) -> None:
        """From the parser, as the next two."""
        self._finished = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._finished = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._finished = True
        super().on_message_complete()

    def _refuse(self) -> None:
        # In the middle of another answer, of this connection's last request, there is no place for ours.
        if self.cycle is None or self.cycle.response_complete:
            self._write_problem(HeadersTooLarge("the request's head is too long", limit=MAX_HEAD_BYTES))
        self.transport.close()

    def _write_problem(self, error: HeadersTooLarge) -> None:
        body = problem_body(error)
        headers = {**problem_headers(error), "content-length": str(len(body)), "connection": "close"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(f"HTTP/1.1 {error.status} {error.title}\r\n{lines}\r\n".encode() + body)


def bound_heads() -> None:
    """To be called before uvicorn chooses its protocol; BentoML lets it choose."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedHeads.__name__}"
