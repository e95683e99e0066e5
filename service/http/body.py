"""Reads request bodies, raw, multipart or JSON, up to a limit of bytes.

Images are neither decoded nor fetched here: a URL is returned as a `Link` if the route accepts one, and a
string in a file field is refused.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.types import Message

from service.errors import ImageTooLarge, InvalidRequest, UnsupportedMediaType
from service.fetch import MAX_URL_CHARS
from service.http.forms import Form, FormFile, parse_form
from service.http.parsing import MAX_URL_BYTES, parse_json, parse_members

FORM_SLACK_BYTES = 64 * 1024  # boundaries and small fields around one image
MAX_JSON_BYTES = 16 * 2**20  # items with their embeddings
INLINE_JSON_BYTES = 256 * 1024  # larger JSON is parsed in a thread
_MAX_LINK_BYTES = MAX_URL_BYTES + 1024
_MAX_TYPE_BYTES = 512  # of a Content-Type: a boundary has at most 70
_JOINED_PIECES = 16  # of at most 320 KB, on the event loop


@dataclass(frozen=True, slots=True)
class Link:
    """The URL of an image, instead of its bytes. Raises InvalidRequest if it is too long."""

    url: str

    def __post_init__(self) -> None:
        if len(self.url) > MAX_URL_CHARS:
            raise InvalidRequest("the URL is too long", limit=MAX_URL_CHARS, got=len(self.url))


def media_type(headers: Mapping[str, str]) -> str:
    """Return the content type without its parameters. Raises UnsupportedMediaType if it is too long."""
    value = headers.get("content-type", "")
    if len(value) > _MAX_TYPE_BYTES:
        raise UnsupportedMediaType(
            "the Content-Type has too many bytes", limit=_MAX_TYPE_BYTES, got=len(value)
        )
    return value.split(";")[0].strip().lower()


async def read_image_and_fields(
    request: Request, max_bytes: int, *text_fields: str
) -> tuple[bytes | Link, dict[str, bytes]]:
    """Return an image from a raw body, a form's field `image` or a JSON link; and a form's text fields."""
    kind = media_type(request.headers)
    if kind == "multipart/form-data":
        fields = {"image": 1, **dict.fromkeys(text_fields, 1)}
        form = await read_form(request, max_bytes + FORM_SLACK_BYTES, **fields)
        data = await file_bytes(form.get("image"), "image", max_bytes)
        return data, {name: value for name, value in form.items() if isinstance(value, bytes)}
    if kind.startswith("image/") or kind in ("application/octet-stream", ""):
        return await read_body(request, max_bytes), {}
    if kind == "application/json":
        match await read_json(request, _MAX_LINK_BYTES):
            case {"url": str(url), **rest} if not any(value is not None for value in rest.values()):
                return Link(url), {}
        raise UnsupportedMediaType('this route takes an image, or JSON of the form {"url": "..."}')
    raise UnsupportedMediaType(
        "an image must be sent as image/*, application/octet-stream or multipart/form-data, and JSON as "
        f"application/json, not as {kind}"
    )


async def read_form(request: Request, max_bytes: int, **fields: int) -> Form:
    """Return the multipart form, with at most so many parts of each field. Reads at most `max_bytes`."""
    if media_type(request.headers) != "multipart/form-data":
        kind = media_type(request.headers) or "a body without a content type"
        # Of the routes with forms, this one also takes JSON.
        accepted = "multipart/form-data" + (" or application/json" if "items" in fields else "")
        raise UnsupportedMediaType(f"the body must be {accepted}, not {kind}")
    bounded = _bounded(request, max_bytes)
    return await parse_form(request.headers["content-type"], bounded.stream(), fields)


async def file_bytes(value: FormFile | bytes | None, field: str, max_bytes: int) -> bytes:
    """Return the content of a file field, which the form then no longer holds."""
    if value is None:
        raise InvalidRequest(f"multipart field `{field}` is required")
    if not isinstance(value, FormFile):
        raise InvalidRequest(
            f"multipart field `{field}` must be a file: its part has no filename, as in "
            f'Content-Disposition: form-data; name="{field}"; filename="image.jpg"'
        )
    _check_size(value.size_bytes, max_bytes)
    return await _join(value.pop())


async def read_json(request: Request, max_bytes: int) -> Any:
    """Return the JSON body. Raises as `parse_json`."""
    body = await read_body(request, max_bytes)
    if len(body) <= INLINE_JSON_BYTES:
        return parse_json(body)
    return await asyncio.to_thread(parse_members, body)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the raw body. Raises ImageTooLarge or UnsupportedMediaType."""
    return await _join([piece async for piece in _bounded(request, max_bytes).stream()])


async def _join(pieces: list[bytes]) -> bytes:
    """Join the pieces of a body; in a thread if they are many: 20 MB take from 5 to 80 ms."""
    if len(pieces) < _JOINED_PIECES:
        return b"".join(pieces)
    joined: list[bytes] = []
    # Not returned by the thread: its future stays in a reference cycle until the garbage collector runs.
    await asyncio.to_thread(lambda: joined.append(b"".join(pieces)))
    return joined.pop()


async def read_buffer(request: Request, max_bytes: int) -> bytearray:
    """Return the raw body without joining its parts, which would hold it twice. Raises ImageTooLarge."""
    buffer = bytearray()
    async for part in _bounded(request, max_bytes).stream():
        buffer += part
    return buffer


def _bounded(request: Request, max_bytes: int) -> Request:
    """Return the request with a body that raises ImageTooLarge, before it is read if its length is known.

    Raises UnsupportedMediaType for an encoded body.
    """
    header = ",".join(request.headers.getlist("content-encoding")).lower()
    encodings = {name.strip() for name in header.split(",")} - {"", "identity"}
    if encodings:
        names = ", ".join(sorted(encodings))[:100]
        raise UnsupportedMediaType(f"the body must not be encoded; its Content-Encoding is {names}")
    length = request.headers.get("content-length", "")
    _check_size(int(length) if length.isdecimal() else 0, max_bytes)
    got = 0

    async def receive() -> Message:
        nonlocal got
        message = await request.receive()
        got += len(message.get("body", b""))
        _check_size(got, max_bytes)
        return message

    return Request(request.scope, receive)


def _check_size(got: int, limit: int) -> None:
    if got > limit:
        raise ImageTooLarge("the request body has too many bytes", limit=limit, got=got)
