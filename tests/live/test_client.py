"""The client against the live service, and its patience against answers that a test decides."""

import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.targets.process import ServiceProcess
from service.client import AsyncClient, Client, NewItem, Problem
from tests.support.live import PNG, TRUNCATED, embedding_of
from tests.support.pictures import encode, noise


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[Client]:
    with Client(service.url) as made:
        yield made


@pytest.fixture
async def async_client(service: ServiceProcess) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.url) as made:
        yield made


def test_embeddings_are_the_services(client: Client, http: httpx.Client) -> None:
    data = encode(noise(1))
    wanted = embedding_of(http.post("/v1/embed", content=data, headers=PNG))
    np.testing.assert_array_equal(client.embed(data), wanted.astype(np.float32))
    good, bad, same = client.embed_many([data, TRUNCATED, data])
    np.testing.assert_allclose(np.asarray(good), wanted, atol=2e-6)
    np.testing.assert_allclose(np.asarray(same), wanted, atol=2e-6)
    assert isinstance(bad, Problem)
    assert (bad.status, bad.type) == (400, "undecodable-image")


def test_items_go_in_are_found_and_go_out(client: Client) -> None:
    data, name = encode(noise(77)), "client/a b?c"
    assert client.put(name, data, domain="clients", label="one")
    assert not client.put(name, data, domain="clients", label="two")
    for query in (data, client.embed(data), name):
        found = client.search(query, k=1, domains=["clients"], exact=True)
        assert [(hit.id, hit.domain, hit.label) for hit in found.hits] == [(name, "clients", "two")]
        assert found.hits[0].score == pytest.approx(1, abs=1e-5)
        assert found.domains == {"clients": 1.0}
    assert client.search(data, k=1, domains=["clients"], exclude=[name]).hits == []
    assert client.delete(name)
    assert not client.delete(name)


def test_many_items_go_in_at_once_each_with_its_own_result(client: Client) -> None:
    pictures = [encode(noise(seed)) for seed in (81, 82)]
    by_image = [
        NewItem("many/0", pictures[0], "many", "a", {"n": 0}),
        NewItem("many/1", TRUNCATED, "many", "a"),
        NewItem("many/2", pictures[1], "many", "b"),
    ]
    fine, broken, other = client.put_many(by_image)
    assert (fine, other) == (None, None)
    assert broken is not None
    assert broken.type == "undecodable-image"
    item = client.get("many/0")
    assert (item.id, item.domain, item.label, item.payload) == ("many/0", "many", "a", {"n": 0})
    np.testing.assert_allclose(item.embedding, client.embed(pictures[0]), atol=2e-6)
    by_embedding = [
        NewItem("many/3", item.embedding, "many", "a"),
        NewItem("many/4", item.embedding[1:], "many", "a"),
    ]
    assert [one and one.type for one in client.put_many(by_embedding)] == [None, "embedding-shape"]
    assert client.domains()["many"] == 3
    with pytest.raises(ValueError, match="mixture"):
        client.put_many([*by_image, *by_embedding])


def test_a_payload_goes_in_with_its_picture(client: Client) -> None:
    data = encode(noise(83))
    assert client.put("paid", data, "payloads", "x", {"price": 80, "tags": ["é"]})
    assert client.get("paid").payload == {"price": 80, "tags": ["é"]}
    with pytest.raises(Problem, match="404 unknown-item"):
        client.get("unpaid")


def test_the_pages_example_runs(
    service: ServiceProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (Path(__file__).parents[2] / "docs/client.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("shoe.jpg").write_bytes(encode(noise(84), "JPEG"))
    exec(example.replace("http://127.0.0.1:3000", service.url), {})  # noqa: S102 (it is ours)
    assert "'price': 80" in capsys.readouterr().out


async def test_the_other_client_has_the_same_methods(async_client: AsyncClient, client: Client) -> None:
    data = encode(noise(1))
    np.testing.assert_array_equal(await async_client.embed(data), client.embed(data))
    assert (await async_client.info())["model"] == client.info()["model"]
    with pytest.raises(Problem, match="400 undecodable-image"):
        await async_client.embed(b"no image")
    public = {name for name in vars(Client) if not name.startswith("_")}
    assert public == {name for name in vars(AsyncClient) if not name.startswith("_")}


def answering(client: Client, *answers: httpx.Response) -> list[httpx.Request]:
    """Puts given answers, one after the other, in the place of the network."""
    coming, seen = list(answers), []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return coming.pop(0)

    client._http = httpx.Client(base_url="http://x", transport=httpx.MockTransport(handle))
    return seen


FULL = httpx.Response(429, json={"status": 429, "type": "overloaded", "detail": "full"})
LATER = httpx.Response(503, headers={"Retry-After": "1"}, json={"status": 503, "type": "not-ready"})
INFO = httpx.Response(200, json={"version": "1"})


def test_it_waits_and_tries_again() -> None:
    with Client("http://x") as client:
        seen = answering(client, FULL, LATER, INFO)
        started = time.monotonic()
        assert client.info() == {"version": "1"}
    assert len(seen) == 3
    assert time.monotonic() - started >= 1  # as it was asked to
    left_ms = [int(request.headers["x-deadline-ms"]) for request in seen]
    assert 60_000 >= left_ms[0] > left_ms[1] > left_ms[2]


def test_it_does_not_wait_past_its_time() -> None:
    with Client("http://x", timeout_s=0.5) as client:
        seen = answering(client, FULL, LATER)
        with pytest.raises(Problem, match="503 not-ready"):
            client.info()
    assert len(seen) == 2


def test_other_errors_are_not_tried_again() -> None:
    with Client("http://x") as client:
        proxies = httpx.Response(502, text="<html>a proxy</html>"), httpx.Response(502, json={"status": "UP"})
        seen = answering(client, *proxies)
        with pytest.raises(Problem, match="502 : <html>a proxy"):
            client.info()
        with pytest.raises(Problem, match="502 :"):
            client.info()
    assert len(seen) == 2


def test_a_long_patience_is_cut_to_what_the_service_takes() -> None:
    with Client("http://x", timeout_s=10**6) as client:
        seen = answering(client, INFO)
        client.info()
    assert seen[0].headers["x-deadline-ms"] == "9999999"
