"""Guards BentoML's native endpoints, `/embed` and `/search`.

Without a guard BentoML fetches a URL in a file field, unpickles bodies of some content types, and reads
bodies of any size. So: multipart only, files in file fields, and no more bytes than an image may have.
"""

from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from service.http.body import file_bytes, form_of, read_body

NATIVE_PATHS = {"/embed", "/search"}


async def checked_receive(scope: Scope, receive: Receive, max_bytes: int) -> Receive:
    """Read and check the body; return a `receive` that replays it. Raises ServiceError."""
    body = await read_body(Request(scope, receive), max_bytes)
    async with form_of(Request(scope, _replay(body)), max_bytes, max_files=1) as form:
        for value in form.getlist("image"):
            await file_bytes(value, "image", max_bytes)
    return _replay(body)


def _replay(body: bytes) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive
