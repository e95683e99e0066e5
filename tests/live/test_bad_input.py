"""Unusual images, broken images and malformed requests get the responses of the HTTP contract."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.targets.process import ServiceProcess
from tests.support.images import encode, noise, quadrants
from tests.support.live import PNG, TRUNCATED, connected, embedding_of, problem_of


def huge_header() -> bytes:
    """A small PNG whose header claims 20,000 x 20,000 pixels."""
    data = bytearray(encode(Image.new("L", (8, 8))))
    data[16:24] = struct.pack(">2I", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


GOOD = {
    "1x1": encode(Image.new("RGB", (1, 1))),
    "cmyk": encode(quadrants().convert("CMYK"), "JPEG"),
    "16-bit": encode(Image.fromarray(np.full((50, 50), 0x80FF, dtype=np.uint16))),
    "palette with transparency": encode(quadrants().convert("P"), transparency=0),
    "animated": encode(quadrants(), "GIF", save_all=True, append_images=[noise(1, 300, 200)]),
    "avif": encode(quadrants(), "AVIF"),
    "tiff": encode(quadrants(), "TIFF"),
    "bmp": encode(quadrants(), "BMP"),
    "webp": encode(quadrants(), "WEBP"),
}
BAD = {
    "truncated": (TRUNCATED, 400, "undecodable-image"),
    "zero bytes": (b"", 400, "undecodable-image"),
    "not an image": (b"hello, world", 400, "undecodable-image"),
    "400 million pixels": (huge_header(), 413, "image-too-large"),
    "50 MB": (bytes(50_000_000), 413, "image-too-large"),
}


@pytest.mark.parametrize("name", GOOD)
def test_unusual_images_have_embeddings(http: httpx.Client, name: str) -> None:
    embedding = embedding_of(http.post("/v1/embed", content=GOOD[name], headers=PNG))
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("transfer", ["raw", "multipart", "chunked"])
def test_broken_images_have_problems(http: httpx.Client, name: str, transfer: str) -> None:
    data, status, slug = BAD[name]

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(data), 1 << 16):
            yield data[start : start + (1 << 16)]

    if transfer == "multipart":
        response = http.post("/v1/embed", files={"image": ("x.jpg", data)})
    else:
        response = http.post("/v1/embed", content=data if transfer == "raw" else chunks(), headers=PNG)
    assert problem_of(response) == (status, slug)
    if status == 413:
        assert response.json()["got"] > response.json()["limit"]


def test_a_body_that_is_too_long_is_refused_before_it_is_sent(service: ServiceProcess) -> None:
    with closing(connected(service)) as connection:
        connection.sendall(
            b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: image/png\r\nContent-Length: 50000000\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


FORM = "multipart/form-data"


@pytest.mark.parametrize(
    ("request_", "status", "slug"),
    [
        ({"files": {"other": b"x"}}, 400, "invalid-request"),
        ({"files": {"image": (None, "http://127.0.0.1/x.png")}}, 400, "invalid-request"),
        ({"json": {"image": "x"}}, 415, "unsupported-media-type"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported-media-type"),
        ({"data": {"image": "x"}}, 415, "unsupported-media-type"),
        (
            {"content": b"nonsense", "headers": {"Content-Type": f"{FORM}; boundary=x"}},
            400,
            "invalid-request",
        ),
        ({"content": b"x", "headers": {"Content-Type": FORM}}, 400, "invalid-request"),
        (
            {"content": b"x", "headers": {"Content-Type": f"{FORM}; boundary=x; charset=undefined"}},
            415,
            "unsupported-media-type",
        ),
        ({"content": b"x", "headers": {**PNG, "X-Deadline-Ms": "soon"}}, 400, "invalid-request"),
        ({"content": b"x", "headers": {**PNG, "X-Deadline-Ms": "1" * 5000}}, 400, "invalid-request"),
    ],
)
def test_malformed_requests(http: httpx.Client, request_: dict[str, Any], status: int, slug: str) -> None:
    assert problem_of(http.post("/v1/embed", **request_)) == (status, slug)


def test_routes_and_methods_that_do_not_exist(http: httpx.Client) -> None:
    assert problem_of(http.get("/v1/nothing")) == (404, "not-found")
    assert problem_of(http.request("TRACE", "/v1/nothing")) == (404, "not-found")
    for method in ("GET", "PATCH", "TRACE"):
        refused = http.request(method, "/v1/embed")
        assert problem_of(refused) == (405, "method-not-allowed")
        assert refused.headers["allow"] == "POST"
    assert http.request("TRACE", "/v1/items/x").headers["allow"] == "DELETE, GET, HEAD, PUT"
