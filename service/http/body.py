"""Reads request bodies, raw, multipart or JSON, up to a limit of bytes.

Images are neither decoded nor fetched here: a URL is returned as a `Link` if the route accepts one, and a
string in a file field is refused.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message

from service.errors import ImageTooLarge, InvalidRequest, UnsupportedMediaType

MAX_IMAGES = 1000  # in one bulk request
FORM_SLACK_BYTES = 64 * 1024  # boundaries and small fields around one image
MAX_JSON_BYTES = 16 * 2**20  # items with their embeddings
MAX_JSON_VALUES = 10_000  # any other JSON
_MAX_FIELD_BYTES = 8 * 2**20
_MAX_LINK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Link:
    """The URL of an image, instead of its bytes."""

    url: str


def media_type(headers: Mapping[str, str]) -> str:
    """Return the content type without its parameters."""
    return headers.get("content-type", "").split(";")[0].strip().lower()


async def read_image_and_fields(request: Request, max_bytes: int) -> tuple[bytes | Link, dict[str, str]]:
    """Return an image from a raw body, a multipart field `image` or a JSON link; and a form's text fields."""
    kind = media_type(request.headers)
    if kind == "multipart/form-data":
        async with form_of(request, max_bytes + FORM_SLACK_BYTES, max_files=1) as form:
            data = await file_bytes(form.get("image"), "image", max_bytes)
            return data, {name: value for name, value in form.items() if isinstance(value, str)}
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


@contextlib.asynccontextmanager
async def form_of(request: Request, max_bytes: int, max_files: int = MAX_IMAGES) -> AsyncIterator[FormData]:
    """Parse the multipart form, and close its files at the end. Reads at most `max_bytes`."""
    if media_type(request.headers) != "multipart/form-data":
        kind = media_type(request.headers) or "a body without a content type"
        raise UnsupportedMediaType(f"the body must be multipart/form-data, not {kind}")
    bounded = _bounded(request, max_bytes)
    try:
        form = await bounded.form(max_files=max_files, max_fields=16, max_part_size=_MAX_FIELD_BYTES)
    except (HTTPException, MultiPartException, UnicodeError, LookupError) as error:
        # Starlette raises one of the first two depending on the scope; the others are caused by the charset.
        detail = error.detail if isinstance(error, HTTPException) else str(error)
        raise InvalidRequest(f"invalid multipart form: {detail}") from error
    try:
        yield form
    finally:
        await form.close()


async def file_bytes(value: UploadFile | str | None, field: str, max_bytes: int) -> bytes:
    """Return the content of a file field."""
    if not isinstance(value, UploadFile):
        raise InvalidRequest(f"multipart field `{field}` is required, and must be a file")
    _check_size(value.size or 0, max_bytes)
    return await value.read()


async def read_json(request: Request, max_bytes: int, max_values: int = MAX_JSON_VALUES) -> Any:
    """Return the JSON body. Raises as `parse_json`."""
    return parse_json(await read_body(request, max_bytes), max_values)


def parse_json(text: bytes | str, max_values: int = MAX_JSON_VALUES) -> Any:
    """Parse strict JSON: no NaN, no lone surrogates; but 1e999 is infinite. Raises InvalidRequest."""
    body = text.encode() if isinstance(text, str) else text
    check_values(body, max_values)
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:  # also for invalid UTF-8 and for too deep nesting
        raise InvalidRequest(f"invalid JSON: {error}") from error


def check_values(body: bytes | bytearray, max_values: int) -> None:
    """Raise InvalidRequest if the JSON may hold more values.

    A parser holds Python's lock in any thread, and makes 64 bytes in memory of an empty list.
    """
    got = sum(body.count(mark) for mark in (b",", b"[", b"{"))
    if got > max_values:
        raise InvalidRequest("the JSON has too many values", limit=max_values, got=got)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the raw body. Raises ImageTooLarge."""
    return await _bounded(request, max_bytes).body()


async def read_buffer(request: Request, max_bytes: int) -> bytearray:
    """Return the raw body without joining its parts, which would hold it twice. Raises ImageTooLarge."""
    buffer = bytearray()
    async for part in _bounded(request, max_bytes).stream():
        buffer += part
    return buffer


def _bounded(request: Request, max_bytes: int) -> Request:
    """Return the request with a body that raises ImageTooLarge, before it is read if its length is known."""
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
