"""Images by URL through the service's routes: off, on, and within the same bounds as bodies."""

import asyncio
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.targets.process import running_service
from service.core import Core
from service.fetch import Fetcher
from service.http.app import create_app
from service.http.envelope import Envelope
from service.settings import Settings
from tests.live.test_openai import uri
from tests.support.live import PNG, embedding_of, hits_of, problem_of
from tests.support.pictures import encode, noise
from tests.support.remote import URL, World, answer, drip, silence

DATA = encode(noise(1))
BMP = encode(noise(1, 200, 200), "BMP")  # 120,000 bytes
WAYS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v1/embed", {"url": URL}),
    ("POST", "/v1/search", {"url": URL}),
    ("PUT", "/v1/items/a?domain=fetched&label=one", {"url": URL}),
    ("POST", "/v1/embeddings", {"input": URL}),
    ("POST", "/v1/embeddings", {"input": [uri(DATA), URL]}),
]


async def begun(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An image of 120,000 bytes, of which none comes."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 120000\r\n\r\n")
    await silence(reader, writer)


async def seen(world: World, path: str, times: int = 1) -> None:
    """Waits until the server was asked for it so often."""
    async with asyncio.timeout(30):
        while sum(path in head for head in world.heads) < times:  # noqa: ASYNC110 (the server changes it)
            await asyncio.sleep(0.01)


@pytest.fixture
async def core(world: World, tmp_path: Path) -> AsyncIterator[Core]:
    """A core that fetches from that world, with little room."""
    world.pages["/a.png"] = answer(DATA)
    settings = Settings(
        data_dir=tmp_path / "index",
        url_hosts=("http://pics.example.org",),
        queue_limit=4,
        max_bytes_in_flight=200_000,
    )
    made = Core(settings)
    await made.start()
    made.fetcher = Fetcher(settings, made.metrics, world.resolve, world)
    yield made
    await asyncio.to_thread(made.close)


@pytest.fixture
async def client(core: Core) -> AsyncIterator[httpx.AsyncClient]:
    app = Envelope(create_app(core), core)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as made:
        yield made


@pytest.mark.parametrize(("method", "path", "body"), WAYS)
def test_off_it_says_so(http: httpx.Client, method: str, path: str, body: dict[str, Any]) -> None:
    refused = http.request(method, path, json=body)
    assert problem_of(refused) == (400, "invalid-request")
    assert "UIE_URL_HOSTS" in refused.json()["detail"]


def test_other_json_is_no_image(http: httpx.Client) -> None:
    bodies: list[Any] = [{}, {"url": 1}, {"url": URL, "also": 1}, [], URL]
    for body in bodies:
        assert problem_of(http.post("/v1/embed", json=body)) == (415, "unsupported-media-type")
        assert problem_of(http.post("/v1/search", json=body)) == (400, "invalid-request")
    assert problem_of(http.post("/v1/embed", json={"url": "x" * 100_000})) == (413, "image-too-large")


def test_what_is_listed_and_not_public_is_not_asked(tmp_path: Path) -> None:
    """The whole way, with the system's own names: nobody needs to be told that localhost is here."""
    asked = []

    class Inside(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    inside = HTTPServer(("127.0.0.1", 0), Inside)
    thread = threading.Thread(target=inside.serve_forever)
    thread.start()
    try:
        hosts = f"http://localhost:{inside.server_port},http://127.0.0.1:{inside.server_port}"
        with (
            running_service(tmp_path / "log", data_dir=str(tmp_path / "index"), url_hosts=hosts) as service,
            httpx.Client(base_url=service.url, timeout=60) as client,
        ):
            for host in hosts.split(","):
                refused = client.post("/v1/embed", json={"url": f"{host}/a.png"})
                assert problem_of(refused) == (400, "unfetchable-image")
            assert 'uie_fetches_total{result="refused"} 2.0' in client.get("/metrics").text
    finally:
        inside.shutdown()
        thread.join()
        inside.server_close()
    assert asked == []


async def test_a_fetched_image_is_the_image(client: httpx.AsyncClient, core: Core) -> None:
    wanted = embedding_of(await client.post("/v1/embed", content=DATA, headers=PNG))
    given = await client.post("/v1/embed", json={"url": URL})
    np.testing.assert_array_equal(embedding_of(given), wanted)
    stages = [part.split(";")[0] for part in given.headers["server-timing"].split(", ")]
    assert stages == ["fetch", "decode", "queue", "infer", "total"]
    put = await client.put("/v1/items/a", params={"domain": "fetched", "label": "one"}, json={"url": URL})
    assert put.json() == {"id": "a", "created": True}
    found = await client.post("/v1/search", json={"url": URL})
    assert [hit["id"] for hit in hits_of(found)] == ["a"]
    assert "fetch;dur=" in found.headers["server-timing"]
    both = await client.post("/v1/embeddings", json={"input": [uri(DATA), URL]})
    for one in both.json()["data"]:
        np.testing.assert_allclose(one["embedding"], wanted, atol=2e-6)
    assert core.metrics.fetches.labels("fetched")._value.get() == 4


async def test_of_several_the_unfetchable_one_is_named(client: httpx.AsyncClient) -> None:
    refused = await client.post("/v1/embeddings", json={"input": [URL, URL + "x"]})
    assert problem_of(refused) == (400, "unfetchable-image")
    assert refused.json()["index"] == 1


async def test_the_bytes_count_as_a_bodys_do(client: httpx.AsyncClient, world: World) -> None:
    world.pages["/large.png"] = answer(bytes(200_000))
    refused = await client.post("/v1/embed", json={"url": "http://pics.example.org/large.png"})
    assert problem_of(refused) == (429, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    world.pages["/a.png"] = answer(BMP)
    for _ in range(3):  # each gives its room back
        embedding_of(await client.post("/v1/embed", json={"url": URL}))
    world.pages["/begun.png"] = begun
    waiting = asyncio.create_task(client.post("/v1/embed", json={"url": "http://pics.example.org/begun.png"}))
    await seen(world, "/begun.png")
    refused = await client.post("/v1/embed", json={"url": URL})
    assert problem_of(refused) == (429, "overloaded")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    embedding_of(await client.post("/v1/embed", json={"url": URL}))


async def test_what_is_fetched_has_its_place_in_the_queue(client: httpx.AsyncClient, world: World) -> None:
    world.pages["/a.png"] = silence
    waiting = [asyncio.create_task(client.post("/v1/embed", json={"url": URL})) for _ in range(4)]
    await seen(world, "/a.png", times=4)
    refused = await client.post("/v1/embed", json={"url": URL})
    assert problem_of(refused) == (429, "overloaded")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert embedding_of(await client.post("/v1/embed", content=DATA, headers=PNG)).shape == (64,)


async def test_the_clients_deadline_ends_the_fetch(client: httpx.AsyncClient, world: World) -> None:
    world.pages["/a.png"] = drip
    for _ in range(2):
        late = await client.post("/v1/embed", json={"url": URL}, headers={"X-Deadline-Ms": "200"})
        assert problem_of(late) == (504, "deadline-exceeded")
    async with asyncio.timeout(20):
        await world.ended.wait()
