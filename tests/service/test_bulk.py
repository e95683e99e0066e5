"""Bulk requests: admitted or refused as a whole, with images that wait and alternate."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.inference.encoder import Encoder
from tests.support.images import encode, noise
from tests.support.live import NAME, PNG, TRUNCATED, problem_of, uri
from tests.support.serving import serving
from tests.support.waiting import until

IMAGE = encode(noise(1, 32, 32))


class CountingEncoder(Encoder):
    """Returns a fixed embedding, and counts the images."""

    images = 0

    def __init__(self, *args: Any) -> None:
        self.golden = super().encode
        super().__init__(*args)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.images += len(pixels)
        return self.golden(pixels[:1]).repeat(len(pixels), axis=0)


def images(count: int) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (str(number), IMAGE)) for number in range(count)]


def items(name: str, count: int) -> dict[str, Any]:
    rows = [{"id": f"{name}-{number}", "domain": "d", "label": "l"} for number in range(count)]
    return {"data": {"items": json.dumps(rows)}, "files": images(count)}


@pytest.mark.parametrize("cache_items", [0, 9])
async def test_images_of_concurrent_bulk_requests_wait(tmp_path: Path, cache_items: int) -> None:
    """Of ten uploads of 120 items, 324 items were refused within responses of status 200."""
    async with serving(tmp_path, CountingEncoder, queue_limit=8, threads=2, cache_items=cache_items) as (
        core,
        client,
    ):
        uploads = [asyncio.create_task(client.post("/v1/items", **items(str(n), 12))) for n in range(10)]
        uris = [uri(IMAGE)] * 12
        uploads += [
            asyncio.create_task(client.post("/v1/embeddings", json={"input": uris})),
            asyncio.create_task(client.post("/v1/embed/batch", files=images(12))),
        ]
        single = await client.post("/v1/embed", content=IMAGE, headers=PNG)
        assert single.status_code == 200  # bulk requests leave half of the queue
        responses = [await upload for upload in uploads]
        assert [response.status_code for response in responses] == [200] * 12
        assert "error" not in "".join(response.text for response in responses)
        assert await core.index.counts() == (120, 0)
        assert core.model().pipeline.in_flight == 0


async def test_a_small_bulk_request_does_not_wait_for_a_large_one(tmp_path: Path) -> None:
    async with serving(tmp_path, CountingEncoder, queue_limit=4, threads=1, max_batch=1) as (core, client):
        encoder = core.model().encoder
        assert isinstance(encoder, CountingEncoder)
        large = asyncio.create_task(client.post("/v1/embed/batch", files=images(200)))
        await until(lambda: encoder.images > 2)
        before = encoder.images
        small = await client.post("/v1/embed/batch", files=images(4))
        assert len(small.json()["results"]) == 4
        assert encoder.images - before < 40
        assert len((await large).json()["results"]) == 200


async def test_a_failed_image_cancels_the_rest_of_an_openai_request(tmp_path: Path) -> None:
    async with serving(tmp_path, CountingEncoder, queue_limit=4, threads=1) as (core, client):
        encoder = core.model().encoder
        assert isinstance(encoder, CountingEncoder)
        uris = [uri(IMAGE), uri(TRUNCATED, "image/jpeg"), *[uri(IMAGE)] * 200]
        response = await client.post("/v1/embeddings", json={"input": uris})
        assert problem_of(response) == (400, "undecodable-image")
        assert response.json()["index"] == 1
        assert encoder.images < 100
        assert core.model().pipeline.retry_after_s(in_bulk=True) == 1  # nothing waits any more


PATHS = ["/v1/items", "/v1/embed/batch", "/v1/embeddings", "/v2/embed"]


def headers_of(path: str, length: int | None = None) -> dict[str, str]:
    is_json = path in ("/v1/embeddings", "/v2/embed")
    headers = {"Content-Type": "application/json" if is_json else "multipart/form-data; boundary=x"}
    return headers | ({} if length is None else {"Content-Length": str(length)})


@pytest.mark.parametrize("path", PATHS)
async def test_a_bulk_request_is_refused_before_its_body_is_read(tmp_path: Path, path: str) -> None:
    begun, finish, was_read = asyncio.Event(), asyncio.Event(), list[str]()

    async def slow() -> AsyncIterator[bytes]:
        begun.set()
        await finish.wait()
        yield bytes(2**20)

    async def other() -> AsyncIterator[bytes]:
        was_read.append(path)
        yield b"{}"

    async with serving(tmp_path, max_bytes_in_flight=2**21, queue_limit=1) as (core, client):
        pipeline, headers = core.model().pipeline, headers_of(path)
        first = asyncio.create_task(client.post(path, content=slow(), headers=headers_of(path, 2**20)))
        await begun.wait()
        for reason in ("bulk", "queue", "deadline"):
            if reason == "deadline":
                headers["X-Deadline-Ms"] = "50000"
                pipeline._queue_limit, pipeline.batcher.seconds_per_image = 2, 100
            with nullcontext() if reason == "bulk" else pipeline.counted():
                refused = await client.post(path, content=other(), headers=headers)
            assert problem_of(refused) == (429, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            assert core.metrics.shed.labels("" if reason == "bulk" else NAME, reason)._value.get() == 1
        assert not was_read
        assert (await client.post("/v1/embed", content=IMAGE, headers=PNG)).status_code == 200
        finish.set()
        assert problem_of(await first)[0] == 400
        assert problem_of(await client.post(path, content=other(), headers=headers_of(path)))[0] == 400


@pytest.mark.parametrize(("path", "member"), [("/v1/embeddings", "input"), ("/v2/embed", "images")])
async def test_several_images_wait_for_the_other_bulk_requests_and_one_does_not(
    tmp_path: Path, path: str, member: str
) -> None:
    async with serving(tmp_path) as (core, client):
        pipeline = core.model().pipeline
        pipeline.batcher.seconds_per_image = 1
        pipeline._bulk_waiting = 100
        for count, status in ((1, 200), (2, 429)):
            body = {member: [uri(IMAGE)] * count}
            response = await client.post(path, json=body, headers={"X-Deadline-Ms": "90000"})
            assert response.status_code == status
        assert core.metrics.shed.labels(NAME, "deadline")._value.get() == 1
        assert int(response.headers["retry-after"]) == 60


@pytest.mark.parametrize("length", [None, 2**20])
async def test_bulk_requests_without_a_length_arrive_beside_others(
    tmp_path: Path, length: int | None
) -> None:
    """One of /v1/embeddings reserved all bytes of bulk requests, so one slow sender refused all others."""
    finish = asyncio.Event()

    async def slow(begun: asyncio.Event) -> AsyncIterator[bytes]:
        begun.set()
        await finish.wait()
        yield bytes(length or 1)

    async def other() -> AsyncIterator[bytes]:
        yield b"{}"

    async with serving(tmp_path) as (_, client), asyncio.TaskGroup() as requests:
        for path in PATHS:
            begun = asyncio.Event()
            requests.create_task(client.post(path, content=slow(begun), headers=headers_of(path, length)))
            await begun.wait()
            answer = await client.post(path, content=other(), headers=headers_of(path))
            assert problem_of(answer) == (400, "invalid-request")
        finish.set()
