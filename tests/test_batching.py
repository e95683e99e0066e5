"""The batcher, with an encoder that can be checked by hand: the embedding is the first pixel."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from service.batching import Batcher, Capacity, Encode, Encoded, Watch
from service.errors import EncoderFailed, NotReady, ServiceError, UndecodableImage

BAD = 13
BROKEN, BUG = 250, 251  # of these the decoder fails


def decode(data: bytes) -> NDArray[np.uint8]:
    if data[0] == BROKEN:
        raise UndecodableImage("broken")
    if data[0] == BUG:
        raise ZeroDivisionError
    return np.full((2, 2, 3), data[0], dtype=np.uint8)


async def embed(batcher: Batcher, value: int, alone: bool = False) -> Encoded:
    return await batcher.submit(bytes([value]), decode, alone)


def first_pixel(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    if (pixels[:, 0, 0, 0] == BAD).any():
        raise EncoderFailed("a bad picture was in the batch")
    return pixels[:, 0, 0, :1].astype(np.float32)


class Gate:
    """An encoder that waits to be let through, and so lets a test decide what waits behind it."""

    def __init__(self, encode: Encode = first_pixel) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Semaphore(0)
        self._encode = encode

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.entered.release()
        assert self.open.acquire(timeout=20)
        return self._encode(pixels)


@contextmanager
def batching(
    encode: Encode, max_batch: int = 4, threads: int = 1, lanes: int = 1
) -> Iterator[tuple[Batcher, list[int]]]:
    sizes: list[int] = []
    batcher = Batcher(
        encode, Capacity(threads, lanes, max_batch), Watch(sizes.append, lambda: None, lambda: None)
    )
    try:
        yield batcher, sizes
    finally:
        batcher.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (the other side is a thread)
            await asyncio.sleep(0.001)


async def submit_behind(gate: Gate, batcher: Batcher, values: list[int]) -> list[asyncio.Task[Encoded]]:
    """The first picture is in the session, the others wait."""
    tasks = [asyncio.create_task(embed(batcher, values[0]))]
    await asyncio.to_thread(gate.entered.acquire)
    tasks += [asyncio.create_task(embed(batcher, value)) for value in values[1:]]
    await until(lambda: batcher.depth == len(values) - 1)
    return tasks


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
    batcher = Batcher(gate, Capacity(1, 1, 4), Watch(lambda _: None, lambda: None, lambda: None))
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


async def test_lanes_run_side_by_side_and_one_that_hangs_is_seen() -> None:
    gate = Gate()
    with batching(gate, threads=2, lanes=2) as (batcher, _):
        first, second = (asyncio.create_task(embed(batcher, value)) for value in (1, 2))
        for _ in range(2):  # both are in, and none is out
            await asyncio.to_thread(gate.entered.acquire)
        gate.open.release()
        done, [hangs] = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        await asyncio.sleep(0.05)
        gate.open.release()
        silence_s = batcher.silence_s
        await hangs
        assert silence_s > 0.05
        assert batcher.silence_s < silence_s


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


async def test_the_next_are_decoded_while_the_only_lane_is_taken() -> None:
    gate, decoded = Gate(), threading.Semaphore(0)

    def noted(data: bytes) -> NDArray[np.uint8]:
        decoded.release()
        return decode(data)

    with batching(gate, threads=2) as (batcher, sizes):
        tasks = [asyncio.create_task(batcher.submit(bytes([value]), noted)) for value in range(1, 7)]
        for _ in tasks:
            await asyncio.to_thread(decoded.acquire)
        gate.open.release(len(tasks))
        results = await asyncio.gather(*tasks)
        assert [result.embedding.tolist() for result in results] == [[value] for value in range(1, 7)]
        assert sum(sizes) == 6
        assert len(sizes) < 6


async def test_broken_images_without_end_keep_no_good_one_waiting() -> None:
    with batching(first_pixel, threads=2, lanes=2) as (batcher, _):
        over = asyncio.Event()

        async def flood() -> None:
            while not over.is_set():
                with contextlib.suppress(UndecodableImage):
                    await embed(batcher, BROKEN)

        floods = [asyncio.create_task(flood()) for _ in range(12)]
        async with asyncio.timeout(20):
            for value in range(1, 9):
                assert (await embed(batcher, value, alone=value % 2 == 0)).embedding.tolist() == [value]
        over.set()
        await asyncio.gather(*floods)
