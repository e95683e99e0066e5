"""Parses multipart forms. Files stay in memory, where their bytes are counted, and open no descriptors."""

import re
from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.datastructures import ImmutableMultiDict

from service.errors import InvalidRequest, UnsupportedMediaType

_CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii"}
_MAX_TEXTS = 16
_MAX_TEXT_BYTES = 128 * 2**10
_MAX_ITEMS_BYTES = 8 * 2**20  # of the field `items` of a bulk request
_MAX_PART_HEADERS = 6
_MAX_PART_HEADER_BYTES = 8 * 2**10  # a name of 255 characters, percent-encoded in `filename` and `filename*`
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


async def parse_form(content_type: str, body: AsyncIterator[bytes], max_files: int) -> Form:
    """Parse a `multipart/form-data` body as it arrives. Raises UnsupportedMediaType or InvalidRequest."""
    options = _options(content_type.encode("latin-1"))
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in _CHARSETS:
        raise UnsupportedMediaType(f"a multipart form must be in UTF-8, not in the charset {charset[:100]}")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise InvalidRequest("the Content-Type of a multipart form must have a `boundary`")
    parts = _Parts(max_files)
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
            parser.write(chunk)
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

    def __init__(self, max_files: int) -> None:
        self.values: list[tuple[str, FormFile | bytes]] = []
        self.complete = False
        self._free = {"file": max_files, "text": _MAX_TEXTS}
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
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        options = _options(self._disposition)
        try:
            self._name = options[b"name"].decode()
        except (KeyError, UnicodeDecodeError) as error:
            raise InvalidRequest("invalid multipart form: a part has no name in UTF-8") from error
        self._is_file = not options.keys().isdisjoint((b"filename", b"filename*"))
        kind = "file" if self._is_file else "text"
        self._free[kind] -= 1
        if self._free[kind] < 0:
            raise InvalidRequest(f"the multipart form has too many {kind} parts")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])
        if not self._is_file:
            self._text_bytes += end - start
            limit = _MAX_ITEMS_BYTES if self._name == "items" else _MAX_TEXT_BYTES
            if self._text_bytes > limit:
                raise InvalidRequest(f"multipart field `{self._name[:100]}` has too many bytes", limit=limit)

    def on_part_end(self) -> None:
        content = FormFile(self._pieces) if self._is_file else b"".join(self._pieces)
        self.values.append((self._name, content))

    def on_end(self) -> None:
        self.complete = True
