"""Reads request bodies, raw, multipart or JSON, up to a limit of bytes.

Images are neither decoded nor fetched here: a URL is returned as a `Link` if the route accepts one, and a
string in a file field is refused.
"""

import asyncio
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from pydantic_core import from_json
from starlette.requests import Request
from starlette.types import Message

from service.errors import ImageTooLarge, InvalidRequest, UnsupportedMediaType
from service.http.forms import Form, FormFile, parse_form

T = TypeVar("T")

MAX_IMAGES = 1000  # in one bulk request
FORM_SLACK_BYTES = 64 * 1024  # boundaries and small fields around one image
MAX_JSON_BYTES = 16 * 2**20  # items with their embeddings
MAX_JSON_VALUES = 10_000  # any other JSON
MAX_URL_BYTES = 96 * 1024  # in JSON: the fetcher takes 8,192 characters, of up to 12 bytes if escaped
INLINE_JSON_BYTES = 256 * 1024  # larger JSON is parsed in a thread
_MAX_LINK_BYTES = MAX_URL_BYTES + 1024
_MAX_TYPE_BYTES = 512  # of a Content-Type: a boundary has at most 70
# An item of a bulk request. Its payload may have 64 KiB, which may be six times as many if escaped.
_MAX_ROW_BYTES = 2**20
_COUNTED_BYTES = 2**16
_JOINED_PIECES = 16  # of at most 320 KB, on the event loop


@dataclass(frozen=True, slots=True)
class Link:
    """The URL of an image, instead of its bytes."""

    url: str


def media_type(headers: Mapping[str, str]) -> str:
    """Return the content type without its parameters. Raises UnsupportedMediaType if it is too long."""
    value = headers.get("content-type", "")
    if len(value) > _MAX_TYPE_BYTES:
        raise UnsupportedMediaType(
            "the Content-Type has too many bytes", limit=_MAX_TYPE_BYTES, got=len(value)
        )
    return value.split(";")[0].strip().lower()


async def read_image_and_fields(
    request: Request, max_bytes: int, fields: Sequence[str] = ()
) -> tuple[bytes | Link, dict[str, bytes]]:
    """Return an image from a raw body, a form's field `image` or a JSON link; and its text `fields`."""
    kind = media_type(request.headers)
    if kind == "multipart/form-data":
        form = await read_form(request, max_bytes + FORM_SLACK_BYTES, ("image", *fields), max_files=1)
        data = await file_bytes(form.get("image"), "image", max_bytes)
        return data, {name: value for name, value in form.items() if isinstance(value, bytes)}
    if kind.startswith("image/") or kind in ("application/octet-stream", ""):
        return await read_body(request, max_bytes), {}
    if kind == "application/json":
        match await read_json(request, _MAX_LINK_BYTES):
            case {"url": str(url), **rest} if not rest:
                return Link(url), {}
        kind = 'JSON other than {"url": "..."}'
    raise UnsupportedMediaType(
        f"the image must be sent as image/*, application/octet-stream or multipart/form-data, not as {kind}"
    )


async def read_form(
    request: Request, max_bytes: int, fields: Sequence[str], max_files: int = MAX_IMAGES
) -> Form:
    """Return the multipart form. Reads at most `max_bytes`. Raises InvalidRequest for any other field."""
    if media_type(request.headers) != "multipart/form-data":
        kind = media_type(request.headers) or "a body without a content type"
        raise UnsupportedMediaType(f"the body must be multipart/form-data, not {kind}")
    bounded = _bounded(request, max_bytes)
    form = await parse_form(request.headers["content-type"], bounded.stream(), max_files)
    if unknown := sorted(form.keys() - set(fields)):
        raise InvalidRequest(
            f"unknown multipart field: {', '.join(unknown)[:200]}; this route takes: {', '.join(fields)}"
        )
    return form


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
    return await asyncio.to_thread(_parse_members, body)


def parse_json(text: bytes, max_values: int = MAX_JSON_VALUES) -> Any:
    """Parse strict JSON: no NaN, no lone surrogates; but 1e999 is infinite. Raises InvalidRequest."""
    check_values(text, max_values)
    return _parse(text)


def _parse(text: bytes) -> Any:
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
    body = _split(text, shape, f"`items` must be a list of 1 to {MAX_IMAGES} items")
    raw_rows = body.items if isinstance(body, RowsObject) else body
    if not 1 <= len(raw_rows) <= MAX_IMAGES:
        raise InvalidRequest(f"`items` must be a list of 1 to {MAX_IMAGES} items")
    return [_parse_row(bytes(memoryview(row))) for row in raw_rows]


def _parse_row(row: bytes) -> Any:
    if len(row) > _MAX_ROW_BYTES:
        return InvalidRequest("the item has too many bytes", limit=_MAX_ROW_BYTES, got=len(row))
    return _parse(row)


def _parse_members(text: bytes) -> dict[str, Any]:
    """Parse a large JSON object, each member and each row of a list by a separate call."""
    check_values(text, MAX_JSON_VALUES)
    mismatch = "the JSON body must be an object"
    members = {}
    for name, value in _split(text, dict[str, msgspec.Raw], mismatch).items():
        part = memoryview(value)
        is_list = part[:1] == b"["
        members[name] = (
            [*map(_parse_value, _split(part, list[msgspec.Raw], mismatch))]
            if is_list
            else _parse_value(value)
        )
    return members


def _parse_value(value: msgspec.Raw) -> Any:
    text = memoryview(value)
    if len(text) > MAX_URL_BYTES:
        raise InvalidRequest("a value has too many bytes", limit=MAX_URL_BYTES, got=len(text))
    return _parse(bytes(text))


def _split(text: bytes | memoryview, shape: type[T], mismatch: str) -> T:
    """Parse JSON up to its `msgspec.Raw` parts. Raises InvalidRequest, as `mismatch` for another type."""
    try:
        return msgspec.json.decode(text[len(BOM_UTF8) if text[:3] == BOM_UTF8 else 0 :], type=shape)
    except msgspec.ValidationError as error:
        raise InvalidRequest(mismatch) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"invalid JSON: {error}") from error


def check_values(body: bytes | bytearray, max_values: int) -> None:
    """Raise InvalidRequest if the JSON may hold more values.

    A parser holds Python's lock in any thread, and makes 64 bytes in memory of an empty list.
    """
    got = sum(part.count(mark) for part in _structure(body) for mark in (b",", b"[", b"{"))
    if got > max_values:
        raise InvalidRequest("the JSON has too many values", limit=max_values, got=got)


def _structure(text: bytes | bytearray) -> Iterator[bytes]:
    """Yield JSON without its strings, in parts of which none holds Python's lock for long."""
    start = in_string = 0
    while start < len(text):
        part = bytes(text[start : start + _COUNTED_BYTES])
        cut_escape = (len(part) - len(part.rstrip(b"\\"))) % 2  # the next part starts with it
        part = part[: max(1, len(part) - cut_escape)]
        start += len(part)
        pieces = part.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')
        yield b"".join(pieces[in_string::2])
        in_string = (in_string + len(pieces) - 1) % 2


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
