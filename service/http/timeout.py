"""The longest that any request may take, in the place of BentoML's own middleware for it.

BentoML's sets a timer for each request and lets it run out, however soon the answer was there: 3.6 KB stay
for ten minutes, 200 MB at a hundred requests a second (decision 13).
"""

import asyncio

from bentoml._internal.server.http import traffic
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeadlineExceeded
from service.http.envelope import send_problem


class Timeout:
    """ASGI middleware: until the answer begins."""

    def __init__(self, app: ASGIApp, timeout: float) -> None:
        self._app = app
        self._timeout_s = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        begun = False

        async def send_in_time(message: Message) -> None:
            nonlocal begun
            if not begun and not limit.expired():
                limit.reschedule(None)
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                await self._app(scope, receive, send_in_time)
        except TimeoutError:
            if begun or not limit.expired():
                raise
            await send_problem(send, DeadlineExceeded(f"not done within {self._timeout_s:g} s"))


def replace_bentomls() -> None:
    """To be called before BentoML builds its app."""
    traffic.TimeoutMiddleware = Timeout  # type: ignore[assignment,misc]
