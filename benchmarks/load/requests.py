"""A request that is to be sent, and how it is put to a target."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

import aiohttp

from benchmarks.errors import TargetError
from benchmarks.targets.target import Target, json_body

Kind = Literal["search", "embed", "bulk", "index", "delete"]


@dataclass(frozen=True, slots=True)
class Picture:
    """One of a data set, or made for the load."""

    id: str
    domain: str
    file: Path


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: a picture, in bulk several."""

    kind: Kind
    pictures: tuple[Picture, ...]
    params: tuple[tuple[str, str], ...] = ()
    salt: int | None = None  # makes the picture's bytes new to any cache, and leaves its pixels


@dataclass(frozen=True, slots=True)
class Request:
    """What goes over the wire."""

    method: str
    url: str
    body: dict[str, Any]  # aiohttp's: data, json, headers


def read(ask: Ask, nonce: bytes = b"") -> list[bytes]:
    """The pictures' bytes; `nonce` goes with a salt, and is another one in each process. Raises OSError."""
    if ask.kind == "delete":
        return []
    # What stands after a picture's end is nothing to its decoder.
    salt = b"" if ask.salt is None else nonce + ask.salt.to_bytes(8, "big", signed=True)
    return [picture.file.read_bytes() + salt for picture in ask.pictures]


def request_of(target: Target, ask: Ask, data: Sequence[bytes]) -> Request:
    """Raises TargetError where the target has no such call."""
    if target.kind == "uie":
        return _ours(target, ask, data)
    if ask.kind != "embed":
        raise TargetError(f"a target of kind {target.kind} is only asked for embeddings, not to {ask.kind}")
    if target.body == "raw":
        return _raw("POST", target.url, data[0])
    if target.body.startswith("form:"):
        return Request("POST", target.url, {"data": _form(target.body.removeprefix("form:"), data)})
    return Request("POST", target.url, {"json": json_body(target, data[0])})


def in_bulk(pictures: Sequence[Picture], size: int) -> list[Ask]:
    """`/v1/embed/batch`, `size` pictures each."""
    starts = range(0, len(pictures), size)
    return [Ask("bulk", tuple(pictures[start : start + size])) for start in starts]


def _ours(target: Target, ask: Ask, data: Sequence[bytes]) -> Request:
    params = [*ask.params, *([("model", target.model)] if target.model else [])]
    query = f"?{urlencode(params)}" if params else ""
    item = f"{target.url}/v1/items/{quote(ask.pictures[0].id, safe='')}"
    match ask.kind:
        case "search":
            return _raw("POST", f"{target.url}/v1/search{query}", data[0])
        case "embed":
            return _raw("POST", f"{target.url}/v1/embed{query}", data[0])
        case "bulk":
            return Request("POST", f"{target.url}/v1/embed/batch{query}", {"data": _form("images", data)})
        case "index":
            return _raw("PUT", f"{item}{query}", data[0])
        case "delete":
            return Request("DELETE", f"{item}{query}", {})


def _raw(method: str, url: str, data: bytes) -> Request:
    return Request(method, url, {"data": data, "headers": {"Content-Type": "application/octet-stream"}})


def _form(field: str, data: Sequence[bytes]) -> aiohttp.FormData:
    form = aiohttp.FormData()
    for number, one in enumerate(data):
        form.add_field(field, one, filename=str(number), content_type="application/octet-stream")
    return form
