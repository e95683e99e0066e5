"""Requests as rows of data: valid ones, and one for each documented client error.

A row holds the request, the manner of sending it, and the documented response. `narrow_service` has low
limits, so that twenty thousand requests take minutes.
"""

import io
import json
import struct
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx
import numpy as np
from PIL import Image

from benchmarks.targets.process import ServiceProcess, running_service

# Limits of `narrow_service`.
MAX_IMAGE_BYTES = 200_000
MAX_BYTES_IN_FLIGHT = 64_000_000
BODY_TIMEOUT_S = 5

# At once; in chunks without a length; a byte per second; disconnected within the body, or after it.
Manner = Literal["at once", "chunked", "slowly", "cut off", "abandoned"]

_FORM = "multipart/form-data; boundary=frontier"
_JSON = "application/json"
# The offer of Java's HTTP client; it is ignored.
_UPGRADE = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAARAAAAA"}


@dataclass(frozen=True)
class Row:
    """One request and its documented response; status 0 if the client disconnects before it."""

    name: str
    body: bytes = b""
    status: int = 400
    slug: str = "invalid-request"
    content_type: str = "image/png"
    path: str = "/v1/embed"
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    manner: Manner = "at once"


def narrow_service(folder: Path) -> AbstractContextManager[ServiceProcess]:
    """Run a service with the limits above; its log and an empty index are in `folder`."""
    return running_service(
        folder / "service.log",
        data_dir=str(folder / "index"),
        body_timeout_s=str(BODY_TIMEOUT_S),
        max_image_bytes=str(MAX_IMAGE_BYTES),
        max_bytes_in_flight=str(MAX_BYTES_IN_FLIGHT),
    )


def form(*parts: tuple[str, str | None, bytes]) -> bytes:
    """Return a multipart body of (field, file name or None, content)."""
    files = [(name, (file_name, content)) for name, file_name, content in parts]
    return httpx.Request("POST", "http://x", files=files, headers={"Content-Type": _FORM}).read()


def noise_image(seed: int, kind: str = "PNG", width_px: int = 120, height_px: int = 90) -> bytes:
    """Return smooth noise of a few KB; different seeds give clearly different embeddings."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width_px, height_px), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def bomb() -> bytes:
    """Return a small PNG whose header claims 400 million pixels."""
    data = bytearray(noise_image(0))
    data[16:24] = struct.pack(">2I", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def scan_bomb(scans: int = 1000) -> bytes:
    """Return a progressive JPEG of 2048 x 2048 pixels that repeats its last scan: each covers all pixels."""
    stream = io.BytesIO()
    Image.new("RGB", (2048, 2048), (3, 4, 5)).save(stream, "JPEG", progressive=True)
    jpeg = stream.getvalue()[:-2]
    last_scan = jpeg[jpeg.rindex(b"\xff\xda") :]
    return jpeg + last_scan * (scans - jpeg.count(b"\xff\xda")) + b"\xff\xd9"


def flood(name: str, value: object) -> bytes:
    """Return JSON with one member, and 600 KB of empty lists: three bytes each, 64 in memory."""
    return f'{{"{name}": {json.dumps(value)}, "x": [{"[]," * 200_000}1]}}'.encode()


def valid(count: int) -> list[Row]:
    """Return images of several formats and sizes, sent in each way that is allowed."""
    rows = []
    for seed in range(count):
        kind = ("PNG", "JPEG", "WEBP", "GIF")[seed % 4]
        data = noise_image(seed, kind, 80 + 10 * (seed % 7), 60 + 20 * (seed % 5))
        by_manner = (
            Row("valid: raw", data, 200, ""),
            Row("valid: chunked", data, 200, "", manner="chunked"),
            Row("valid: multipart", form(("image", "x", data)), 200, "", _FORM),
            Row("valid: upgrade offer", data, 200, "", headers=_UPGRADE),
            Row("valid: upgrade offer, chunked", data, 200, "", headers=_UPGRADE, manner="chunked"),
        )
        rows.append(by_manner[seed % 5])
    return rows


def faults() -> list[Row]:
    """Return a row for each documented client error."""
    return [*_bad_images(), *_bad_bodies(), *_bad_searches(), *_bad_others(), *_bad_clients()]


def _bad_images() -> list[Row]:
    jpeg, png = noise_image(1, "JPEG", 300, 200), bytearray(noise_image(1))
    png[len(png) // 2] ^= 0xFF
    too_long, slug = bytes(MAX_IMAGE_BYTES + 1), "undecodable-image"
    return [
        Row("zero bytes", b"", 400, slug),
        Row("zero bytes in a form", form(("image", "x", b"")), 400, slug, _FORM),
        Row("not an image", b"hello, world", 400, slug),
        Row("a web page", b"<!DOCTYPE html><title>no</title>", 400, slug, "image/jpeg"),
        Row("truncated", jpeg[: len(jpeg) // 2], 400, slug),
        Row("a flipped byte", bytes(png), 400, slug),
        Row("bomb of pixels", bomb(), 413, "image-too-large"),
        Row("bomb of scans", scan_bomb(), 400, slug, "image/jpeg"),
        Row("bomb in a form", form(("image", "x", bomb())), 413, "image-too-large", _FORM),
        Row("too many bytes", too_long, 413, "image-too-large"),
        Row("too many bytes, chunked", too_long, 413, "image-too-large", manner="chunked"),
        Row("too many bytes in a form", form(("image", "x", too_long)), 413, "image-too-large", _FORM),
    ]


def _bad_bodies() -> list[Row]:
    data, link = noise_image(2), form(("image", None, b"http://127.0.0.1/x.png"))
    media = "unsupported-media-type"
    return [
        Row("text", data, 415, media, "text/plain"),
        Row("JSON instead of an image", b"{}", 415, media, _JSON),
        Row("a web form", b"image=x", 415, media, "application/x-www-form-urlencoded"),
        Row("another field", form(("other", "x", data)), content_type=_FORM),
        Row("a string instead of a file", link, content_type=_FORM),
        Row("two files", form(("image", "x", data), ("image", "y", data)), content_type=_FORM),
        Row("no boundary", form(("image", "x", data)), content_type="multipart/form-data"),
        Row("another boundary", form(("image", "x", data)), content_type=f"{_FORM}s"),
        Row("a form cut off", form(("image", "x", data))[:-40], content_type=_FORM),
        *(
            Row(f"a form in {charset}", form(("image", "x", data)), 415, media, f"{_FORM}; charset={charset}")
            for charset in ("undefined", "latin-1", "utf-16")
        ),
        *(
            Row(f"{encoding} content", data, 415, media, headers={"Content-Encoding": encoding})
            for encoding in ("gzip", "br", "GZIP, identity")
        ),
        Row("a part without a file name", form(("image", None, data)), content_type=_FORM),
        Row("a deadline that is not a number", data, headers={"X-Deadline-Ms": "soon"}),
    ]


def _bad_searches() -> list[Row]:
    path = "/v1/search"
    return [
        *(
            Row(f"search?{query}", noise_image(3), path=f"{path}?{query}")
            for query in ("k=0", "k=many", "min_score=2", "group_by=size", "domain=NO", "exclude=")
        ),
        Row("not JSON", b"{", content_type=_JSON, path=path),
        Row("NaN", b'{"embedding": [NaN]}', content_type=_JSON, path=path),
        Row("deep JSON", b"[" * 100_000 + b"]" * 100_000, content_type=_JSON, path=path),
        Row("an unknown query", b'{"image": 1}', content_type=_JSON, path=path),
        Row("a short embedding", b'{"embedding": [1.0]}', 422, "embedding-shape", _JSON, path),
        Row("an unknown id", b'{"id": "unknown"}', 404, "unknown-item", _JSON, path),
        Row("only nulls", b'{"embedding": null, "id": null}', content_type=_JSON, path=path),
    ]


def _bad_others() -> list[Row]:
    item = "/v1/items/x?domain=d&label=l"
    long_payload = form(("image", "x", noise_image(4)), ("payload", None, b'{"a": "' + b"x" * 70_000 + b'"}'))
    url = b'{"input": "http://127.0.0.1/x.png"}'
    model, openai = b'{"input": "data:;base64,", "model": "another"}', "/v1/embeddings"
    return [
        Row("no label", noise_image(4), path="/v1/items/x?domain=d", method="PUT"),
        Row("an id that is not UTF-8", noise_image(4), path="/v1/items/%FF?domain=d&label=l", method="PUT"),
        Row("an item that is not an image", b"x", 400, "undecodable-image", path=item, method="PUT"),
        Row("a long payload", long_payload, content_type=_FORM, path=item, method="PUT"),
        Row("items that are not a list", b'{"items": 1}', content_type=_JSON, path="/v1/items"),
        Row("a flood of values", flood("items", [{"id": "x"}]), content_type=_JSON, path="/v1/items"),
        Row("a flood beside an input", flood("input", "data:,"), content_type=_JSON, path=openai),
        Row("an unknown item", b"", 404, "unknown-item", path="/v1/items/..%2F..%2Fx", method="GET"),
        Row("an empty batch", form(("other", "x", b"")), content_type=_FORM, path="/v1/embed/batch"),
        Row("a URL instead of a data URI", url, content_type=_JSON, path=openai),
        Row("another model", model, 404, "unknown-model", _JSON, openai),
        Row("a null input", b'{"input": null, "encoding_format": null}', content_type=_JSON, path=openai),
        Row("the id ..", noise_image(4), path="/v1/items/%2E%2E?domain=d&label=l", method="PUT"),
        Row("no such route", noise_image(4), 404, "not-found", path="/v1/nothing"),
        Row("no such method", b"", 405, "method-not-allowed", method="DELETE"),
    ]


def _bad_clients() -> list[Row]:
    data = noise_image(5)
    origins = {"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://example.org"}, {"Origin": "null"}
    return [
        *(
            Row(f"a page of another site: {headers}", data, 403, "cross-site", headers=headers)
            for headers in origins
        ),
        Row("an unknown host", data, 421, "unknown-host", headers={"Host": "example.org"}),
        Row("a slow body", data, 408, "request-timeout", manner="slowly"),
        Row("a slow form", form(("image", "x", data)), 408, "request-timeout", _FORM, manner="slowly"),
        Row("disconnect within the body", data, 0, "", manner="cut off"),
        Row("disconnect within the form", form(("image", "x", data)), 0, "", _FORM, manner="cut off"),
        Row("disconnect before the response", data, 0, "", manner="abandoned"),
    ]
