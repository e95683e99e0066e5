"""Health that tells the truth, on a core of its own with the shipped model."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from service.core import Core
from service.errors import EncoderFailed, NotReady, Overloaded
from service.http.envelope import Envelope
from service.inference.batching import Encode
from service.settings import Settings
from tests.support.pictures import encode, noise

INTERVAL_S = 0.4


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    settings = Settings(data_dir=tmp_path / "index", golden_interval_s=INTERVAL_S, queue_limit=2, threads=2)
    made = Core(settings)
    await made.start()
    yield made
    await asyncio.to_thread(made.close)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (it depends on the clock)
            await asyncio.sleep(0.01)


def status(core: Core, path: str) -> int:
    """What the envelope answers in front of an app that answers anything with 204."""

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return TestClient(Envelope(app, core)).get(path).status_code


def statuses(core: Core) -> dict[str, int]:
    return {path: status(core, path) for path in ("/livez", "/readyz", "/v1/info")}


def hang(core: Core) -> threading.Event:
    """The session waits, until the event is set."""
    gate, right = threading.Event(), core.model().pipeline.batcher._encode

    def hanging(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert gate.wait(60)
        return right(pixels)

    core.model().pipeline.batcher._encode = hanging
    return gate


async def test_a_model_that_goes_wrong_is_noticed_and_refuses_all(core: Core) -> None:
    assert statuses(core) == {"/livez": 204, "/readyz": 204, "/v1/info": 204}
    batcher = core.model().pipeline.batcher
    right = batcher._encode
    batcher._encode = lambda pixels: np.roll(right(pixels), 1, axis=1)
    await until(lambda: not core.serving)
    assert statuses(core) == {"/livez": 204, "/readyz": 503, "/v1/info": 503}
    batcher._encode = right
    await until(lambda: core.ready)


def fails(_: NDArray[np.uint8]) -> NDArray[np.float32]:
    raise EncoderFailed("CUDA error 700")


def gives_nan(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.full((len(pixels), 64), np.nan, dtype=np.float32)


@pytest.mark.parametrize("encode", [fails, gives_nan])
async def test_a_model_that_fails_is_not_ready_and_then_given_up(core: Core, encode: Encode) -> None:
    batcher = core.model().pipeline.batcher
    right, batcher._encode = batcher._encode, encode
    await until(lambda: not core.serving)
    assert not core.model().golden.late
    assert core.alive
    assert statuses(core) == {"/livez": 204, "/readyz": 503, "/v1/info": 503}
    await until(lambda: not core.alive)
    assert statuses(core) == {"/livez": 503, "/readyz": 503, "/v1/info": 503}
    batcher._encode = right
    await until(lambda: core.ready and core.alive)


async def test_a_session_that_hangs_is_late_and_then_given_up(core: Core) -> None:
    gate = hang(core)
    await until(lambda: not core.ready)
    # What waits may still be answered: only new traffic should go elsewhere.
    assert statuses(core) == {"/livez": 204, "/readyz": 503, "/v1/info": 204}
    await until(lambda: not core.alive)
    assert statuses(core) == {"/livez": 503, "/readyz": 503, "/v1/info": 204}
    gate.set()
    await until(lambda: core.ready)
    assert core.alive


async def test_a_full_queue_is_no_illness(core: Core) -> None:
    gate = hang(core)
    waiting = [asyncio.create_task(core.model().pipeline.embed(encode(noise(seed)))) for seed in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await core.model().pipeline.embed(encode(noise(3)))
    assert refused.value.members["limit"] == 2
    assert refused.value.members["retry_after_s"] >= 1
    await until(lambda: core.model().pipeline._in_flight == 3)  # the golden image is behind them all the same
    gate.set()
    await asyncio.gather(*waiting)
    await until(lambda: core.ready)


async def test_a_dead_session_thread_is_noticed(core: Core) -> None:
    core.model().pipeline.batcher.close()
    assert statuses(core) == {"/livez": 503, "/readyz": 503, "/v1/info": 503}
    with pytest.raises(NotReady):
        await core.model().pipeline.embed(encode(noise(1)))


async def test_a_deadline_that_cannot_be_met_is_refused_at_once(core: Core) -> None:
    pipeline, now = core.model().pipeline, asyncio.get_running_loop().time
    gate = hang(core)
    waiting = asyncio.create_task(pipeline.embed(encode(noise(1))))
    await asyncio.sleep(0)
    pipeline.batcher.seconds_per_image = 3.0
    with pytest.raises(Overloaded) as refused:
        await pipeline.embed(encode(noise(2)), now() + 2.9)
    assert refused.value.members == {"retry_after_s": 3}
    pipeline.require_room(now() + 3.5)
    pipeline.require_room()
    assert core.metrics.shed.labels(core.manifest.name, "deadline")._value.get() == 1
    gate.set()
    await waiting
    pipeline.require_room(now() + 0.001)  # nobody is before it


async def test_a_deadline_is_nobody_elses(tmp_path: Path) -> None:
    made = Core(Settings(data_dir=tmp_path / "index", cache_items=9))
    await made.start()
    gate, pipeline = hang(made), made.model().pipeline
    busy = asyncio.create_task(pipeline.embed(encode(noise(1))))
    await until(lambda: pipeline._in_flight == 1)
    pipeline.batcher.seconds_per_image = 100.0
    soon = asyncio.get_running_loop().time() + 50
    same = [asyncio.create_task(pipeline.embed(encode(noise(2)), deadline)) for deadline in (soon, None)]
    await until(lambda: pipeline._in_flight == 2)
    gate.set()
    assert [one.cache for one in await asyncio.gather(busy, *same)] == ["miss", "miss", "coalesced"]
    await asyncio.to_thread(made.close)


@pytest.mark.parametrize("cache_items", [0, 9])
async def test_a_fetched_image_keeps_its_place(tmp_path: Path, cache_items: int) -> None:
    made = Core(Settings(data_dir=tmp_path / "index", queue_limit=1, cache_items=cache_items))
    await made.start()
    gate, fetched, pipeline = hang(made), asyncio.Event(), made.model().pipeline

    async def fetch() -> bytes:
        await fetched.wait()
        return encode(noise(1))

    first = asyncio.create_task(pipeline.embed_fetched(fetch))
    await until(lambda: pipeline._in_flight == 1)
    fetched.set()
    for _ in range(20):
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):  # who asks at every turn of the loop gets no place before it is done
            pipeline.require_room()
    gate.set()
    await first
    assert pipeline._in_flight == 0
    await asyncio.to_thread(made.close)


async def test_pictures_wait_for_their_pixels_and_the_golden_one_does_not(core: Core) -> None:
    assert core.model().pipeline._pixels.take(10**12)
    waiting = asyncio.create_task(core.model().pipeline.embed(encode(noise(1))))
    assert core.model().golden
    await core.model().golden.check()  # in the other decode thread
    assert not waiting.done()
    core.model().pipeline._pixels.give(10**12)
    await waiting
