"""The batcher: batch composition, and the result or error of each image in a batch."""

import asyncio
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import EncoderFailed, NotReady, ServiceError, UndecodableImage
from service.inference.work import Embedded
from tests.support.batcher import (
    BAD,
    BROKEN,
    BUG,
    Gate,
    ManualClock,
    batching,
    embed,
    first_pixel,
    read_header,
    submit_behind,
    until,
)


async def test_a_single_image_does_not_wait_for_a_batch() -> None:
    with batching(first_pixel, clock=time.monotonic) as (batcher, sizes):
        async with asyncio.timeout(60):  # a batching window would delay every image, a busy machine does not
            embedded = await embed(batcher, 7)
            while embedded.stages_ms["queue"] >= 1:
                embedded = await embed(batcher, 7)
        assert embedded.embedding.tolist() == [7]
        assert set(sizes) == {1}


async def test_waiting_images_are_batched_in_order_up_to_the_limit() -> None:
    gate = Gate()
    with batching(gate) as (batcher, sizes):
        tasks = await submit_behind(gate, batcher, list(range(1, 8)))
        gate.open.release(3)
        results = await asyncio.gather(*tasks)
        assert [result.embedding.tolist() for result in results] == [[value] for value in range(1, 8)]
        assert sizes == [1, 4, 2]


async def test_an_embedding_does_not_keep_its_batch_in_memory() -> None:
    gate = Gate()
    with batching(gate) as (batcher, sizes):
        tasks = await submit_behind(gate, batcher, [1, 2, 3])
        gate.open.release(2)
        results = await asyncio.gather(*tasks)
        assert sizes == [1, 2]
        assert [result.embedding.base for result in results] == [None] * 3


async def test_only_the_faulty_image_of_a_batch_fails() -> None:
    gate = Gate()
    with batching(gate) as (batcher, _):
        tasks = await submit_behind(gate, batcher, [1, 2, BAD, 4])
        gate.open.release(6)  # the first image, the batch, its halves, and the failed half's halves
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [r.embedding.tolist() if isinstance(r, Embedded) else type(r) for r in results] == [
            [1],
            [2],
            EncoderFailed,
            [4],
        ]


async def test_a_cancelled_image_is_skipped() -> None:
    gate = Gate()
    with batching(gate) as (batcher, sizes):
        tasks = await submit_behind(gate, batcher, [1, 2, 3])
        tasks[1].cancel()
        await asyncio.gather(tasks[1], return_exceptions=True)
        gate.open.release(2)
        assert (await tasks[2]).embedding.tolist() == [3]
        assert sizes == [1, 1]


async def test_dropped_images_are_reported_with_their_reason() -> None:
    gate, clock = Gate(), ManualClock()
    dropped: list[tuple[str, str]] = []
    with batching(gate, dropped=lambda *drop: dropped.append(drop), clock=clock) as (batcher, _):
        first = asyncio.create_task(embed(batcher, 1))
        await asyncio.to_thread(gate.entered.acquire)
        late, early, unbounded = (
            asyncio.create_task(batcher.submit(b"\2", read_header, deadline=deadline))
            for deadline in (10.0, 10.0, None)
        )
        await until(lambda: batcher.waiting == 3)
        early.cancel()
        unbounded.cancel()
        await asyncio.wait([early, unbounded])
        clock.now_s = 10.0
        late.cancel()
        gate.open.release()
        await first
        await until(lambda: len(dropped) == 3)
    assert dropped == [("decode", "deadline"), ("decode", "gone"), ("decode", "gone")]


async def test_cancelling_during_inference_does_not_affect_other_images() -> None:
    gate = Gate()
    with batching(gate) as (batcher, _):
        tasks = await submit_behind(gate, batcher, [1, 2])
        tasks[0].cancel()
        gate.open.release(2)
        assert (await tasks[1]).embedding.tolist() == [2]
        assert tasks[0].cancelled()


async def test_only_an_embedding_that_is_not_finite_fails() -> None:
    def nan_for_bad(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        values = pixels[:, 0, 0, :1].astype(np.float32)
        values[values == BAD] = np.nan
        return values

    gate = Gate(nan_for_bad)
    with batching(gate) as (batcher, _):
        tasks = await submit_behind(gate, batcher, [1, BAD, 3])
        gate.open.release(2)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[1], EncoderFailed)
        assert isinstance(results[2], Embedded)


async def test_the_thread_survives_a_bug_in_the_encoder() -> None:
    def bug(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if pixels[0, 0, 0, 0] == BAD:
            raise ZeroDivisionError
        return first_pixel(pixels)

    with batching(bug) as (batcher, _):
        with pytest.raises(EncoderFailed, match="ZeroDivisionError"):
            await embed(batcher, BAD)
        assert batcher.alive
        assert (await embed(batcher, 1)).embedding.tolist() == [1]


async def test_close_finishes_waiting_images_and_refuses_new_ones() -> None:
    gate = Gate()
    with batching(gate) as (batcher, _):
        tasks = await submit_behind(gate, batcher, [1, 2])
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        gate.open.release(2)
        assert [result.embedding.tolist() for result in await asyncio.gather(*tasks)] == [[1], [2]]
        await closing
        assert not batcher.alive
        with pytest.raises(NotReady):
            await embed(batcher, 3)


async def test_each_of_many_clients_gets_its_embedding() -> None:
    with batching(first_pixel, max_batch=16) as (batcher, sizes):
        values = [value for value in range(250) if value != BAD]
        results = await asyncio.gather(*(embed(batcher, value) for value in values))
        assert [result.embedding.tolist() for result in results] == [[value] for value in values]
        assert sum(sizes) == len(values)
        assert max(sizes) <= 16


async def test_an_image_submitted_alone_shares_no_batch_and_keeps_its_position() -> None:
    gate = Gate()
    with batching(gate) as (batcher, sizes):
        tasks = await submit_behind(gate, batcher, [1, 2])
        tasks.append(asyncio.create_task(embed(batcher, 3, alone=True)))
        await until(lambda: batcher.waiting == 2)
        tasks.append(asyncio.create_task(embed(batcher, 4)))
        await until(lambda: batcher.waiting == 3)
        gate.open.release(4)
        embedded = await asyncio.gather(*tasks)
    assert [float(result.embedding[0]) for result in embedded] == [1, 2, 3, 4]
    assert sizes == [1, 1, 1, 1]


async def test_a_batch_too_large_for_the_memory_is_halved() -> None:
    def two_at_most(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(pixels) > 2:
            raise EncoderFailed("out of memory")
        return first_pixel(pixels)

    gate = Gate(two_at_most)
    with batching(gate) as (batcher, sizes):
        tasks = await submit_behind(gate, batcher, [1, 2, 3, 4, 5])
        gate.open.release(4)
        results = await asyncio.gather(*tasks)
        assert [result.embedding.tolist() for result in results] == [[1], [2], [3], [4], [5]]
        assert sizes == [1, 2, 2]


async def test_only_a_broken_image_fails_and_the_thread_survives_a_bug_in_the_decoder() -> None:
    gate = Gate()
    with batching(gate) as (batcher, sizes):
        tasks = await submit_behind(gate, batcher, [1, 2, BROKEN, BUG, 5])
        gate.open.release(2)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [
            Embedded,
            Embedded,
            UndecodableImage,
            ServiceError,
            Embedded,
        ]
        assert str(results[3]) == "decoding failed: ZeroDivisionError"
        assert sizes == [1, 2]
