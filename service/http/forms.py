"""Parses multipart forms. Files stay in memory, where their bytes are counted, and open no descriptors."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.datastructures import ImmutableMultiDict

from service.errors import InvalidRequest, UnsupportedMediaType

_CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii"}
_MAX_TEXT_BYTES = 128 * 2**10
_TEXT_FIELDS = {"payload": _MAX_TEXT_BYTES, "items": 8 * 2**20}  # their largest sizes; all others are files
_NOT_ENCODED = {"binary", "8bit", "7bit", "identity", ""}
_MAX_PART_HEADERS = 8
_MAX_PART_HEADER_BYTES = 8 * 2**10  # a name of 255 characters, percent-encoded in `filename` and `filename*`
_MANY_LINES, _DENSE_BYTES = 500, 16 * 2**10  # parsed in one turn of the event loop
_OPTION = re.compile(rb';[ \t]*+([^=;"\s]++)[ \t]*+=[ \t]*+(?:"((?:[^"\\]++|\\.)*+)"?|([^;]*+))', re.DOTALL)


class FormFile:
    """A file of a form, in the pieces in which it arrived."""

    __slots__ = ("_pieces", "size_bytes")

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self.size_bytes = sum(map(len, pieces))

    def pop(self) -> list[bytes]:
        """Return the pieces, which this object then no longer holds."""
        pieces, self._pieces = self._pieces, []
        return pieces


Form = ImmutableMultiDict[str, FormFile | bytes]  # a part without a filename is text, in UTF-8


async def parse_form(content_type: str, body: AsyncIterator[bytes], fields: Mapping[str, int]) -> Form:
    """Parse a `multipart/form-data` body as it arrives. `fields` has the most parts of each field.

    Raises UnsupportedMediaType or InvalidRequest, also for any other field: its content would be lost.
    """
    options = _options(content_type.encode("latin-1"))
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in _CHARSETS:
        raise UnsupportedMediaType(f"a multipart form must be in UTF-8, not in the charset {charset[:100]}")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise InvalidRequest(
            "the Content-Type of a multipart form must have its boundary: let the HTTP client set the header"
        )
    parts = _Parts(fields)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.on_part_begin,
                "on_header_field": parts.on_header_field,
                "on_header_value": parts.on_header_value,
                "on_header_end": parts.on_header_end,
                "on_headers_finished": parts.on_headers_finished,
                "on_part_data": parts.on_part_data,
                "on_part_end": parts.on_part_end,
                "on_end": parts.on_end,
            },
            max_header_count=_MAX_PART_HEADERS,
            max_header_size=_MAX_PART_HEADER_BYTES,
        )
        async for chunk in body:
            if chunk.count(b"\r\n") < _MANY_LINES:
                parser.write(chunk)
                continue
            for start in range(0, len(chunk), _DENSE_BYTES):  # of headers, which may take 8 µs each
                parser.write(chunk[start : start + _DENSE_BYTES])
                await asyncio.sleep(0)
    except FormParserError as error:
        raise InvalidRequest(f"invalid multipart form: {error}") from error
    if not parts.complete:
        raise InvalidRequest("invalid multipart form: the boundary that ends it is missing")
    return ImmutableMultiDict(parts.values)


def _options(header: bytes) -> dict[bytes, bytes]:
    """Return the parameters of a header. The time of python-multipart's function grows with their square."""
    return {
        name.lower(): quoted.replace(rb"\\", b"\\").replace(rb"\"", b'"') or plain.rstrip()
        for name, quoted, plain in _OPTION.findall(header)
    }


class _Parts:
    """Collects the parts of a form. The parser calls its methods."""

    def __init__(self, fields: Mapping[str, int]) -> None:
        self.values: list[tuple[str, FormFile | bytes]] = []
        self.complete = False
        self._fields = fields
        self._counts = Counter[str]()
        self.on_part_begin()

    def on_part_begin(self) -> None:
        self._header = self._value = self._disposition = b""
        self._pieces: list[bytes] = []
        self._text_bytes = 0

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        name, value = self._header.lower(), self._value
        if name == b"content-disposition":
            self._disposition = value
        elif name in (b"content-transfer-encoding", b"content-encoding"):
            encoding = value.decode("latin-1").strip().lower()
            if encoding not in _NOT_ENCODED:
                raise UnsupportedMediaType(f"a part of a form must not be encoded, as in {encoding[:100]}")
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        options = _options(self._disposition)
        try:
            self._name = options[b"name"].decode()
        except (KeyError, UnicodeDecodeError) as error:
            raise InvalidRequest("invalid multipart form: a part has no name in UTF-8") from error
        if self._name not in self._fields:
            names = ", ".join(self._fields)
            raise InvalidRequest(f"unknown multipart field: {self._name[:100]}; this route takes: {names}")
        self._counts[self._name] += 1
        if self._counts[self._name] > self._fields[self._name]:
            limit = self._fields[self._name]
            raise InvalidRequest(f"multipart field `{self._name}` has too many parts", limit=limit)
        # Some clients send a name with other characters than ASCII's as `filename*` only.
        self._is_file = not options.keys().isdisjoint((b"filename", b"filename*"))
        if self._is_file and self._name in _TEXT_FIELDS:
            raise InvalidRequest(f"multipart field `{self._name}` must be text: its part has a filename")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])
        if not self._is_file:
            self._text_bytes += end - start
            limit = _TEXT_FIELDS.get(self._name, _MAX_TEXT_BYTES)
            if self._text_bytes > limit:
                raise InvalidRequest(f"multipart field `{self._name[:100]}` has too many bytes", limit=limit)

    def on_part_end(self) -> None:
        content = FormFile(self._pieces) if self._is_file else b"".join(self._pieces)
        self.values.append((self._name, content))

    def on_end(self) -> None:
        self.complete = True
