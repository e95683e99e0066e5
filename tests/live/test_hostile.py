"""Requests that no HTTP client sends: endless heads, false lengths, paths outside the root."""

import socket
from contextlib import closing

import httpx
import psutil
import pytest

from benchmarks.soak.faults import flood
from benchmarks.soak.soak import rss_mb
from benchmarks.targets.process import ServiceProcess
from service.http.heads import MAX_HEAD_BYTES
from tests.support.images import encode, noise
from tests.support.live import PNG, connected, embedding_of, problem_of, received

DATA = encode(noise(1))
HEAD = b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
TRAILED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"


def exchanged(service: ServiceProcess, request: bytes) -> bytes:
    """Everything the service sends before it closes the connection."""
    with closing(connected(service)) as connection:
        connection.sendall(request)
        return received(connection)


def sent_until_cut_off(service: ServiceProcess, begin: bytes, piece: bytes, limit: int) -> int:
    """The number of bytes of repeated pieces that the service accepted before it closed the connection."""
    sent = 0
    with closing(connected(service)) as connection:
        try:
            connection.sendall(begin)
            while sent < limit:
                connection.sendall(piece)
                sent += len(piece)
        except ConnectionError:
            return sent
    raise AssertionError(f"{sent} bytes were accepted")


def test_a_head_that_is_too_long_is_refused(service: ServiceProcess, http: httpx.Client) -> None:
    long = HEAD + b"X-Long: "
    refused = exchanged(service, long + b"x" * (MAX_HEAD_BYTES + 1 - len(long)))
    assert refused.startswith(b"HTTP/1.1 431 ")
    assert b"headers-too-large" in refused
    assert b"content-type: application/problem+json" in refused
    almost = {**PNG, "X-Long": "x" * (MAX_HEAD_BYTES - 1000)}
    embedding_of(http.post("/v1/embed", content=DATA, headers=almost))


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (HEAD + b"X-Long: ", b"x" * 100_000),
        (HEAD, b"X-Many: y\r\n" * 10_000),
        (b"GET /v1/items/", b"x" * 100_000),
        (TRAILED, b"X-Trailer: y\r\n" * 10_000),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 100_000),
    ],
    ids=["one header", "many headers", "the line", "trailers", "a chunk's extension"],
)
def test_endless_heads_are_cut_off(
    service: ServiceProcess, http: httpx.Client, begin: bytes, piece: bytes
) -> None:
    process = psutil.Process(service.pid)
    before_mb = rss_mb(process)
    # The buffers of the sockets hold some of it.
    assert sent_until_cut_off(service, begin, piece, 100_000_000) < 50_000_000
    assert rss_mb(process) - before_mb < 50
    embedding_of(http.post("/v1/embed", content=DATA, headers=PNG))


def test_long_bodies_are_not_limited_as_heads(http: httpx.Client) -> None:
    def chunks() -> list[bytes]:
        return [DATA[start : start + 1] for start in range(len(DATA))]

    large = encode(noise(2, 900, 700), "BMP")
    assert len(large) > 10 * MAX_HEAD_BYTES
    embedding_of(http.post("/v1/embed", content=large, headers=PNG))
    embedding_of(http.post("/v1/embed", content=iter(chunks()), headers=PNG))


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "9" * 30, "5, 6", "", "\xb2", str(len(DATA) - 9)])
def test_a_false_length_closes_the_connection(service: ServiceProcess, length: str) -> None:
    request = HEAD + f"Content-Length: {length}\r\n\r\n".encode("latin-1") + DATA
    responses = exchanged(service, request)
    assert b"HTTP/1.1 200" not in responses
    # Two if it is too short: for the image and for the rest.
    assert responses.count(b"HTTP/1.1 400 ") in (1, 2)


def test_a_client_that_stops_before_its_length_gets_no_response(
    service: ServiceProcess, http: httpx.Client
) -> None:
    with closing(connected(service)) as connection:
        connection.sendall(HEAD + f"Content-Length: {len(DATA) + 9}\r\n\r\n".encode() + DATA)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536) == b""
    embedding_of(http.post("/v1/embed", content=DATA, headers=PNG))


@pytest.mark.parametrize(
    "request_",
    [
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v1/items/\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["two lengths", "no chunk", "TLS", "raw bytes in the path"],
)
def test_invalid_http_is_refused(service: ServiceProcess, request_: bytes) -> None:
    assert exchanged(service, request_).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", ["/docs", "/", "/v1/info", "/v1/nothing", "/metrics"])
def test_responses_have_security_headers(http: httpx.Client, path: str) -> None:
    response = http.get(path)
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = response.headers.get("content-security-policy", "")
    assert ("frame-ancestors 'none'" in policy) == (path in ("/docs", "/"))


TRAVERSALS = [
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f%2e%2e%2fpasswd",
    "%252e%252e%252f",
    "%00",
]


@pytest.mark.parametrize("path", [*TRAVERSALS, "..%5c..%5cx", "%e2%80%ae", "%u002e", "%", "a;b", "//", "%2f"])
def test_a_path_in_an_id_is_an_id(service: ServiceProcess, path: str) -> None:
    request = f"GET /v1/items/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    response = exchanged(service, request.encode())
    assert response.startswith(b"HTTP/1.1 404 ")
    assert b'"unknown-item"' in response


@pytest.mark.parametrize(
    ("call", "body", "limit"),
    [
        ("/v1/items", flood("items", [{"id": "x"}]), 164_000),  # a thousand items of 64 numbers, and payloads
        ("/v1/search", flood("id", "x"), 10_000),
        ("/v1/embeddings", flood("input", "data:,"), 10_000),
    ],
)
def test_json_of_many_values_is_refused_before_parsing(
    http: httpx.Client, call: str, body: bytes, limit: int
) -> None:
    refused = http.post(call, content=body, headers={"Content-Type": "application/json"})
    assert problem_of(refused) == (400, "invalid-request")
    assert refused.json()["limit"] == limit
    assert refused.json()["got"] > 400_000


@pytest.mark.parametrize("call", ["/v1/search", "/v1/items", "/v1/embeddings"])
def test_deep_json_is_refused(http: httpx.Client, call: str) -> None:
    for deep in (b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000):
        refused = http.post(call, content=deep, headers={"Content-Type": "application/json"})
        assert problem_of(refused) == (400, "invalid-request")
