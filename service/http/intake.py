"""Bodies on their way in: bounded in bytes over all requests together, and in time.

A body takes room as it comes. One of a stated length is refused before it is read where all of it would find
no room; a length that is only stated holds little, or a few idle connections would keep everybody out.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from service.errors import DeadlineExceeded, ImageTooLarge, Overloaded, RequestTimeout, ServiceError
from service.inference.budget import Budget

Reserve = Callable[[int], None]
Reservation = Callable[[], contextlib.AbstractContextManager[Reserve]]
_FIRST_BYTES = 2**20  # of a stated length: held before they are there


class Intake:
    """What all requests pass their bodies through."""

    def __init__(
        self, max_bytes: int, largest_bytes: int, timeout_s: float, refusal: Callable[[], Overloaded]
    ) -> None:
        """`max_bytes` of all bodies together, `largest_bytes` of the largest that any route takes."""
        self._max_bytes = max_bytes
        self._budget = Budget(max_bytes)
        self._largest_bytes = largest_bytes
        self._timeout_s = timeout_s
        self._refusal = refusal

    @contextlib.contextmanager
    def reservation(self) -> Iterator[Reserve]:
        """What it yields takes bytes of the budget, or raises Overloaded; at the end they come back."""
        held = 0

        def take(amount: int) -> None:
            nonlocal held
            if not self._budget.acquire(amount):
                raise self._refusal()
            held += amount

        try:
            yield take
        finally:
            self._budget.release(held)

    @contextlib.contextmanager
    def body(self, headers: Headers, receive: Receive, deadline: float | None) -> Iterator[Receive]:
        """A `receive` that keeps to the bounds; `deadline` is the client's, in the event loop's time.

        Raises ImageTooLarge or Overloaded; what it yields raises Overloaded, RequestTimeout and
        DeadlineExceeded.
        """
        stated = headers.get("content-length", "")
        length = int(stated) if stated.isdecimal() else None
        if length is not None and length > self._largest_bytes:  # never to be read, so it takes no room
            raise ImageTooLarge("the request has too many bytes", limit=self._largest_bytes, got=length)
        clock = asyncio.get_running_loop().time
        limits: list[tuple[float, ServiceError]] = [
            (
                clock() + self._timeout_s,
                RequestTimeout(f"the body was not there within {self._timeout_s:g} s"),
            )
        ]
        if deadline is not None:
            limits.append((deadline, DeadlineExceeded("the deadline passed while the body was read")))
        ends, late = min(limits, key=lambda limit: limit[0])
        whole, got, held = False, 0, self._held_first(length or 0)

        async def bounded() -> Message:
            nonlocal whole, got, held
            if whole:  # the next thing to hear is that the client has gone
                return await receive()
            try:
                async with asyncio.timeout_at(ends):
                    message = await receive()
            except TimeoutError as error:
                raise late from error
            whole = not message.get("more_body", False)
            got += len(message.get("body", b""))
            if got > held:
                take(got - held)
                held = got
            return message

        with self.reservation() as take:
            take(held)
            yield bounded

    def _held_first(self, length: int) -> int:
        if not self._budget.fits(length):
            raise self._refusal()
        # What is larger than all the room there is, and alone, would not fit beside its own first part.
        return length if length > self._max_bytes else min(length, _FIRST_BYTES)
