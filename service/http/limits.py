"""Limits of requests: bytes and time of their bodies, and the one owner of deadlines and disconnects.

    head ────── body arrives ────── body complete ────── response starts
    413, 429    408, 413, 429                             (no limits)
    └──────── 504: the deadline passed, 499: the client disconnected ───┘

A body acquires budget as it arrives, until the response starts. If its Content-Length does not fit, it is
refused before it is read; but a Content-Length alone holds little, or a few idle connections would exhaust
the budget. Only a bulk request acquires all its bytes before it is read, from a share of the budget, so that
it is not refused later.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Literal, Self

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeadlineExceeded, ImageTooLarge, Overloaded, RequestTimeout
from service.inference.budget import Budget

Fetch = Callable[[Callable[[int], None]], Awaitable[bytes]]  # calls the argument before it keeps bytes
Reason = Literal["bytes", "bulk"]
Refusal = Callable[[Reason], Overloaded]

MAX_REQUEST_S = 600  # until the response starts, for any request
_MAX_UNREAD_BYTES = 2**20  # acquired for a Content-Length before they arrive
_MIN_BULK_BYTES = 2**20  # of the share: a thousand small images take more memory than their bytes
# Of the bytes in flight: a bulk request without a Content-Length acquires a 64th before it is read; one above
# a 64th leaves a 16th free.
_LARGE_PART, _SPARE_PART = 64, 16


class _Full(Exception):
    """The bytes of a fetched image do not fit."""


class Intake:
    """The limits on the bytes of all bodies together, and on the size and time of each."""

    def __init__(self, max_bytes: int, largest_bytes: int, timeout_s: float, refusal: Refusal) -> None:
        """`largest_bytes` is the limit of any route."""
        self.max_bytes = max_bytes
        self.largest_bytes = largest_bytes
        self.timeout_s = timeout_s
        self.refusal = refusal
        self.budget = Budget(max_bytes)
        self.bulk_share = Budget(max_bytes // 2)
        self.fetch_turn = asyncio.Lock()


class Body:
    """The body of one request, within the limits. At the end it releases what it acquired."""

    def __init__(self, intake: Intake, headers: Headers, receive: Receive, weight: float = 1) -> None:
        """`weight` is the number of bytes that the route holds for each byte of the body."""
        content_length = headers.get("content-length", "")
        self._length = int(content_length) if content_length.isdecimal() else None
        self._intake = intake
        self._receive = receive
        self._weight = weight
        self._ends = asyncio.get_running_loop().time() + intake.timeout_s
        self._complete = False
        self._got = self._held = self._bulk_held = 0  # bytes

    def __enter__(self) -> Self:
        """Raises ImageTooLarge or Overloaded."""
        intake, length = self._intake, self._length or 0
        if length > intake.largest_bytes:  # never read, so it needs no budget
            limit = intake.largest_bytes
            raise ImageTooLarge("the request body has too many bytes", limit=limit, got=length)
        length = int(length * self._weight)
        if not intake.budget.fits(length):
            raise intake.refusal("bytes")
        # A body above the limit is admitted only alone; its rest would not fit beside its start.
        self.acquire(length if length > intake.max_bytes else min(length, _MAX_UNREAD_BYTES))
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release what it holds: from the response on the request needs it no more."""
        if self._held:
            self._intake.budget.release(self._held)
        if self._bulk_held:
            self._intake.bulk_share.release(self._bulk_held)
        self._held = self._bulk_held = 0

    def transfer(self) -> contextlib.ExitStack:
        """Return a context manager that releases at its end what the request does then no longer hold."""
        stack = contextlib.ExitStack()
        stack.callback(self._intake.budget.release, self._held)
        stack.callback(self._intake.bulk_share.release, self._bulk_held)
        self._held = self._bulk_held = 0
        return stack

    def acquire(self, amount: int, reason: Reason = "bytes") -> None:
        """Hold more bytes until the response starts. Raises Overloaded."""
        if not self._intake.budget.acquire(amount, own=self._held):
            raise self._intake.refusal(reason)
        self._held += amount

    def admit_bulk(self) -> None:
        """Acquire all bytes of the body before it is read. Raises Overloaded.

        A body without a Content-Length acquires a part, and more as it arrives: then it may be refused until
        it is complete.
        """
        if self._length is None:
            length = min(
                int(self._intake.largest_bytes * self._weight), self._intake.max_bytes // _LARGE_PART
            )
        else:
            length = int(self._length * self._weight)
        self._hold_bulk(length)

    def _hold_bulk(self, length: int) -> None:
        intake = self._intake
        share = max(length, _MIN_BULK_BYTES)
        # A few large ones that arrive slowly must not stop all bulk requests.
        spare = intake.max_bytes // _SPARE_PART if share > intake.max_bytes // _LARGE_PART else 0
        if not intake.bulk_share.acquire(share - self._bulk_held, own=self._bulk_held, spare=spare):
            raise intake.refusal("bulk")
        self._bulk_held = share
        self.acquire(length - self._held, "bulk")

    async def receive(self) -> Message:
        """Return the next message. Raises Overloaded or RequestTimeout."""
        if self._complete:  # the next message is the disconnect
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._ends):
                message = await self._receive()
        except TimeoutError as error:
            timeout_s = self._intake.timeout_s
            raise RequestTimeout(f"the request body did not arrive within {timeout_s:g} s") from error
        self._complete = not message.get("more_body", False)
        self._got += len(message.get("body", b""))
        needed = int(self._got * self._weight)
        if needed > self._held:
            if self._bulk_held:
                self._hold_bulk(needed)
            else:
                self.acquire(needed - self._held)
        elif self._complete and needed < self._held:
            self._release_rest(needed)
        return message

    def _release_rest(self, needed: int) -> None:
        self._intake.budget.release(self._held - needed)
        self._held = needed
        share = max(needed, _MIN_BULK_BYTES) if self._bulk_held else 0
        self._intake.bulk_share.release(self._bulk_held - share)
        self._bulk_held = share

    @contextlib.contextmanager
    def fetched(self, fetch: Fetch, in_bulk: bool) -> Iterator[Callable[[], Awaitable[bytes]]]:
        """Yield a function that fetches an image. Its bytes are held beside the body's, until the end.

        Raises Overloaded if they do not fit. `in_bulk`, it fetches again when it is its turn, and may exceed
        the limit: if all such images waited, holding parts of the budget, none would get the rest.
        """
        budget, turn = self._intake.budget, self._intake.fetch_turn
        with contextlib.ExitStack() as held:

            def acquire(amount: int) -> None:
                if not budget.acquire(amount):
                    raise _Full
                held.callback(budget.release, amount)

            def exceed(amount: int) -> None:
                budget.exceed(amount)
                held.callback(budget.release, amount)

            async def fetch_within() -> bytes:
                try:
                    return await fetch(acquire)
                except _Full:
                    if not in_bulk:
                        raise self._intake.refusal("bytes") from None
                held.close()
                await turn.acquire()
                held.callback(turn.release)
                return await fetch(exceed)

            yield fetch_within


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
            if self._deadline is None or self._deadline > latest:
                raise DeadlineExceeded(f"the response was not ready within {max_s:g} s") from error
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
