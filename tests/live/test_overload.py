"""More load than the limits allow, and slow clients: a service with low limits, and with a cache."""

import select
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from benchmarks.targets.process import ServiceProcess
from service.client import Client
from tests.support.live import NAME, PNG, begun, embedding_of, metric, problem_of, received
from tests.support.pictures import encode, noise
from tests.support.waiting import LIMIT_S


@pytest.fixture
def client(bounded: ServiceProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=bounded.url, timeout=LIMIT_S) as client:
        yield client


def test_a_slow_body_is_cut_off(bounded: ServiceProcess, client: httpx.Client) -> None:
    data = encode(noise(1))
    with closing(begun(bounded, len(data))) as connection:
        for byte in data:
            if select.select([connection], [], [], 0.2)[0]:
                break
            connection.sendall(bytes([byte]))
        response = received(connection)
    assert response.startswith(b"HTTP/1.1 408 ")
    assert b"request-timeout" in response
    embedding_of(client.post("/v1/embed", content=data, headers=PNG))


def test_the_deadline_includes_the_arrival_of_the_body(bounded: ServiceProcess) -> None:
    headers = "Content-Type: image/png\r\nX-Deadline-Ms: 500\r\nConnection: close\r\n"
    with closing(begun(bounded, 1000, headers)) as connection:
        connection.sendall(b"x")
        response = received(connection)
    assert response.startswith(b"HTTP/1.1 504 ")
    assert b"deadline-exceeded" in response


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1e3", "99999999"])
def test_a_deadline_is_a_number_of_milliseconds(client: httpx.Client, value: str) -> None:
    refused = client.get("/v1/info", headers={"X-Deadline-Ms": value})
    assert problem_of(refused) == (400, "invalid-request")


def test_request_bytes_in_flight_are_limited(bounded: ServiceProcess, client: httpx.Client) -> None:
    data = encode(noise(1))
    assert len(data) > 1000
    shed = metric(client, 'uie_shed_total{model="",reason="bytes"}')
    with closing(begun(bounded, 199_000)):
        refused = client.post("/v1/embed", content=data, headers=PNG)
        assert problem_of(refused) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["limit"] == 200_000
        assert metric(client, 'uie_shed_total{model="",reason="bytes"}') == shed + 1
        assert client.post("/v1/search", json={"id": "nothing"}).status_code == 404  # small enough
    with Client(bounded.url, timeout_s=LIMIT_S) as retrying:  # until the service notices the disconnect
        retrying.embed(data)


def test_cached_embeddings_are_marked(client: httpx.Client) -> None:
    data, other = encode(noise(201)), encode(noise(202))
    lookups = f'uie_cache_lookups_total{{model="{NAME}",result="%s"}}'
    before = {result: metric(client, lookups % result) for result in ("hit", "miss")}
    first = client.post("/v1/embed", content=data, headers=PNG)
    second = client.post("/v1/embed", content=data, headers=PNG)
    assert [response.headers["x-cache"] for response in (first, second)] == ["miss", "hit"]
    assert embedding_of(first).tolist() == embedding_of(second).tolist()
    assert "infer" in first.headers["server-timing"]
    assert "infer" not in second.headers["server-timing"]
    both = client.post("/v1/embed/batch", files=[("images", data), ("images", other)])
    assert both.headers["x-cache"] == "hit"  # one of the two: the latency is not that of an inference
    assert client.post("/v1/search", content=other, headers=PNG).headers["x-cache"] == "hit"
    assert metric(client, lookups % "hit") == before["hit"] + 3
    assert metric(client, lookups % "miss") == before["miss"] + 2


def test_without_a_cache_the_header_is_absent(http: httpx.Client) -> None:
    assert "x-cache" not in http.post("/v1/embed", content=encode(noise(1)), headers=PNG).headers
