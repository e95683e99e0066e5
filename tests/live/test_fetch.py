"""Images by URL: off by default, and bound by the same limits as request bodies."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.targets.process import ServiceProcess
from service.core import Core
from service.fetch import Fetcher
from service.http.app import create_app
from service.http.envelope import Envelope
from service.settings import Settings
from tests.support.images import encode, noise
from tests.support.live import PNG, embedding_of, hits_of, metric, problem_of, uri
from tests.support.remote import URL, FakeNetwork, answer, drip, silence
from tests.support.waiting import LIMIT_S, until

DATA = encode(noise(1))
BMP = encode(noise(1, 200, 200), "BMP")  # 120,000 bytes
ROUTES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v1/embed", {"url": URL}),
    ("POST", "/v1/search", {"url": URL}),
    ("PUT", "/v1/items/a?domain=fetched&label=one", {"url": URL}),
    ("POST", "/v1/embeddings", {"input": URL}),
    ("POST", "/v1/embeddings", {"input": [uri(DATA), URL]}),
]


async def announced(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Announces 120,000 bytes and sends none."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 120000\r\n\r\n")
    await silence(reader, writer)


async def requested(network: FakeNetwork, path: str, times: int = 1) -> None:
    """Waits until the server has received so many requests for the path."""
    await until(lambda: sum(path in head for head in network.heads) >= times)


@pytest.fixture
async def core(network: FakeNetwork, tmp_path: Path) -> AsyncIterator[Core]:
    """A core that fetches from that network, with low limits."""
    network.pages["/a.png"] = answer(DATA)
    settings = Settings(
        data_dir=tmp_path / "index",
        url_hosts=("http://pics.example.org",),
        url_timeout_s=LIMIT_S,
        queue_limit=4,
        max_bytes_in_flight=200_000,
    )
    core = Core(settings)
    await core.start()
    core.fetcher = Fetcher(settings, core.metrics, network.resolve, network)
    yield core
    await core.close()


@pytest.fixture
async def client(core: Core) -> AsyncIterator[httpx.AsyncClient]:
    app = Envelope(create_app(core), core)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_urls_are_refused_by_default(
    http: httpx.Client, method: str, path: str, body: dict[str, Any]
) -> None:
    refused = http.request(method, path, json=body)
    assert problem_of(refused) == (400, "invalid-request")
    assert "UIE_URL_HOSTS" in refused.json()["detail"]


def test_json_without_a_url_is_refused(http: httpx.Client) -> None:
    bodies: list[Any] = [{}, {"url": 1}, {"url": URL, "also": 1}, [], URL]
    for body in bodies:
        assert problem_of(http.post("/v1/embed", json=body)) == (415, "unsupported-media-type")
        assert problem_of(http.post("/v1/search", json=body)) == (400, "invalid-request")
    assert problem_of(http.post("/v1/embed", json={"url": "x" * 100_000})) == (413, "image-too-large")


def test_a_listed_host_with_a_loopback_address_is_not_contacted(
    service: ServiceProcess, bounded: ServiceProcess, http: httpx.Client
) -> None:
    """Listed are the names and addresses of the other service; the system's own resolver is in use."""
    count = 'uie_requests_total{route="/v1/domains",status="200"}'
    assert http.get("/v1/domains").status_code == 200
    before = metric(http, count)
    assert before >= 1
    with httpx.Client(base_url=bounded.url, timeout=LIMIT_S) as client:
        refusals = metric(client, 'uie_fetches_total{result="refused"}')
        for url in (service.url, service.url.replace("127.0.0.1", "localhost")):
            refused = client.post("/v1/embed", json={"url": f"{url}/v1/domains"})
            assert problem_of(refused) == (400, "unfetchable-image")
        assert metric(client, 'uie_fetches_total{result="refused"}') == refusals + 2
    assert metric(http, count) == before


async def test_a_fetched_image_has_the_embedding_of_its_bytes(client: httpx.AsyncClient, core: Core) -> None:
    expected = embedding_of(await client.post("/v1/embed", content=DATA, headers=PNG))
    fetched = await client.post("/v1/embed", json={"url": URL})
    np.testing.assert_array_equal(embedding_of(fetched), expected)
    stages = [part.split(";")[0] for part in fetched.headers["server-timing"].split(", ")]
    assert stages == ["fetch", "decode", "queue", "infer", "total"]
    put = await client.put("/v1/items/a", params={"domain": "fetched", "label": "one"}, json={"url": URL})
    assert put.json() == {"id": "a", "created": True}
    search = await client.post("/v1/search", json={"url": URL})
    assert [hit["id"] for hit in hits_of(search)] == ["a"]
    assert "fetch;dur=" in search.headers["server-timing"]
    both = await client.post("/v1/embeddings", json={"input": [uri(DATA), URL]})
    for entry in both.json()["data"]:
        np.testing.assert_allclose(entry["embedding"], expected, atol=2e-6)
    assert core.metrics.fetches.labels("fetched")._value.get() == 4


async def test_the_index_of_an_unfetchable_image_is_reported(client: httpx.AsyncClient) -> None:
    refused = await client.post("/v1/embeddings", json={"input": [URL, URL + "x"]})
    assert problem_of(refused) == (400, "unfetchable-image")
    assert refused.json()["index"] == 1


async def test_fetched_bytes_count_as_bytes_in_flight(
    client: httpx.AsyncClient, network: FakeNetwork
) -> None:
    network.pages["/large.png"] = answer(bytes(200_000))
    refused = await client.post("/v1/embed", json={"url": "http://pics.example.org/large.png"})
    assert problem_of(refused) == (429, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    network.pages["/a.png"] = answer(BMP)
    for _ in range(3):  # each releases its bytes
        embedding_of(await client.post("/v1/embed", json={"url": URL}))
    network.pages["/announced.png"] = announced
    waiting = asyncio.create_task(
        client.post("/v1/embed", json={"url": "http://pics.example.org/announced.png"})
    )
    await requested(network, "/announced.png")
    refused = await client.post("/v1/embed", json={"url": URL})
    assert problem_of(refused) == (429, "overloaded")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    embedding_of(await client.post("/v1/embed", json={"url": URL}))


async def test_images_of_a_bulk_request_wait_for_the_bytes_of_others(
    client: httpx.AsyncClient, network: FakeNetwork
) -> None:
    """One that did not fit was a 429 for the complete request, after others had been embedded."""
    network.pages |= {"/a.png": answer(BMP), "/announced.png": announced}
    waiting = asyncio.create_task(
        client.post("/v1/embed", json={"url": "http://pics.example.org/announced.png"})
    )
    await requested(network, "/announced.png")  # and its 120,000 of 200,000 bytes are held
    response = await client.post("/v1/embeddings", json={"input": [URL] * 6})
    assert response.status_code == 200, response.text
    assert len(response.json()["data"]) == 6
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    for _ in range(3):  # all bytes were released
        embedding_of(await client.post("/v1/embed", json={"url": URL}))


async def test_the_deadline_of_a_bulk_request_ends_the_wait_for_bytes(
    client: httpx.AsyncClient, network: FakeNetwork
) -> None:
    network.pages["/a.png"] = announced
    late = await client.post("/v1/embeddings", json={"input": [URL] * 6}, headers={"X-Deadline-Ms": "500"})
    assert problem_of(late) == (504, "deadline-exceeded")
    network.pages["/a.png"] = answer(BMP)
    assert (await client.post("/v1/embeddings", json={"input": [URL] * 6})).status_code == 200


async def test_a_fetch_counts_against_the_queue_limit(
    client: httpx.AsyncClient, network: FakeNetwork
) -> None:
    network.pages["/a.png"] = silence
    waiting = [asyncio.create_task(client.post("/v1/embed", json={"url": URL})) for _ in range(4)]
    await requested(network, "/a.png", times=4)
    refused = await client.post("/v1/embed", json={"url": URL})
    assert problem_of(refused) == (429, "overloaded")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert embedding_of(await client.post("/v1/embed", content=DATA, headers=PNG)).shape == (64,)


async def test_the_clients_deadline_ends_the_fetch(client: httpx.AsyncClient, network: FakeNetwork) -> None:
    network.pages["/a.png"] = drip
    for _ in range(2):
        late = await client.post("/v1/embed", json={"url": URL}, headers={"X-Deadline-Ms": "200"})
        assert problem_of(late) == (504, "deadline-exceeded")
    async with asyncio.timeout(LIMIT_S):
        await network.ended.wait()
