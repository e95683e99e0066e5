"""Images in JSON: base64 as a data URI or bare, and URLs.

    "data:image/png;base64,iVBORw0K..." ──head──> text ──unescape, strip──> digits ──decode──> bytes

A C function holds Python's lock while it runs, in any thread, so the text is decoded in pieces.
"""

import binascii
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import msgspec

from service.errors import ImageTooLarge, InvalidRequest
from service.http.body import Link
from service.http.parsing import MAX_URL_BYTES

_HEAD_BYTES = 2048  # of a string: they hold its scheme and media type, as a match holds Python's lock too
# Some clients escape every slash.
_SCHEME = re.compile(rb"(?:\\[nrt]|\s)*+(?:(data:)|https?:(?://|\\/\\/))", re.IGNORECASE)
_BASE64 = re.compile(rb"[^,]*?;\s*+base64\s*+,", re.IGNORECASE)
_PIECE_BYTES = 64 * 1024
_STANDARD = bytes.maketrans(b"-_", b"+/")  # from the URL-safe alphabet
_WHITESPACE = b" \t\r\n\f"

TEXT = 'only images are embedded, not text: send a data URI ("data:image/png;base64,...") or a URL'


@dataclass(frozen=True, slots=True)
class Base64Image:
    """An image's base64 in the request's body: no copy, and JSON's escapes are still in it."""

    text: memoryview


Source = Base64Image | Link


def parse_source(string: msgspec.Raw, bare: bool = False) -> Source:
    """Return the image of a JSON string; `bare` also accepts base64 alone. Raises InvalidRequest."""
    text = memoryview(string)[1:-1]  # without the quotes
    start = bytes(text[:_HEAD_BYTES])
    scheme = _SCHEME.match(start)
    if scheme is None:
        if not bare:
            raise InvalidRequest(TEXT)
        return Base64Image(text)
    if scheme[1]:
        if head := _BASE64.match(start, scheme.end()):
            return Base64Image(text[head.end() :])
        raise InvalidRequest("a data URI must be base64: data:image/png;base64,...")
    if len(text) > MAX_URL_BYTES:
        raise InvalidRequest("the URL has too many bytes", limit=MAX_URL_BYTES, got=len(text))
    return Link(_unescaped(bytes(text)).decode().strip())


def decode_base64(image: Base64Image, max_bytes: int) -> bytes:
    """Return the image's bytes. Raises InvalidRequest or ImageTooLarge.

    Accepts whitespace, missing or percent-encoded padding, and the URL-safe alphabet.
    """
    data, digits, padded = io.BytesIO(), b"", False
    try:
        for piece in _pieces(image.text):
            padding_at = len(piece.rstrip(b"="))
            if (padded and padding_at) or b"=" in piece[:padding_at]:
                raise InvalidRequest("invalid base64: characters follow the padding")
            padded = padded or padding_at < len(piece)
            digits += piece[:padding_at]
            complete = len(digits) // 4 * 4
            data.write(binascii.a2b_base64(digits[:complete], strict_mode=True))
            digits = digits[complete:]
            if data.tell() > max_bytes:
                break
        data.write(binascii.a2b_base64(digits + b"=" * (-len(digits) % 4), strict_mode=True))
    except binascii.Error as error:
        raise InvalidRequest(f"invalid base64: {error}") from error
    if data.tell() > max_bytes:
        got = max(data.tell(), len(image.text) * 3 // 4)  # the rest is estimated
        raise ImageTooLarge("the image has too many bytes", limit=max_bytes, got=got)
    return data.getvalue()  # the buffer itself, not a copy


def _pieces(text: memoryview) -> Iterator[bytes]:
    """Yield base64 digits of the standard alphabet, and their padding."""
    start = 0
    while start < len(text):
        piece = bytes(text[start : start + _PIECE_BYTES])
        if start + len(piece) < len(text):  # the next piece starts before an escape that this one cuts
            cut = max(piece.rfind(b"\\", -5), piece.rfind(b"%", -2))
            piece = piece[:cut] if cut > 0 else piece
        start += len(piece)
        yield unquote_to_bytes(_unescaped(piece)).translate(_STANDARD, _WHITESPACE)


def _unescaped(piece: bytes) -> bytes:
    """Return a part of a JSON string without JSON's escapes. Raises InvalidRequest."""
    if b"\\" not in piece and piece.isascii():
        return piece
    try:
        return msgspec.json.decode(b'"%b"' % piece, type=str).encode()
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"invalid JSON string: {error}") from error
