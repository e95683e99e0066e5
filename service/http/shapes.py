"""Requests of other vendors' embedding APIs, all parsed to one `Batch`.

    OpenAI, Jina, SGLang   input: [string or {image}]  ──┐
    vLLM                   messages: [{content}]       ──┤
    Cohere                 images: [string]            ──┼──> sources, encodings, model
    Cohere                 inputs: [{content}]         ──┘

Members that are null count as absent, and unknown members are ignored. Strings that hold images stay in the
body: msgspec skips them without a copy.
"""

import asyncio
from codecs import BOM_UTF8
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from fastapi import Request
from msgspec import Raw, Struct

from service.errors import InvalidRequest, UnsupportedMediaType
from service.http.body import INLINE_JSON_BYTES, media_type, read_buffer
from service.http.data_uris import TEXT, Source, parse_source
from service.http.parsing import MAX_IMAGES, check_values

T = TypeVar("T")

_MAX_VALUES = 10 * MAX_IMAGES
_MAX_TEXT_BYTES = 1024  # of any string that is not an image
_NULL = Raw(b"null")
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
    encodings: list[str]  # without repetition
    model: str | None
    dimensions: int | None


class _OpenAI(Struct):
    model: Raw = _NULL
    encoding_format: Raw = _NULL
    dimensions: int | None = None
    input: Raw = _NULL
    messages: Raw = _NULL


class _Cohere(Struct):
    model: Raw = _NULL
    embedding_types: list[Raw] | None = None
    output_dimension: int | None = None
    texts: Raw = _NULL
    images: Raw = _NULL
    inputs: Raw = _NULL


class _ImageURL(Struct):
    url: Raw


class _Part(Struct):
    text: Raw = _NULL
    image: Raw = _NULL
    image_url: Raw = _NULL


class _Message(Struct):
    content: Raw = _NULL


async def read_batch(request: Request, parse: Callable[[bytearray], Batch], max_bytes: int) -> Batch:
    """Return the body's batch. Raises InvalidRequest, ImageTooLarge or UnsupportedMediaType."""
    if media_type(request.headers) != "application/json":
        raise UnsupportedMediaType("the body must be application/json")
    body = await read_buffer(request, max_bytes)
    return parse(body) if len(body) <= INLINE_JSON_BYTES else await asyncio.to_thread(parse, body)


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
    encodings = _encodings("encoding_format", [request.encoding_format])
    return Batch(sources, encodings, _text("model", request.model), request.dimensions)


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
        sources = _each(
            _rows(request.inputs), lambda row: _image_of(_parts(_decode(row, _Message))), "inputs"
        )
    encodings = _encodings("embedding_types", request.embedding_types or [_NULL])
    return Batch(sources, encodings, _text("model", request.model), request.output_dimension)


def _decode(body: bytearray | Raw, kind: type[T]) -> T:
    if isinstance(body, bytearray):
        check_values(body, _MAX_VALUES)
    buffer = memoryview(body)
    try:
        return msgspec.json.decode(buffer[3 if bytes(buffer[:3]) == BOM_UTF8 else 0 :], type=kind)
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
        return _image_of([_decode(row, _Part)])
    raise InvalidRequest(TEXT)


def _conversation(row: Raw) -> Source:
    return _image_of([part for message in _decode(row, list[_Message]) for part in _parts(message)])


def _parts(message: _Message) -> list[_Part]:
    if message.content == _NULL:
        return []
    is_text = _is(message.content, b'"')
    return [_Part(text=message.content)] if is_text else _decode(message.content, list[_Part])


def _image_of(parts: list[_Part]) -> Source:
    """Return the only image. Raises InvalidRequest for other text beside it."""
    images = [source for part in parts if (source := _image(part))]
    for part in parts:
        # A longer text is not decoded: with one emoji each of its characters takes four bytes.
        if len(part.text) > _MAX_TEXT_BYTES or (_text("text", part.text) or "").strip() not in _INSTRUCTIONS:
            raise InvalidRequest(
                "only images are embedded: text beside an image would have no effect" if images else TEXT
            )
    if len(images) != 1:
        raise InvalidRequest("each embedding is of exactly one image", limit=1, got=len(images))
    return images[0]


def _image(part: _Part) -> Source | None:
    if part.image != _NULL:
        return parse_source(_string("image", part.image), bare=True)
    if part.image_url != _NULL:
        is_object = _is(part.image_url, b"{")
        url = _decode(part.image_url, _ImageURL).url if is_object else part.image_url
        return parse_source(_string("image_url", url))
    if part.text == _NULL:
        raise InvalidRequest("a part must hold an image as `image` or `image_url`")
    return None


def _string(member: str, value: Raw) -> Raw:
    if not _is(value, b'"'):
        raise InvalidRequest(f"`{member}` must be a string")
    return value


def _text(member: str, value: Raw) -> str | None:
    """Return a short string, or None for null. Raises InvalidRequest."""
    if value == _NULL:
        return None
    if len(value) > _MAX_TEXT_BYTES:
        raise InvalidRequest(f"`{member}` has too many bytes", limit=_MAX_TEXT_BYTES, got=len(value))
    return _decode(_string(member, value), str)


def _encodings(member: str, values: list[Raw]) -> list[str]:
    encodings = list(dict.fromkeys(_text(member, value) or ENCODINGS[0] for value in values))
    for encoding in encodings:
        if encoding not in ENCODINGS:
            raise InvalidRequest(f"`{member}` must be {' or '.join(ENCODINGS)}, not {encoding[:50]}")
    return encodings
