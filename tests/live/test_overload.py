"""More than there is room for, and clients that are too slow: a service with narrow bounds."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from benchmarks.targets.process import ServiceProcess, running_service
from service.client import Client
from tests.support.live import NAME, PNG, answer, begun, embedding_of, metric, problem_of
from tests.support.pictures import encode, noise


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("narrow")
    with running_service(
        folder / "log",
        data_dir=str(folder / "index"),
        body_timeout_s="1",
        max_bytes_in_flight="200000",
    ) as service:
        yield service


@pytest.fixture
def client(narrow: ServiceProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=narrow.url, timeout=60) as made:
        yield made


def test_a_body_that_drips_is_cut_off(narrow: ServiceProcess, client: httpx.Client) -> None:
    data = encode(noise(1))
    with closing(begun(narrow, len(data))) as connection:
        for byte in data[:3]:
            connection.sendall(bytes([byte]))
            time.sleep(0.3)
        cut = answer(connection)
    assert cut.startswith(b"HTTP/1.1 408 ")
    assert b"request-timeout" in cut
    embedding_of(client.post("/v1/embed", content=data, headers=PNG))


def test_the_deadline_runs_while_the_body_is_read(narrow: ServiceProcess) -> None:
    with closing(begun(narrow, 1000, b"x", "X-Deadline-Ms: 100\r\nConnection: close\r\n")) as connection:
        cut = answer(connection)
    assert cut.startswith(b"HTTP/1.1 504 ")
    assert b"deadline-exceeded" in cut


@pytest.mark.parametrize("given", ["0", "-5", "soon", "1e3", "99999999"])
def test_a_deadline_is_a_number_of_milliseconds(client: httpx.Client, given: str) -> None:
    refused = client.get("/v1/info", headers={"X-Deadline-Ms": given})
    assert problem_of(refused) == (400, "invalid-request")


def test_bodies_share_a_budget_of_bytes(narrow: ServiceProcess, client: httpx.Client) -> None:
    data = encode(noise(1))
    assert len(data) > 1000
    shed = metric(client, 'uie_shed_total{model="",reason="bytes"}')
    with closing(begun(narrow, 199_000, b"x")):
        time.sleep(0.2)
        refused = client.post("/v1/embed", content=data, headers=PNG)
        assert problem_of(refused) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["limit"] == 200_000
        assert metric(client, 'uie_shed_total{model="",reason="bytes"}') == shed + 1
        assert client.post("/v1/search", json={"id": "nothing"}).status_code == 404  # small ones find room
    with Client(narrow.url, timeout_s=60) as patient:  # that the other has gone is known a moment later
        patient.embed(data)


def test_what_was_known_says_so(tmp_path: Path) -> None:
    data, other = encode(noise(1)), encode(noise(2))
    with (
        running_service(tmp_path / "log", data_dir=str(tmp_path / "index"), cache_items="10") as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        first = client.post("/v1/embed", content=data, headers=PNG)
        again = client.post("/v1/embed", content=data, headers=PNG)
        assert [one.headers["x-cache"] for one in (first, again)] == ["miss", "hit"]
        assert embedding_of(first).tolist() == embedding_of(again).tolist()
        assert "infer" in first.headers["server-timing"]
        assert "infer" not in again.headers["server-timing"]
        both = client.post("/v1/embed/batch", files=[("images", data), ("images", other)])
        assert both.headers["x-cache"] == "hit"  # one of them: the time of this answer says little
        assert client.post("/v1/search", content=other, headers=PNG).headers["x-cache"] == "hit"
        assert metric(client, f'uie_cache_lookups_total{{model="{NAME}",result="hit"}}') == 3
        assert metric(client, f'uie_cache_lookups_total{{model="{NAME}",result="miss"}}') == 2


def test_without_a_cache_nothing_is_said_of_it(client: httpx.Client) -> None:
    assert "x-cache" not in client.post("/v1/embed", content=encode(noise(1)), headers=PNG).headers
