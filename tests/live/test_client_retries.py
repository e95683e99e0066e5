"""Refused rows of bulk requests, the time limit of a call, and long lists, without a service."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.targets.process import ServiceProcess
from service.client import AsyncClient, Client, NewItem, Problem
from tests.support.images import encode, noise
from tests.support.live import PNG
from tests.support.waiting import LIMIT_S

VECTOR = np.ones(4, dtype=np.float32)
FULL = {"error": {"status": 429, "type": "overloaded", "detail": "full"}}
LOST = {"error": {"status": 503, "type": "index-unavailable", "detail": "gone"}}
BAD = {"error": {"status": 400, "type": "undecodable-image", "detail": "bad"}}


def answering(*rows: list[Any] | int) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A server with these results or statuses, and the requests that it received."""
    remaining, requests = list(rows), list[httpx.Request]()

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        answer = remaining.pop(0)
        if isinstance(answer, int):
            return httpx.Response(answer, json={"status": answer, "type": "unauthorized"})
        return httpx.Response(200, json={"results": answer})

    return httpx.MockTransport(handle), requests


def problems(results: list[Problem | None]) -> list[int | None]:
    return [result.status if result else None for result in results]


def new_items(count: int) -> list[NewItem]:
    return [NewItem(str(number), VECTOR, "d", "l") for number in range(count)]


def ids_in(request: httpx.Request) -> list[str]:
    return [item["id"] for item in json.loads(request.content)["items"]]


def test_only_refused_rows_are_sent_again() -> None:
    transport, requests = answering([{}, FULL, BAD, LOST], [LOST, {}], [{}])
    with Client("http://x", timeout_s=LIMIT_S, transport=transport) as client:
        assert problems(client.put_many(new_items(4))) == [None, None, 400, None]
    assert [ids_in(request) for request in requests] == [["0", "1", "2", "3"], ["1", "3"], ["1"]]


async def test_only_refused_images_are_sent_again() -> None:
    transport, requests = answering([FULL, {"embedding": [1.0]}], [{"embedding": [2.0]}])
    async with AsyncClient("http://x", timeout_s=LIMIT_S, transport=transport) as client:
        first, second = await client.embed_many([b"first", b"second"])
    assert (np.asarray(first).tolist(), np.asarray(second).tolist()) == ([2.0], [1.0])
    assert b"first" in requests[1].content
    assert b"second" not in requests[1].content


def test_rows_that_stay_refused_are_problems() -> None:
    transport, _ = answering([{}, FULL])
    with Client("http://x", timeout_s=0.05, transport=transport) as client:
        assert problems(client.put_many(new_items(2))) == [None, 429]
    transport, _ = answering([{}, FULL], 401)
    with Client("http://x", timeout_s=LIMIT_S, transport=transport) as client:
        assert problems(client.put_many(new_items(2))) == [None, 429]  # the first row is not forgotten


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n"
UPLOAD_BYTES = 100_000_000
SLOW = {"head": HEAD + b"X: ", "body": HEAD + b"\r\n", "upload": b""}


@pytest.fixture(params=SLOW)
def dripping(request: pytest.FixtureRequest) -> Iterator[tuple[str, "Queue[str]"]]:
    """A server so slow that no single read or write times out, and the connections that it saw closed."""
    start, closed = SLOW[request.param], Queue[str]()

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(LIMIT_S)
            if start:
                connection.recv(65536)
                connection.sendall(start)
            while connection.send(b"x") if start else connection.recv(2**16):
                time.sleep(0.02)
        closed.put(request.param)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                Thread(target=drip, args=(server.accept()[0],), name="drip", daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = Thread(target=accept, name="drip", daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/{request.param}", closed
        server.shutdown(socket.SHUT_RDWR)
        thread.join(LIMIT_S)


def others() -> set[Thread]:
    return {thread for thread in threading.enumerate() if thread.name != "drip"}


def test_the_timeout_limits_the_sum_of_all_steps(dripping: tuple[str, "Queue[str]"]) -> None:
    """It leaves neither a thread nor a connection: a hundred of them would stop the client."""
    url, closed = dripping
    with Client(url, timeout_s=0.5) as client:
        before = others()
        with pytest.raises(httpx.TransportError):
            client.embed(bytes(UPLOAD_BYTES)) if "upload" in url else client.info()
        assert others() == before
        assert closed.get(timeout=LIMIT_S)


def test_a_call_runs_in_the_thread_of_its_caller() -> None:
    """Context variables, as of tracing, and an interrupt reach the request."""
    threads = list[Thread]()

    def handle(_: httpx.Request) -> httpx.Response:
        threads.append(threading.current_thread())
        return httpx.Response(200, json={})

    with Client("http://x", transport=httpx.MockTransport(handle)) as client:
        client.info()
    assert threads == [threading.current_thread()]


async def test_the_timeout_of_the_async_client_too(dripping: tuple[str, "Queue[str]"]) -> None:
    url, closed = dripping
    async with AsyncClient(url, timeout_s=0.5) as client:
        with pytest.raises(httpx.TransportError):
            await (client.embed(bytes(UPLOAD_BYTES)) if "upload" in url else client.info())
        assert await asyncio.to_thread(closed.get, timeout=LIMIT_S)


def test_many_ids_are_excluded_in_the_body() -> None:
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json={"hits": [], "domains": {}})

    ids = [f"item/{number}" for number in range(1000)]
    with Client("http://x", transport=httpx.MockTransport(handle)) as client:
        client.search("x", exclude=ids)
        client.search("x", exclude=ids[:2])
    assert json.loads(requests[0].content) == {"id": "x", "exclude": ids}
    assert "exclude" not in requests[0].url.params
    assert requests[1].url.params.get_list("exclude") == ids[:2]


def test_concurrent_uploads_are_complete(service: ServiceProcess, http: httpx.Client) -> None:
    """Ten uploads of 120 images: 324 of the 1,200 items were refused within responses of status 200."""
    images = [encode(noise(seed, 48, 48)) for seed in range(12)]
    answers = list[httpx.Response]()

    class Recording(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answers.append(super().handle_request(request))
            return answers[-1]

    def upload(number: int) -> list[Problem | None]:
        items = [
            NewItem(f"concurrent/{number}/{row}", images[row % 12], "concurrent", "l") for row in range(120)
        ]
        with Client(service.url, transport=Recording()) as client:
            return client.put_many(items)

    singles = []
    with ThreadPoolExecutor(10) as threads:
        uploads = [threads.submit(upload, number) for number in range(10)]
        while not all(upload.done() for upload in uploads):
            response = http.post("/v1/embed", content=images[0], headers=PNG)
            singles.append(response.status_code)
    assert [upload.result() for upload in uploads] == [[None] * 120] * 10
    assert not [answer.text for answer in answers if answer.is_success and "error" in answer.text]
    assert singles
    assert set(singles) == {200}
    with Client(service.url, timeout_s=LIMIT_S) as client:
        assert client.domains()["concurrent"] == 1200
        for number in range(10):
            for row in range(120):
                client.delete(f"concurrent/{number}/{row}")
