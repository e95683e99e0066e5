"""Guards BentoML's own endpoints, `/embed` and `/search`.

Left to itself, BentoML fetches a string in a file field as a URL, unpickles where told to, and reads
bodies of any size. So: multipart only, a file where a file belongs, and no more bytes than an image has.
"""

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ServiceError
from service.http.body import file_bytes, form_of, read_body
from service.http.envelope import send_problem

_PATHS = {"/embed", "/search"}


class FilesOnly:
    """ASGI middleware; it reads the body, checks it, and hands the same bytes on."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette's routes also match a path that ends in a line break.
        native = scope["type"] == "http" and scope["path"].rstrip("\n") in _PATHS
        if not native or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._checked_body(Request(scope, receive))
        except ServiceError as error:
            await send_problem(send, error)
            return
        await self._app(scope, _replay(body), send)

    async def _checked_body(self, request: Request) -> bytes:
        body = await read_body(request, self._max_bytes)
        async with form_of(Request(request.scope, _replay(body)), self._max_bytes, max_files=1) as form:
            for value in form.getlist("image"):
                await file_bytes(value, "image", self._max_bytes)
        return body


def _replay(body: bytes) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive
