"""Requests of a load, and their HTTP form for each kind of target."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

from benchmarks.errors import DataError, TargetError
from benchmarks.load.scenarios import Scenario
from benchmarks.targets.http import multipart, raw
from benchmarks.targets.target import Target, json_body

HttpRequest = tuple[str, str, dict[str, Any]]  # method, URL, and arguments of `send`
Kind = Literal["search", "embed", "bulk", "index", "delete"]


@dataclass(frozen=True, slots=True)
class QueryImage:
    """An image of a data set, or one that was resized for the load."""

    id: str
    domain: str
    file: Path


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request with one image, or several for `bulk`."""

    kind: Kind
    images: tuple[QueryImage, ...]
    params: tuple[tuple[str, str], ...] = ()
    salt: int | None = None  # appended to the image's bytes: new to any cache, same pixels


@dataclass(frozen=True, slots=True)
class Load:
    """The requests and their arrival pattern."""

    target: Target
    scenario: Scenario
    requests: Sequence[LoadRequest]
    seconds: float | None = None  # duration of a closed loop; None: until all requests are sent


def read(request: LoadRequest, nonce: bytes = b"") -> list[bytes]:
    """Read the images; `nonce` differs by process and makes the salt unique. Raises DataError."""
    if request.kind == "delete":
        return []
    # Decoders ignore bytes after the end of an image.
    salt = b"" if request.salt is None else nonce + request.salt.to_bytes(8, "big", signed=True)
    try:
        return [image.file.read_bytes() + salt for image in request.images]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


def http_request(target: Target, request: LoadRequest, contents: Sequence[bytes]) -> HttpRequest:
    """Return the HTTP form of a request with these image bytes.

    Raises TargetError if the target has no such call.
    """
    if target.kind == "uie":
        return _service_request(target, request, contents)
    if request.kind != "embed":
        raise TargetError(f"a target of kind {target.kind} can embed only, not {request.kind}")
    if target.body == "raw":
        return "POST", target.url, raw(contents[0])
    if target.body.startswith("form:"):
        return "POST", target.url, multipart(target.body.removeprefix("form:"), contents)
    return "POST", target.url, {"json": json_body(target, contents[0])}


def in_bulk(images: Sequence[QueryImage], size: int) -> list[LoadRequest]:
    """Return requests to `/v1/embed/batch` with `size` images each."""
    starts = range(0, len(images), size)
    return [LoadRequest("bulk", tuple(images[start : start + size])) for start in starts]


def _service_request(target: Target, request: LoadRequest, contents: Sequence[bytes]) -> HttpRequest:
    params = [*request.params, *([("model", target.model)] if target.model else [])]
    query = f"?{urlencode(params)}" if params else ""
    item = f"{target.url}/v1/items/{quote(request.images[0].id, safe='')}{query}"
    match request.kind:
        case "search" | "embed":
            return "POST", f"{target.url}/v1/{request.kind}{query}", raw(contents[0])
        case "bulk":
            return "POST", f"{target.url}/v1/embed/batch{query}", multipart("images", contents)
        case "index":
            return "PUT", item, raw(contents[0])
        case "delete":
            return "DELETE", item, {}
