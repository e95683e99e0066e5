"""From a request to its bytes: raw, multipart or JSON, never more than the limit.

Nothing here decodes an image, and nothing fetches one: a URL is handed on, where a route takes one, and a
string where a file belongs is refused.
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
from starlette.types import Message, Receive

from service.core import Core
from service.errors import ImageTooLarge, InvalidRequest, UnsupportedMediaType
from service.inference.pipeline import Pipeline

MAX_IMAGES = 1000  # of one bulk request
FORM_SLACK_BYTES = 64 * 1024  # boundaries and small fields around one image
MAX_JSON_BYTES = 16 * 2**20  # of items with their embeddings
MAX_JSON_VALUES = 10_000  # of all other JSON
_MAX_FIELD_BYTES = 8 * 2**20
_MAX_LINK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Link:
    """Where an image is, in the place of its bytes."""

    url: str


def media_type(headers: Mapping[str, str]) -> str:
    """The content type without its parameters."""
    return headers.get("content-type", "").split(";")[0].strip().lower()


async def read_image(request: Request, pipeline: Pipeline) -> bytes | Link:
    """One image: the raw body, multipart field `image`, or where it is. Raises as the one below."""
    data, _ = await read_image_and_fields(request, pipeline)
    return data


async def read_image_and_fields(request: Request, pipeline: Pipeline) -> tuple[bytes | Link, dict[str, str]]:
    """One image, and the text fields beside it (of a form; else there are none).

    Raises Overloaded, before it reads anything, where an image would not be taken.
    """
    core: Core = request.app.state.core
    pipeline.check_capacity(request.state.deadline)
    max_bytes = core.settings.max_image_bytes
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
        f"send the image as image/*, application/octet-stream or multipart/form-data, not as {kind}"
    )


@contextlib.asynccontextmanager
async def form_of(request: Request, max_bytes: int, max_files: int = MAX_IMAGES) -> AsyncIterator[FormData]:
    """The multipart form, its files closed at the end. Reads at most `max_bytes`."""
    if media_type(request.headers) != "multipart/form-data":
        kind = media_type(request.headers) or "nothing"
        raise UnsupportedMediaType(f"send multipart/form-data, not {kind}")
    _check_length(request, max_bytes)
    counted = Request(request.scope, _counted(request.receive, max_bytes))
    try:
        form = await counted.form(max_files=max_files, max_fields=16, max_part_size=_MAX_FIELD_BYTES)
    except (HTTPException, MultiPartException, UnicodeError, LookupError) as error:
        # Which of the first two depends on the scope; the others are about the charset that was given.
        detail = error.detail if isinstance(error, HTTPException) else str(error)
        raise InvalidRequest(f"the form cannot be read: {detail}") from error
    try:
        yield form
    finally:
        await form.close()


async def file_bytes(value: UploadFile | str | None, field: str, max_bytes: int) -> bytes:
    """The content of one file field."""
    if not isinstance(value, UploadFile):
        raise InvalidRequest(f"multipart field `{field}` must be there, and be a file")
    if (value.size or 0) > max_bytes:
        raise _too_many_bytes(max_bytes, value.size)
    return await value.read()


async def read_json(request: Request, max_bytes: int, max_values: int = MAX_JSON_VALUES) -> Any:
    """The JSON body."""
    return parse_json(await read_body(request, max_bytes), max_values)


def parse_json(text: bytes | str, max_values: int = MAX_JSON_VALUES) -> Any:
    """Strict JSON: no NaN, no lone surrogates; but 1e999 is infinite. Raises InvalidRequest."""
    body = text.encode() if isinstance(text, str) else text
    check_values(body, max_values)
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:  # undecodable text and too deep ones, too
        raise InvalidRequest(f"the JSON cannot be read: {error}") from error


def check_values(body: bytes, max_values: int) -> None:
    """Raises InvalidRequest where JSON may hold more values.

    A parser has Python's lock, in whatever thread, and makes an empty list's three bytes sixty-four.
    """
    got = sum(body.count(mark) for mark in (b",", b"[", b"{"))
    if got > max_values:
        raise InvalidRequest("the JSON has too many values", limit=max_values, got=got)


async def read_body(request: Request, max_bytes: int) -> bytes:
    _check_length(request, max_bytes)
    chunks, got = [], 0
    async for chunk in request.stream():
        got += len(chunk)
        if got > max_bytes:
            raise _too_many_bytes(max_bytes, got)
        chunks.append(chunk)
    return b"".join(chunks)


def _check_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_many_bytes(max_bytes, int(length))


def _counted(receive: Receive, max_bytes: int) -> Receive:
    got = 0

    async def counted() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > max_bytes:
            raise _too_many_bytes(max_bytes, got)
        return message

    return counted


def _too_many_bytes(limit: int, got: int | None) -> ImageTooLarge:
    return ImageTooLarge("the request has too many bytes", limit=limit, got=got)
