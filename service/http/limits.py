"""Limits of requests: bytes and time of their bodies, and the one owner of deadlines and disconnects.

    head ────── body arrives ────── body complete ────── response starts
    413, 429    408, 413, 429                             (no limits)
    └──────── 504: the deadline passed, 499: the client disconnected ───┘

A body acquires budget as it arrives. If its Content-Length does not fit, it is refused before it is read; but
a Content-Length alone holds little, or a few idle connections would exhaust the budget.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeadlineExceeded, ImageTooLarge, Overloaded, RequestTimeout
from service.inference.budget import Budget

Reserve = Callable[[int], None]
Reservation = Callable[[], contextlib.AbstractContextManager[Reserve]]

MAX_REQUEST_S = 600  # until the response starts, for any request
_MAX_UNREAD_BYTES = 2**20  # acquired for a Content-Length before they arrive


class Intake:
    """Limits the bytes of all bodies together, and the time of each."""

    def __init__(
        self, max_bytes: int, largest_bytes: int, timeout_s: float, refusal: Callable[[], Overloaded]
    ) -> None:
        """`max_bytes` limits all bodies together, `largest_bytes` the largest body of any route."""
        self._max_bytes = max_bytes
        self._budget = Budget(max_bytes)
        self._largest_bytes = largest_bytes
        self._timeout_s = timeout_s
        self._refusal = refusal

    @contextlib.contextmanager
    def reservation(self) -> Iterator[Reserve]:
        """Yield a function that acquires bytes or raises Overloaded. They are released at the end."""
        held = 0

        def reserve(amount: int) -> None:
            nonlocal held
            if not self._budget.acquire(amount):
                raise self._refusal()
            held += amount

        try:
            yield reserve
        finally:
            self._budget.release(held)

    @contextlib.contextmanager
    def body(self, headers: Headers, receive: Receive, weight: float = 1) -> Iterator[Receive]:
        """Yield a `receive` that raises Overloaded or RequestTimeout. Raises ImageTooLarge or Overloaded.

        `weight` is the number of bytes that the route holds in memory for each byte of the body.
        """
        content_length = headers.get("content-length", "")
        length = int(content_length) if content_length.isdecimal() else 0
        if length > self._largest_bytes:  # never read, so it needs no budget
            raise ImageTooLarge("the request body has too many bytes", limit=self._largest_bytes, got=length)
        length = int(length * weight)
        if not self._budget.fits(length):
            raise self._refusal()
        # A body above the limit is admitted only alone; its rest would not fit beside its start.
        held = length if length > self._max_bytes else min(length, _MAX_UNREAD_BYTES)
        ends = asyncio.get_running_loop().time() + self._timeout_s
        complete, got = False, 0

        async def bounded() -> Message:
            nonlocal complete, got, held
            if complete:  # the next message is the disconnect
                return await receive()
            try:
                async with asyncio.timeout_at(ends):
                    message = await receive()
            except TimeoutError as error:
                raise RequestTimeout(
                    f"the request body did not arrive within {self._timeout_s:g} s"
                ) from error
            complete = not message.get("more_body", False)
            got += len(message.get("body", b""))
            if (charge := int(got * weight)) > held:
                reserve(charge - held)
                held = charge
            return message

        with self.reservation() as reserve:
            reserve(held)
            yield bounded


class Exchange:
    """Runs the app for one request, and cancels its work at the deadline or when the client disconnects.

    From the body's last part on it listens for the disconnect itself. Once the response has started, the
    app runs without limits.
    """

    def __init__(self, app: ASGIApp, receive: Receive, send: Send, deadline: float | None) -> None:
        """`deadline` is the client's, in the event loop's time."""
        self._app = app
        self._receive = receive
        self._send = send
        self._deadline = deadline
        self._listener: asyncio.Task[None] | None = None
        self._responding = False
        self._disconnected = False

    async def run(self, scope: Scope, max_s: float = MAX_REQUEST_S) -> None:
        """Run the app. Raises DeadlineExceeded or ClientDisconnect if no response has started by then."""
        latest = asyncio.get_running_loop().time() + max_s
        self._limit = asyncio.timeout_at(latest if self._deadline is None else min(self._deadline, latest))
        try:
            async with self._limit:
                await self._app(scope, self._next_message, self._respond)
        except TimeoutError as error:
            if self._responding or not self._limit.expired():
                raise  # the app's own
            if self._disconnected:
                raise ClientDisconnect from error
            raise DeadlineExceeded("the deadline passed before the response was ready") from error
        finally:
            if self._listener:
                self._listener.cancel()

    async def _next_message(self) -> Message:
        if self._listener:
            await asyncio.shield(self._listener)
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._cancel_work()
            if self._disconnected:
                await asyncio.get_running_loop().create_future()  # until the limit cancels it
        elif not message.get("more_body", False):
            self._listener = asyncio.create_task(self._listen())
        return message

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._cancel_work()

    def _cancel_work(self) -> None:
        if not self._responding and not self._limit.expired():
            self._disconnected = True
            self._limit.reschedule(0)  # expires at the next turn of the event loop

    async def _respond(self, message: Message) -> None:
        if not self._responding and not self._limit.expired():
            self._limit.reschedule(None)
        self._responding = True
        await self._send(message)
