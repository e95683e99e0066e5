"""The longest that a request may take: the client's deadline, and ours in the place of BentoML's middleware.

BentoML's sets a timer for each request and lets it run out, however soon the answer was there: 3.6 KB stay
for ten minutes, 200 MB at a hundred requests a second (decision 13).
"""

import asyncio

from bentoml._internal.server.http import traffic
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeadlineExceeded
from service.http.envelope import send_problem


class Deadline:
    """ASGI middleware within the envelope: what the client gave, for every route, until the answer begins.

    Those that embed have an end of their own, that drops what still waits.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ends = scope["state"]["request"].deadline if scope["type"] == "http" else None
        if ends is None:
            await self._app(scope, receive, send)
        else:
            error = DeadlineExceeded("not done before the deadline that the client gave")
            await _in_time(self._app, ends, error, scope, receive, send)


class Timeout:
    """ASGI middleware: until the answer begins."""

    def __init__(self, app: ASGIApp, timeout: float) -> None:
        self._app = app
        self._timeout_s = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            ends = asyncio.get_running_loop().time() + self._timeout_s
            error = DeadlineExceeded(f"not done within {self._timeout_s:g} s")
            await _in_time(self._app, ends, error, scope, receive, send)


async def _in_time(
    app: ASGIApp, ends: float, error: DeadlineExceeded, scope: Scope, receive: Receive, send: Send
) -> None:
    begun = False

    async def send_in_time(message: Message) -> None:
        nonlocal begun
        if not begun and not limit.expired():
            limit.reschedule(None)
        begun = True
        await send(message)

    try:
        async with asyncio.timeout_at(ends) as limit:
            await app(scope, receive, send_in_time)
    except TimeoutError:
        if begun or not limit.expired():
            raise
        await send_problem(send, error)


def replace_bentomls() -> None:
    """To be called before BentoML builds its app."""
    traffic.TimeoutMiddleware = Timeout  # type: ignore[assignment,misc]
