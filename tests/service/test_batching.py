"""What the batcher puts together, and that each of a batch gets its own or its own error."""

import asyncio
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import EncoderFailed, NotReady, ServiceError, UndecodableImage
from service.inference.batching import Batcher, Capacity, Encoded, Watch
from tests.support.batcher import (
    BAD,
    BROKEN,
    BUG,
    Gate,
    batching,
    decode,
    embed,
    first_pixel,
    submit_behind,
    until,
)


async def test_a_lone_image_does_not_wait() -> None:
    with batching(first_pixel) as (batcher, sizes):
        waits_ms = []
        for _ in range(20):
            encoded = await embed(batcher, 7)
            assert encoded.embedding.tolist() == [7]
            waits_ms.append(encoded.queue_ms)
        # A batching window, were there one, would be in every wait; a busy machine is not.
        assert min(waits_ms) < 1
        assert sizes == [1] * 20


async def test_what_waits_goes_together_up_to_the_limit_in_order() -> None:
    gate = Gate()
    with batching(gate) as (batcher, sizes):
        tasks = await submit_behind(gate, batcher, list(range(1, 8)))
        for _ in range(3):
            gate.open.release()
        results = await asyncio.gather(*tasks)
        assert [result.embedding.tolist() for result in results] == [[value] for value in range(1, 8)]
        assert sizes == [1, 4, 2]


async def test_an_embedding_holds_nothing_of_its_batch() -> None:
    gate = Gate()
    with batching(gate) as (batcher, sizes):
        tasks = await submit_behind(gate, batcher, [1, 2, 3])
        gate.open.release(2)
        results = await asyncio.gather(*tasks)
        assert sizes == [1, 2]
        assert [result.embedding.base for result in results] == [None] * 3


async def test_one_bad_image_fails_alone() -> None:
    gate = Gate()
    with batching(gate) as (batcher, _):
        tasks = await submit_behind(gate, batcher, [1, 2, BAD, 4])
        for _ in range(6):  # the first, the batch, its halves, and the halves of the one that failed
            gate.open.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [r.embedding.tolist() if isinstance(r, Encoded) else type(r) for r in results] == [
            [1],
            [2],
            EncoderFailed,
            [4],
        ]


async def test_an_image_whose_client_has_gone_is_left_out() -> None:
    gate = Gate()
    with batching(gate) as (batcher, sizes):
        tasks = await submit_behind(gate, batcher, [1, 2, 3])
        tasks[1].cancel()
        await asyncio.gather(tasks[1], return_exceptions=True)
        gate.open.release()
        gate.open.release()
        assert (await tasks[2]).embedding.tolist() == [3]
        assert sizes == [1, 1]


async def test_what_is_left_out_is_told_with_its_reason() -> None:
    gate = Gate()
    dropped: list[tuple[str, str]] = []
    batcher = Batcher(
        gate, Capacity(1, 1, 4), Watch(lambda _: None, lambda stage, why: dropped.append((stage, why)))
    )
    first = asyncio.create_task(embed(batcher, 1))
    await asyncio.to_thread(gate.entered.acquire)
    ends = time.monotonic() + 0.1
    late, early, unbound = (
        asyncio.create_task(batcher.submit(b"\2", decode, deadline=deadline))
        for deadline in (ends, ends, None)
    )
    await until(lambda: batcher.depth == 3)
    early.cancel()
    unbound.cancel()
    await asyncio.wait([early, unbound])
    await asyncio.sleep(ends - time.monotonic() + 0.01)
    late.cancel()
    gate.open.release()
    await first
    await until(lambda: batcher.depth == 0)
    batcher.close()
    assert dropped == [("decode", "deadline"), ("decode", "gone"), ("decode", "gone")]


async def test_cancelling_inside_the_session_harms_nobody() -> None:
    gate = Gate()
    with batching(gate) as (batcher, _):
        tasks = await submit_behind(gate, batcher, [1, 2])
        tasks[0].cancel()
        gate.open.release()
        gate.open.release()
        assert (await tasks[1]).embedding.tolist() == [2]
        assert tasks[0].cancelled()


async def test_an_embedding_that_is_not_finite_fails_alone() -> None:
    def nan_for_bad(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        values = pixels[:, 0, 0, :1].astype(np.float32)
        values[values == BAD] = np.nan
        return values

    gate = Gate(nan_for_bad)
    with batching(gate) as (batcher, _):
        tasks = await submit_behind(gate, batcher, [1, BAD, 3])
        gate.open.release()
        gate.open.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[1], EncoderFailed)
        assert isinstance(results[2], Encoded)


async def test_the_thread_outlives_a_bug_in_the_encoder() -> None:
    def bug(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if pixels[0, 0, 0, 0] == BAD:
            raise ZeroDivisionError
        return first_pixel(pixels)

    with batching(bug) as (batcher, _):
        with pytest.raises(EncoderFailed, match="ZeroDivisionError"):
            await embed(batcher, BAD)
        assert batcher.alive
        assert (await embed(batcher, 1)).embedding.tolist() == [1]


async def test_closing_finishes_what_waits_and_then_refuses() -> None:
    gate = Gate()
    batcher = Batcher(gate, Capacity(1, 1, 4), Watch(lambda _: None, lambda _, __: None))
    tasks = await submit_behind(gate, batcher, [1, 2])
    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    gate.open.release()
    gate.open.release()
    assert [result.embedding.tolist() for result in await asyncio.gather(*tasks)] == [[1], [2]]
    await closing
    assert not batcher.alive
    with pytest.raises(NotReady):
        await embed(batcher, 3)


async def test_many_clients_each_get_their_own() -> None:
    with batching(first_pixel, max_batch=16) as (batcher, sizes):
        values = [value for value in range(250) if value != BAD]
        results = await asyncio.gather(*(embed(batcher, value) for value in values))
        assert [result.embedding.tolist() for result in results] == [[value] for value in values]
        assert sum(sizes) == len(values)
        assert max(sizes) <= 16


async def test_one_that_goes_alone_shares_no_batch_and_loses_no_turn() -> None:
    gate = Gate()
    with batching(gate) as (batcher, sizes):
        tasks = await submit_behind(gate, batcher, [1, 2])
        tasks.append(asyncio.create_task(embed(batcher, 3, alone=True)))
        await until(lambda: batcher.depth == 2)
        tasks.append(asyncio.create_task(embed(batcher, 4)))
        await until(lambda: batcher.depth == 3)
        gate.open.release(4)
        encoded = await asyncio.gather(*tasks)
    assert [float(one.embedding[0]) for one in encoded] == [1, 2, 3, 4]
    assert sizes == [1, 1, 1, 1]


async def test_a_batch_without_the_memory_for_it_is_halved() -> None:
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


async def test_a_broken_image_fails_alone_and_the_thread_outlives_a_bug_in_the_decoder() -> None:
    gate = Gate()
    with batching(gate) as (batcher, sizes):
        tasks = await submit_behind(gate, batcher, [1, 2, BROKEN, BUG, 5])
        gate.open.release(2)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in results] == [
            Encoded,
            Encoded,
            UndecodableImage,
            ServiceError,
            Encoded,
        ]
        assert str(results[3]) == "decoding failed: ZeroDivisionError"
        assert sizes == [1, 2]
