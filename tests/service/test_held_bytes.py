"""Bytes in flight: released when the response starts, and held until an abandoned write ends."""

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.types import Message

from service.core import Core
from tests.support.images import encode, noise
from tests.support.indexes import occupied
from tests.support.live import PNG, embedding_of, problem_of
from tests.support.serving import serving
from tests.support.waiting import until

MEGA = 2**20
IMAGE = encode(noise(1, 32, 32))
VECTOR = [0.125] * 64


async def abandoned(core: Core, client: httpx.AsyncClient, body: object) -> None:
    """Send a bulk request, and disconnect when it waits for the index."""
    calls = core.index._calls
    request = asyncio.create_task(client.post("/v1/items", json=body))
    await until(lambda: core.index._calls > calls)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)


def bulk(name: str, payload_bytes: int = 0) -> dict[str, object]:
    item = {
        "id": name,
        "domain": "d",
        "label": "l",
        "embedding": VECTOR,
        "payload": {"x": "x" * payload_bytes},
    }
    return {"items": [item]}


async def test_abandoned_writes_hold_their_bytes(tmp_path: Path) -> None:
    """They queued without limit: the service had released the bytes at the 504, or at the disconnect."""
    async with serving(tmp_path, max_bytes_in_flight=8 * MEGA) as (core, client):
        async with occupied(core.index):
            for number in range(3):  # each counts as 1 MB of the 4 MB, and a part must stay free
                await abandoned(core, client, bulk(str(number), 60_000))
            refused = await client.post("/v1/items", json=bulk("refused"))
            assert problem_of(refused) == (429, "overloaded")
            assert core.metrics.shed.labels("", "bulk")._value.get() == 1
        await until(lambda: core.index._calls == 0)
        assert (await client.post("/v1/items", json=bulk("3"))).json() == {"results": [{"id": "3"}]}
        assert await core.index.counts() == (4, 0)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
async def test_a_bulk_upload_is_refused_before_it_is_read_if_the_index_is_full(
    tmp_path: Path, kind: str
) -> None:
    async with serving(tmp_path, queue_limit=2) as (core, client):
        async with occupied(core.index):
            for number in range(2):
                await abandoned(core, client, bulk(str(number)))
            refused = await client.post("/v1/items", content=b"not read", headers={"Content-Type": kind})
            assert problem_of(refused) == (429, "overloaded")
            assert core.metrics.shed.labels("", "index")._value.get() == 1
        await until(lambda: core.index._calls == 0)


async def test_a_response_that_waits_for_the_client_holds_no_bytes(tmp_path: Path) -> None:
    """Behind a response that its client did not read, a request held 15 MB without a limit of time."""
    body, read = IMAGE.ljust(3 * MEGA, b"\0"), asyncio.Event()
    messages: list[Message] = [{"type": "http.request", "body": body}]
    started = asyncio.Event()

    async def receive() -> Message:
        if not messages:
            await read.wait()
            return {"type": "http.disconnect"}
        return messages.pop()

    async def send(_: Message) -> None:
        started.set()
        await read.wait()

    async with serving(tmp_path, max_bytes_in_flight=4 * MEGA) as (_, client):
        headers = [(b"host", b"localhost"), (b"content-type", b"image/png")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/embed",
            "query_string": b"",
            "headers": headers,
        }
        transport = client._transport
        assert isinstance(transport, httpx.ASGITransport)
        waiting = asyncio.ensure_future(transport.app({**scope, "raw_path": b"/v1/embed"}, receive, send))
        await started.wait()
        embedding_of(await client.post("/v1/embed", content=body, headers=PNG))
        read.set()
        await waiting
