"""Health by the golden image, on a separate core with the shipped model."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from service.core import Core
from service.errors import EncoderFailed, NotReady, Overloaded
from service.http.envelope import Envelope
from service.inference.batching import Encode
from service.inference.encoder import Encoder
from service.settings import Settings
from tests.support.images import encode, noise

INTERVAL_S = 0.4


class FaultyEncoder(Encoder):
    """The shipped model, until a test replaces `infer`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.infer: Encode = super().encode

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.infer(pixels)


@asynccontextmanager
async def started(data_dir: Path, **settings: Any) -> AsyncIterator[Core]:
    core = Core(Settings(data_dir=data_dir, **settings), FaultyEncoder)
    await core.start()
    yield core
    await core.close()


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with started(tmp_path, golden_interval_s=INTERVAL_S, queue_limit=2, threads=2) as core:
        yield core


def encoder_of(core: Core) -> FaultyEncoder:
    encoder = core.model().encoder
    assert isinstance(encoder, FaultyEncoder)
    return encoder


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (it depends on the clock)
            await asyncio.sleep(0.01)


def status(core: Core, path: str) -> int:
    """The envelope's status in front of an app that answers every request with 204."""

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return TestClient(Envelope(app, core), "http://localhost").get(path).status_code


def statuses(core: Core) -> dict[str, int]:
    return {path: status(core, path) for path in ("/livez", "/readyz", "/v1/info")}


def hang(core: Core) -> threading.Event:
    """Block every inference until the returned event is set."""
    gate, encoder = threading.Event(), encoder_of(core)
    infer = encoder.infer

    def hanging(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert gate.wait(60)
        return infer(pixels)

    encoder.infer = hanging
    return gate


async def test_an_unexpected_error_outside_fastapi_is_a_problem(
    core: Core, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(*_: object) -> None:
        raise RuntimeError("a fault")

    response = TestClient(Envelope(app, core), "http://localhost").get(
        "/v1/info", headers={"X-Request-Id": "r1"}
    )
    assert (response.status_code, response.json()["type"]) == (500, "internal-error")
    assert response.headers["X-Request-Id"] == "r1"
    assert "request r1 failed" in caplog.text
    assert "a fault" not in response.text


async def test_wrong_embeddings_make_the_service_refuse_all_requests(core: Core) -> None:
    assert statuses(core) == {"/livez": 204, "/readyz": 204, "/v1/info": 204}
    encoder = encoder_of(core)
    infer = encoder.infer
    encoder.infer = lambda pixels: np.roll(infer(pixels), 1, axis=1)
    await until(lambda: not core.serving)
    assert statuses(core) == {"/livez": 204, "/readyz": 503, "/v1/info": 503}
    encoder.infer = infer
    await until(lambda: core.ready)


def fails(_: NDArray[np.uint8]) -> NDArray[np.float32]:
    raise EncoderFailed("CUDA error 700")


def returns_nan(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.full((len(pixels), 64), np.nan, dtype=np.float32)


@pytest.mark.parametrize("infer", [fails, returns_nan])
async def test_failing_inference_is_first_not_ready_and_then_not_alive(core: Core, infer: Encode) -> None:
    encoder = encoder_of(core)
    working, encoder.infer = encoder.infer, infer
    await until(lambda: not core.serving)
    assert not core.model().golden.overdue
    assert core.alive
    assert statuses(core) == {"/livez": 204, "/readyz": 503, "/v1/info": 503}
    await until(lambda: not core.alive)
    assert statuses(core) == {"/livez": 503, "/readyz": 503, "/v1/info": 503}
    encoder.infer = working
    await until(lambda: core.ready and core.alive)


async def test_hanging_inference_is_first_overdue_and_then_not_alive(core: Core) -> None:
    gate = hang(core)
    await until(lambda: not core.ready)
    # Queued requests may still succeed: only new traffic should be routed elsewhere.
    assert statuses(core) == {"/livez": 204, "/readyz": 503, "/v1/info": 204}
    await until(lambda: not core.alive)
    assert statuses(core) == {"/livez": 503, "/readyz": 503, "/v1/info": 204}
    gate.set()
    await until(lambda: core.ready)
    assert core.alive


async def test_a_full_queue_does_not_make_the_service_unhealthy(core: Core) -> None:
    gate, pipeline = hang(core), core.model().pipeline
    waiting = [asyncio.create_task(pipeline.embed(encode(noise(seed)))) for seed in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await pipeline.embed(encode(noise(3)))
    assert refused.value.members["limit"] == 2
    assert refused.value.members["retry_after_s"] >= 1
    await until(lambda: pipeline.in_flight == 3)  # the golden image is queued all the same
    gate.set()
    await asyncio.gather(*waiting)
    await until(lambda: core.ready)


async def test_a_dead_thread_is_noticed(core: Core) -> None:
    core.model().pipeline.batcher.close()
    assert statuses(core) == {"/livez": 503, "/readyz": 503, "/v1/info": 503}
    with pytest.raises(NotReady):
        await core.model().pipeline.embed(encode(noise(1)))


async def test_a_deadline_that_cannot_be_met_is_refused_immediately(core: Core) -> None:
    pipeline, now = core.model().pipeline, asyncio.get_running_loop().time
    gate = hang(core)
    waiting = asyncio.create_task(pipeline.embed(encode(noise(1))))
    await asyncio.sleep(0)
    pipeline.batcher.seconds_per_image = 3.0
    with pytest.raises(Overloaded) as refused:
        await pipeline.embed(encode(noise(2)), now() + 2.9)
    assert refused.value.members == {"retry_after_s": 3}
    pipeline.check_capacity(now() + 3.5)
    pipeline.check_capacity()
    assert core.metrics.shed.labels(core.manifest.name, "deadline")._value.get() == 1
    gate.set()
    await waiting
    pipeline.check_capacity(now() + 0.001)  # the queue is empty


async def test_a_coalesced_image_is_not_refused_for_another_requests_deadline(tmp_path: Path) -> None:
    async with started(tmp_path, cache_items=9) as core:
        gate, pipeline = hang(core), core.model().pipeline
        busy = asyncio.create_task(pipeline.embed(encode(noise(1))))
        await until(lambda: pipeline.in_flight == 1)
        pipeline.batcher.seconds_per_image = 100.0
        soon = asyncio.get_running_loop().time() + 50
        same = [asyncio.create_task(pipeline.embed(encode(noise(2)), deadline)) for deadline in (soon, None)]
        await until(lambda: pipeline.in_flight == 2)
        gate.set()
        results = await asyncio.gather(busy, *same)
        assert [embedded.cache for embedded in results] == ["miss", "miss", "coalesced"]


@pytest.mark.parametrize("cache_items", [0, 9])
async def test_a_fetched_image_keeps_its_slot_until_it_is_embedded(tmp_path: Path, cache_items: int) -> None:
    async with started(tmp_path, queue_limit=1, cache_items=cache_items) as core:
        gate, fetched, pipeline = hang(core), asyncio.Event(), core.model().pipeline

        async def fetch() -> bytes:
            await fetched.wait()
            return encode(noise(1))

        first = asyncio.create_task(pipeline.embed_fetched(fetch))
        await until(lambda: pipeline.in_flight == 1)
        fetched.set()
        for _ in range(20):  # at every turn of the event loop
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                pipeline.check_capacity()
        gate.set()
        await first
        assert pipeline.in_flight == 0


async def test_a_cancelled_fetch_keeps_the_slot_of_an_inference_that_others_wait_for(tmp_path: Path) -> None:
    async with started(tmp_path, cache_items=9) as core:
        gate, pipeline = hang(core), core.model().pipeline
        image = encode(noise(1))

        async def fetch() -> bytes:
            return image

        fetching = asyncio.create_task(pipeline.embed_fetched(fetch))
        await until(lambda: pipeline.batcher.waiting == 0 and pipeline.in_flight == 1)
        waiting = asyncio.create_task(pipeline.embed(image))
        await asyncio.sleep(0)
        fetching.cancel()
        await asyncio.wait([fetching])
        assert pipeline.in_flight == 1  # the inference that `waiting` shares
        gate.set()
        assert (await waiting).cache == "coalesced"
        assert pipeline.in_flight == 0


async def test_the_golden_image_does_not_wait_for_the_pixel_budget(core: Core) -> None:
    assert core.pixels.acquire(10**12)
    waiting = asyncio.create_task(core.model().pipeline.embed(encode(noise(1))))
    await core.model().golden.check()  # in the other decode thread
    assert not waiting.done()
    core.pixels.release(10**12)
    await waiting
