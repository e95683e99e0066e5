"""HEAD, problems of unknown routes, Host headers and cross-site requests, on a running service."""

from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from benchmarks.targets.process import ServiceProcess
from tests.support.images import encode, noise
from tests.support.live import PNG, connected, embedding_of, metric, problem_of, received

READABLE = [
    "/", "/docs", "/redoc", "/openapi.json", "/livez", "/readyz", "/healthz", "/metrics", "/v1/domains",
    "/v1/info", "/v1/items/edge", "/v1/items/no-such-item", "/no-such-route",
]  # fmt: skip
PROBES = ["/livez", "/readyz", "/healthz", "/metrics"]
IMAGE = encode(noise(1))


@pytest.fixture
def item(http: httpx.Client) -> Iterator[None]:
    parameters = {"domain": "edge", "label": "l"}
    assert http.put("/v1/items/edge", params=parameters, content=IMAGE, headers=PNG).is_success
    yield
    http.delete("/v1/items/edge")


@pytest.mark.usefixtures("item")
@pytest.mark.parametrize("path", READABLE)
def test_head_has_the_headers_of_get_and_no_body(http: httpx.Client, path: str) -> None:
    get, head = http.get(path), http.head(path)
    assert head.status_code == get.status_code
    assert head.content == b""
    assert set(head.headers) == set(get.headers)
    for name in ("content-type", "x-model-fingerprint", "location"):
        assert head.headers.get(name) == get.headers.get(name)
    if path != "/metrics":  # which counts its own requests
        assert head.headers["content-length"] == get.headers["content-length"]


def test_head_counts_as_its_route_and_keeps_the_connection(
    service: ServiceProcess, http: httpx.Client
) -> None:
    series = 'uie_requests_total{route="/v1/domains",status="200"}'
    before = metric(http, series)
    with closing(connected(service)) as connection:
        head = b"HEAD /v1/domains HTTP/1.1\r\nHost: localhost\r\n"
        connection.sendall(head + b"\r\n" + head + b"Connection: close\r\n\r\n")
        responses = received(connection)
    assert responses.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert responses.endswith(b"\r\n\r\n")
    assert metric(http, series) == before + 2


@pytest.mark.parametrize(
    "path", ["/no-such-route", "/v1/no-such-route", "/livez/x", "/static_content/x", "//"]
)
def test_an_unknown_route_is_a_problem(http: httpx.Client, path: str) -> None:
    for method in ("GET", "POST", "OPTIONS", "PROPFIND"):
        response = http.request(method, f"{http.base_url}{path}")
        assert problem_of(response)[0] in (404, 405)
        assert ("allow" in response.headers) == (response.status_code == 405)
    assert problem_of(http.get(f"{http.base_url}{path}")) == (404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        *[("POST", path, "GET, HEAD") for path in [*PROBES, "/", "/docs", "/v1/domains"]],
        ("OPTIONS", "/livez", "GET, HEAD"),
        ("OPTIONS", "/v1/items/x", "DELETE, GET, HEAD, PUT"),
        ("GET", "/v1/embed", "POST"),
        ("HEAD", "/v1/embed", "POST"),
    ],
)
def test_a_wrong_method_is_refused_with_allow(http: httpx.Client, method: str, path: str, allow: str) -> None:
    response = http.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allow
    assert method == "HEAD" or problem_of(response) == (405, "method-not-allowed")


def test_a_request_has_one_host(service: ServiceProcess) -> None:
    for hosts in (b"", b"Host: localhost\r\nHost: localhost\r\n"):
        with closing(connected(service)) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nConnection: close\r\n" + hosts + b"\r\n")
            response = received(connection)
        assert response.startswith(b"HTTP/1.1 400 ")
        assert b'"invalid-request"' in response
    with closing(connected(service)) as connection:
        connection.sendall(b"GET /v1/domains HTTP/1.0\r\n\r\n")
        assert received(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("host", ["rebound.example.org", "192.0.2.1:3000", "localhost.example.org", "", "["])
def test_another_host_is_refused_except_by_probes(http: httpx.Client, host: str) -> None:
    for method, path in [("GET", "/v1/domains"), ("POST", "/v1/embed"), ("GET", "/docs"), ("GET", "/x")]:
        refused = http.request(method, path, headers={"Host": host})
        assert problem_of(refused) == (421, "unknown-host")
        assert "UIE_ALLOWED_HOSTS" in refused.json()["detail"]
    for path in PROBES:
        assert http.get(path, headers={"Host": host}).is_success


@pytest.mark.parametrize("path", ["/embed", "/search"])
def test_bentomls_native_endpoints_do_not_exist(http: httpx.Client, path: str) -> None:
    assert problem_of(http.post(path, files={"image": IMAGE})) == (404, "not-found")


def test_an_asterisk_as_target_is_not_a_route(service: ServiceProcess) -> None:
    with closing(connected(service)) as connection:
        connection.sendall(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        response = received(connection)
    assert response.startswith(b"HTTP/1.1 404 ")
    assert b'"not-found"' in response


def test_an_absolute_target_names_the_host(service: ServiceProcess) -> None:
    with closing(connected(service)) as connection:
        target = b"GET http://rebound.example.org/v1/domains HTTP/1.1\r\n"
        connection.sendall(target + b"Host: localhost\r\nConnection: close\r\n\r\n")
        assert received(connection).startswith(b"HTTP/1.1 421 ")


CROSS_SITE = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:1"},
    {"Origin": "https://example.org"},
    {"Origin": "http://localhost:1"},
    {"Origin": "null"},
    {"Origin": "http://localhost", "Host": "localhost:443"},
]


@pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
def test_cross_site_writes_are_refused(http: httpx.Client, headers: dict[str, str]) -> None:
    calls = [
        ("POST", "/v1/embed"), ("POST", "/v1/search"), ("PUT", "/v1/items/x?domain=d&label=l"),
        ("DELETE", "/v1/items/x"), ("POST", "/v1/items"), ("POST", "/v1/embeddings"),
    ]  # fmt: skip
    for method, path in calls:
        refused = http.request(method, path, content=IMAGE, headers={**PNG, **headers})
        assert problem_of(refused) == (403, "cross-site")
    assert http.get("/v1/domains", headers=headers).is_success  # a page of another site cannot read it


def test_other_writes_pass(service: ServiceProcess, http: httpx.Client) -> None:
    accepted: list[dict[str, str]] = [
        {"Sec-Fetch-Site": "same-origin", "Origin": service.url},
        {"Sec-Fetch-Site": "none"},
        {"Origin": service.url},
        {"Origin": "http://LOCALHOST:81", "Host": "localhost:81"},
        {"Origin": "http://localhost", "Host": "localhost:80"},  # nginx: `Host $host:$server_port`
        {"Origin": "https://localhost", "Host": "localhost:443"},
        {"Origin": "http://[::1]", "Host": "[::1]:80"},
    ]
    for headers in accepted:
        embedding_of(http.post("/v1/embed", content=IMAGE, headers={**PNG, **headers}))
