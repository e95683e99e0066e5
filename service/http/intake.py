"""Bodies on their way in: bounded in bytes over all requests together, and in time.

A body of a stated length has its room before its first byte is read; one without takes room as it comes.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from service.budget import Budget
from service.errors import DeadlineExceeded, ImageTooLarge, Overloaded, RequestTimeout, ServiceError

Take = Callable[[int], None]


class Intake:
    """What all requests pass their bodies through."""

    def __init__(
        self, max_bytes: int, largest_bytes: int, timeout_s: float, refusal: Callable[[], Overloaded]
    ) -> None:
        """`max_bytes` of all bodies together, `largest_bytes` of the largest that any route takes."""
        self._budget = Budget(max_bytes)
        self._largest_bytes = largest_bytes
        self._timeout_s = timeout_s
        self._refusal = refusal

    @contextlib.contextmanager
    def room(self) -> Iterator[Take]:
        """What it yields takes bytes of the budget, or raises Overloaded; at the end they come back."""
        held = 0

        def take(amount: int) -> None:
            nonlocal held
            if not self._budget.take(amount):
                raise self._refusal()
            held += amount

        try:
            yield take
        finally:
            self._budget.give(held)

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
        whole = False

        async def bounded() -> Message:
            nonlocal whole
            if whole:  # the next thing to hear is that the client has gone
                return await receive()
            try:
                async with asyncio.timeout_at(ends):
                    message = await receive()
            except TimeoutError as error:
                raise late from error
            whole = not message.get("more_body", False)
            if length is None:
                take(len(message.get("body", b"")))
            return message

        with self.room() as take:
            take(length or 0)
            yield bounded
