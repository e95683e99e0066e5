"""The client against the live service, and its retries against prepared responses."""

import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.targets.process import ServiceProcess
from service.client import AsyncClient, Client, NewItem, Problem
from tests.support.images import encode, noise
from tests.support.live import PNG, TRUNCATED, embedding_of
from tests.support.paths import ROOT
from tests.support.waiting import LIMIT_S


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[Client]:
    with Client(service.url, timeout_s=LIMIT_S) as client:
        yield client


@pytest.fixture
async def async_client(service: ServiceProcess) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.url, timeout_s=LIMIT_S) as client:
        yield client


def test_embed_and_embed_many_equal_the_http_responses(client: Client, http: httpx.Client) -> None:
    data = encode(noise(1))
    expected = embedding_of(http.post("/v1/embed", content=data, headers=PNG))
    np.testing.assert_array_equal(client.embed(data), expected.astype(np.float32))
    first, problem, last = client.embed_many([data, TRUNCATED, data])
    np.testing.assert_allclose(np.asarray(first), expected, atol=2e-6)
    np.testing.assert_allclose(np.asarray(last), expected, atol=2e-6)
    assert isinstance(problem, Problem)
    assert (problem.status, problem.type) == (400, "undecodable-image")


def test_items_are_added_found_and_deleted(client: Client) -> None:
    data, name = encode(noise(77)), "client/a b?c"
    assert client.put(name, data, domain="clients", label="one")
    assert not client.put(name, data, domain="clients", label="two")
    for query in (data, client.embed(data), name):
        result = client.search(query, k=1, domains=["clients"], exact=True)
        assert [(hit.id, hit.domain, hit.label) for hit in result.hits] == [(name, "clients", "two")]
        assert result.hits[0].score == pytest.approx(1, abs=1e-5)
        assert result.domains == {"clients": 1.0}
    assert client.search(data, k=1, domains=["clients"], exclude=[name]).hits == []
    assert client.delete(name)
    assert not client.delete(name)


def test_a_name_may_be_a_string_and_an_image_may_not(client: Client) -> None:
    """A string is a sequence of characters, and httpx sends it as text."""
    with pytest.raises(Problem, match=r"no item is indexed in: nowhere; .*'domains': ..nowhere"):
        client.search(np.eye(64, dtype=np.float32)[0], domains="nowhere")
    with pytest.raises(TypeError, match="read_bytes"):
        client.embed("shoe.jpg")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="read_bytes"):
        client.embed_many(["shoe.jpg"])  # type: ignore[list-item]


def test_put_many_has_one_result_per_item(client: Client) -> None:
    images = [encode(noise(seed)) for seed in (81, 82)]
    by_image = [
        NewItem("many/0", images[0], "many", "a", {"n": 0}),
        NewItem("many/1", TRUNCATED, "many", "a"),
        NewItem("many/2", images[1], "many", "b"),
    ]
    first, problem, last = client.put_many(by_image)
    assert (first, last) == (None, None)
    assert problem is not None
    assert problem.type == "undecodable-image"
    item = client.get("many/0")
    assert (item.id, item.domain, item.label, item.payload) == ("many/0", "many", "a", {"n": 0})
    np.testing.assert_allclose(item.embedding, client.embed(images[0]), atol=2e-6)
    by_embedding = [
        NewItem("many/3", item.embedding, "many", "a"),
        NewItem("many/4", item.embedding[1:], "many", "a"),
    ]
    assert [problem and problem.type for problem in client.put_many(by_embedding)] == [
        None,
        "embedding-shape",
    ]
    assert client.domains()["many"] == 3
    with pytest.raises(ValueError, match="mixture"):
        client.put_many([*by_image, *by_embedding])


def test_a_payload_is_stored_with_its_image(client: Client) -> None:
    data = encode(noise(83))
    assert client.put("with-payload", data, "payloads", "x", {"price": 80, "tags": ["é"]})
    assert client.get("with-payload").payload == {"price": 80, "tags": ["é"]}
    with pytest.raises(Problem, match="404 unknown-item"):
        client.get("absent")


def test_the_documented_example_runs(
    service: ServiceProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (ROOT / "docs/client.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("shoe.jpg").write_bytes(encode(noise(84), "JPEG"))
    exec(example.replace("http://127.0.0.1:3000", service.url), {})  # noqa: S102 (our own page)
    assert "'price': 80" in capsys.readouterr().out


async def test_the_async_client_has_the_same_methods(async_client: AsyncClient, client: Client) -> None:
    data = encode(noise(1))
    np.testing.assert_array_equal(await async_client.embed(data), client.embed(data))
    assert (await async_client.info())["model"] == client.info()["model"]
    with pytest.raises(Problem, match="400 undecodable-image"):
        await async_client.embed(b"no image")
    public = {name for name in dir(Client) if not name.startswith("_")}
    assert public == {name for name in dir(AsyncClient) if not name.startswith("_")} == METHODS


METHODS = {"embed", "embed_many", "search", "put", "put_many", "get", "delete", "domains", "info"}


def client_of(*responses: httpx.Response, timeout_s: float = LIMIT_S) -> tuple[Client, list[httpx.Request]]:
    """A client that receives these responses, in this order, and the list of requests it sends."""
    remaining, requests = list(responses), list[httpx.Request]()

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return remaining.pop(0)

    return Client("http://x", timeout_s=timeout_s, transport=httpx.MockTransport(handle)), requests


FULL = httpx.Response(429, json={"status": 429, "type": "overloaded", "detail": "full"})


def not_ready(retry_after_s: int) -> httpx.Response:
    return httpx.Response(
        503, headers={"Retry-After": str(retry_after_s)}, json={"status": 503, "type": "not-ready"}
    )


INFO = httpx.Response(200, json={"version": "1"})


def test_it_retries_after_429_and_503() -> None:
    client, requests = client_of(FULL, not_ready(1), INFO)
    started = time.monotonic()
    with client:
        assert client.info() == {"version": "1"}
    assert len(requests) == 3
    assert time.monotonic() - started >= 1  # Retry-After
    left_ms = [int(request.headers["x-deadline-ms"]) for request in requests]
    assert LIMIT_S * 1000 >= left_ms[0] > left_ms[1] > left_ms[2]


def test_it_does_not_wait_longer_than_its_timeout() -> None:
    client, requests = client_of(FULL, not_ready(2 * LIMIT_S))
    with client, pytest.raises(Problem, match="503 not-ready"):
        client.info()
    assert len(requests) == 2


def test_other_errors_are_not_retried() -> None:
    client, requests = client_of(
        httpx.Response(502, text="<html>a proxy</html>"), httpx.Response(502, json={"status": "UP"})
    )
    with client:
        with pytest.raises(Problem, match="502 : <html>a proxy"):
            client.info()
        with pytest.raises(Problem, match="502 :"):
            client.info()
    assert len(requests) == 2


def test_a_long_timeout_is_cut_to_the_longest_deadline() -> None:
    client, requests = client_of(INFO, timeout_s=10**6)
    with client:
        client.info()
    assert requests[0].headers["x-deadline-ms"] == "9999999"
