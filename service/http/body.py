"""Reads request bodies, raw, multipart or JSON, up to a limit of bytes.

Images are neither decoded nor fetched here: a URL is returned as a `Link` if the route accepts one, and a
string in a file field is refused.
"""

import asyncio
import contextlib
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic_core import from_json
from starlette.requests import Request
from starlette.types import Message

from service.errors import ImageTooLarge, InvalidRequest, UnsupportedMediaType
from service.http.forms import Form, FormFile, parse_form

MAX_IMAGES = 1000  # in one bulk request
FORM_SLACK_BYTES = 64 * 1024  # boundaries and small fields around one image
MAX_JSON_BYTES = 16 * 2**20  # items with their embeddings
MAX_JSON_VALUES = 10_000  # any other JSON
_MAX_LINK_BYTES = 64 * 1024
# An item of a bulk request. Its payload may have 64 KiB, which may be six times as many if escaped.
_MAX_ROW_BYTES = 2**20
_COUNTED_BYTES = 2**16
_JOINED_PIECES = 16  # of at most 320 KB, on the event loop


@dataclass(frozen=True, slots=True)
class Link:
    """The URL of an image, instead of its bytes."""

    url: str


def media_type(headers: Mapping[str, str]) -> str:
    """Return the content type without its parameters."""
    return headers.get("content-type", "").split(";")[0].strip().lower()


async def read_image_and_fields(
    request: Request, max_bytes: int, *text_fields: str
) -> tuple[bytes | Link, dict[str, bytes]]:
    """Return an image from a raw body, a multipart field `image` or a JSON link; and a form's text fields."""
    kind = media_type(request.headers)
    if kind == "multipart/form-data":
        fields = {"image": 1, **dict.fromkeys(text_fields, 1)}
        async with form_of(request, max_bytes + FORM_SLACK_BYTES, **fields) as form:
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


@contextlib.asynccontextmanager
async def form_of(request: Request, max_bytes: int, **fields: int) -> AsyncIterator[Form]:
    """Parse the multipart form with at most so many parts of each field. Reads at most `max_bytes`."""
    if media_type(request.headers) != "multipart/form-data":
        kind = media_type(request.headers) or "a body without a content type"
        # Of the routes with forms, this one also takes JSON.
        accepted = "multipart/form-data" + (" or application/json" if "items" in fields else "")
        raise UnsupportedMediaType(f"the body must be {accepted}, not {kind}")
    bounded = _bounded(request, max_bytes)
    yield await parse_form(request.headers["content-type"], bounded.stream(), fields)


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


async def read_json(request: Request, max_bytes: int, max_values: int = MAX_JSON_VALUES) -> Any:
    """Return the JSON body. Raises as `parse_json`."""
    return parse_json(await read_body(request, max_bytes), max_values)


def parse_json(text: bytes, max_values: int = MAX_JSON_VALUES) -> Any:
    """Parse strict JSON: no NaN, no lone surrogates; but 1e999 is infinite. Raises InvalidRequest."""
    check_values(text, max_values)
    try:
        return from_json(text.removeprefix(BOM_UTF8), allow_inf_nan=False)
    except ValueError as error:  # also for invalid UTF-8 and for too deep nesting
        raise InvalidRequest(f"invalid JSON: {error}") from error


class RowsObject(msgspec.Struct):
    """The object around the rows of a bulk request. Other members are ignored."""

    items: list[msgspec.Raw]


def parse_rows(text: bytes, max_values: int, shape: type[RowsObject | list[msgspec.Raw]]) -> list[Any]:
    """Parse a JSON list of many rows, or an object around it. Not for the event loop's thread.

    Each row is parsed by a separate call, because a parser holds Python's lock: 16 MB in one call stop all
    threads for 70 ms. A row that is too large is an InvalidRequest in the list. Raises InvalidRequest.
    """
    check_values(text, max_values)
    try:
        body = msgspec.json.decode(text.removeprefix(BOM_UTF8), type=shape)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"`items` must be a list of 1 to {MAX_IMAGES} items") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"invalid JSON: {error}") from error
    raw_rows = body.items if isinstance(body, RowsObject) else body
    if not 1 <= len(raw_rows) <= MAX_IMAGES:
        raise InvalidRequest(f"`items` must be a list of 1 to {MAX_IMAGES} items")
    return [_parse_row(bytes(memoryview(row)), max_values) for row in raw_rows]


def _parse_row(row: bytes, max_values: int) -> Any:
    if len(row) > _MAX_ROW_BYTES:
        return InvalidRequest("the item has too many bytes", limit=_MAX_ROW_BYTES, got=len(row))
    return parse_json(row, max_values)


def check_values(body: bytes | bytearray, max_values: int) -> None:
    """Raise InvalidRequest if the JSON may hold more values.

    A parser holds Python's lock in any thread, and makes 64 bytes in memory of an empty list.
    """
    got = 0
    for start in range(0, len(body), _COUNTED_BYTES):  # so that a long call does not hold the lock either
        part = body[start : start + _COUNTED_BYTES]
        got += sum(part.count(mark) for mark in (b",", b"[", b"{"))
    if got > max_values:
        raise InvalidRequest("the JSON has too many values", limit=max_values, got=got)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the raw body, JSON without a byte order mark. Raises ImageTooLarge or UnsupportedMediaType."""
    pieces = [piece async for piece in _bounded(request, max_bytes).stream()]
    if media_type(request.headers) == "application/json":
        pieces[0] = pieces[0].removeprefix(BOM_UTF8)
    return await _join(pieces)


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
