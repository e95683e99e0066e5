"""Requests of other vendors' embedding APIs, all parsed to one `Batch`.

    OpenAI, Jina, SGLang   input: [string or {image}]  ──┐
    vLLM                   messages: [{content}]       ──┤
    Cohere                 images: [string]            ──┼──> sources, encodings, model
    Cohere                 inputs: [{content}]         ──┘

Members that are null count as absent, and unknown members are ignored. Strings that hold images stay in the
body: msgspec skips them without a copy.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from fastapi import Request
from msgspec import Raw, Struct

from service.errors import InvalidRequest, UnsupportedMediaType
from service.http.body import MAX_IMAGES, check_values, media_type, read_buffer
from service.http.data_uris import TEXT, Source, parse_source

T = TypeVar("T")

_MAX_VALUES = 10 * MAX_IMAGES  # a data URI counts as two
_INLINE_BYTES = 256 * 1024  # a larger body is parsed in a thread
_NULL = Raw(b"null")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ENCODINGS = ("float", "base64")
# vLLM's examples send these beside an image: they request its embedding, and change nothing here.
_INSTRUCTIONS = {
    "",
    "Represent the given image.",
    "Represent the user's input.",
    "What is shown in this image?",
}


@dataclass(frozen=True, slots=True)
class Batch:
    """The images of one request, and the form of their embeddings."""

    sources: list[Source]
    encodings: list[str]
    model: str | None
    dimensions: int | None


class _OpenAI(Struct):
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None
    input: Raw = _NULL
    messages: Raw = _NULL


class _Cohere(Struct):
    model: str | None = None
    embedding_types: list[str] | None = None
    output_dimension: int | None = None
    texts: Raw = _NULL
    images: Raw = _NULL
    inputs: Raw = _NULL


class _ImageURL(Struct):
    url: Raw


class _Part(Struct):
    text: str | None = None
    image: Raw = _NULL
    image_url: Raw = _NULL


class _Message(Struct):
    content: list[_Part] | str | None = None


async def read_batch(request: Request, parse: Callable[[bytearray], Batch], max_bytes: int) -> Batch:
    """Return the body's batch. Raises InvalidRequest, ImageTooLarge or UnsupportedMediaType."""
    if media_type(request.headers) != "application/json":
        raise UnsupportedMediaType("the body must be application/json")
    body = await read_buffer(request, max_bytes)
    return parse(body) if len(body) <= _INLINE_BYTES else await asyncio.to_thread(parse, body)


def parse_openai(body: bytearray) -> Batch:
    """Parse the body of `/v1/embeddings`."""
    request = _decode(body, _OpenAI)
    if (request.input == _NULL) == (request.messages == _NULL):
        raise InvalidRequest("exactly one of `input` and `messages` is required")
    if request.input != _NULL:
        sources = _each(_rows(request.input), _item, "input")
    else:
        rows = _rows(request.messages)
        several = bool(rows) and _is(rows[0], b"[")
        sources = _each(rows if several else [request.messages], _conversation, "messages")
    encoding = request.encoding_format or "float"
    _check_encodings("encoding_format", [encoding])
    return Batch(sources, [encoding], request.model, request.dimensions)


def parse_cohere(body: bytearray) -> Batch:
    """Parse the body of `/v2/embed`."""
    request = _decode(body, _Cohere)
    if request.texts != _NULL and not (_is(request.texts, b"[") and not _rows(request.texts)):
        raise InvalidRequest("only images are embedded, not `texts`: send `images` or `inputs`")
    if (request.images == _NULL) == (request.inputs == _NULL):
        raise InvalidRequest("exactly one of `images` and `inputs` is required")
    if request.images != _NULL:
        sources = _each(_rows(request.images), _item, "images")
    else:
        sources = _each(_rows(request.inputs), lambda row: _image_of([_decode(row, _Message)]), "inputs")
    encodings = request.embedding_types or ["float"]
    _check_encodings("embedding_types", encodings)
    return Batch(sources, encodings, request.model, request.output_dimension)


def _decode(body: bytearray | Raw, kind: type[T]) -> T:
    if isinstance(body, bytearray):
        check_values(body, _MAX_VALUES)
    buffer = memoryview(body)
    try:
        return msgspec.json.decode(buffer[3 if buffer[:3] == _BYTE_ORDER_MARK else 0 :], type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"invalid request body: {error}") from error


def _is(value: Raw, start: bytes) -> bool:
    return bytes(memoryview(value)[:1]) == start


def _rows(value: Raw) -> list[Raw]:
    """Return a list's values, or a single value as a list."""
    return _decode(value, list[Raw]) if _is(value, b"[") else [value]


def _each(rows: list[Raw], parse: Callable[[Raw], Source], member: str) -> list[Source]:
    if not 1 <= len(rows) <= MAX_IMAGES:
        raise InvalidRequest(f"`{member}` takes 1 to {MAX_IMAGES} images", limit=MAX_IMAGES, got=len(rows))
    sources = []
    for index, row in enumerate(rows):
        try:
            sources.append(parse(row))
        except InvalidRequest as error:
            raise InvalidRequest(error.detail, **{**error.members, "index": index}) from error
    return sources


def _item(row: Raw) -> Source:
    if _is(row, b'"'):
        return parse_source(row)
    if _is(row, b"{"):
        return _image_of([_Message([_decode(row, _Part)])])
    raise InvalidRequest(TEXT)


def _conversation(row: Raw) -> Source:
    return _image_of(_decode(row, list[_Message]))


def _image_of(messages: list[_Message]) -> Source:
    """Return the only image of a conversation. Raises InvalidRequest for other text beside it."""
    contents = [message.content or [] for message in messages]
    parts = [
        part
        for content in contents
        for part in ([_Part(text=content)] if isinstance(content, str) else content)
    ]
    images = [source for part in parts if (source := _image(part))]
    if any(part.text is not None and part.text.strip() not in _INSTRUCTIONS for part in parts):
        raise InvalidRequest(
            "only images are embedded: text beside an image would have no effect" if images else TEXT
        )
    if len(images) != 1:
        raise InvalidRequest("each embedding is of exactly one image", limit=1, got=len(images))
    return images[0]


def _image(part: _Part) -> Source | None:
    if part.image != _NULL:
        return parse_source(_string(part.image), bare=True)
    if part.image_url != _NULL:
        is_object = _is(part.image_url, b"{")
        return parse_source(_string(_decode(part.image_url, _ImageURL).url if is_object else part.image_url))
    if part.text is None:
        raise InvalidRequest("a part must hold an image as `image` or `image_url`")
    return None


def _string(value: Raw) -> Raw:
    if not _is(value, b'"'):
        raise InvalidRequest(TEXT)
    return value


def _check_encodings(member: str, encodings: list[str]) -> None:
    for encoding in encodings:
        if encoding not in ENCODINGS:
            raise InvalidRequest(f"`{member}` must be {' or '.join(ENCODINGS)}, not {encoding[:50]}")
