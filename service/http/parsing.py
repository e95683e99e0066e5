"""Parses JSON bodies. Large ones are split first: a parser holds Python's lock in any thread."""

from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from pydantic_core import from_json

from service.errors import InvalidRequest
from service.fetch import MAX_URL_CHARS

T = TypeVar("T")

MAX_IMAGES = 1000  # in one bulk request
MAX_JSON_VALUES = 10_000  # except for bulk requests
MAX_URL_BYTES = 12 * MAX_URL_CHARS  # in JSON, which may escape each character
# An item of a bulk request. Its payload may have 64 KiB, which may be six times as many if escaped.
_MAX_ROW_BYTES = 2**20
_COUNTED_BYTES = 2**16


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


def parse_members(text: bytes) -> dict[str, Any]:
    """Parse a large JSON object, each member and each row of a list by a separate call."""
    check_values(text, MAX_JSON_VALUES)
    members = _split(text, dict[str, msgspec.Raw], "the JSON body must be an object")
    return {name: _parse_member(value) for name, value in members.items()}


def _parse_member(value: msgspec.Raw) -> Any:
    text = memoryview(value)
    if bytes(text[:1]) != b"[":
        return _parse_value(value)
    return [_parse_value(row) for row in _split(text, list[msgspec.Raw], "invalid list")]


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
    """Yield JSON without its strings, in parts of which none holds Python's lock for long.

    Raises InvalidRequest for a name as long as a part, which a parser would copy: 32 MB take 120 ms.
    """
    start = in_string = 0
    is_long = False  # the last string
    while start < len(text):
        part = bytes(text[start : start + _COUNTED_BYTES])
        cut_escape = (len(part) - len(part.rstrip(b"\\"))) % 2  # the next part starts with it
        part = part[: max(1, len(part) - cut_escape)]
        start += len(part)
        pieces = part.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')
        outside = b"".join(pieces[in_string::2])
        if in_string and len(pieces) == 1:
            is_long = True
        elif is_long and (rest := outside.lstrip()):
            if rest.startswith(b":"):
                raise InvalidRequest("a name in the JSON has too many bytes", limit=_COUNTED_BYTES)
            is_long = False
        yield outside
        in_string = (in_string + len(pieces) - 1) % 2
