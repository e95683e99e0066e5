"""The batcher's threads: lanes that infer side by side, and decoding beside them."""

import asyncio
import contextlib
import threading

import numpy as np
from numpy.typing import NDArray

from service.errors import UndecodableImage
from tests.support.batcher import BROKEN, Gate, batching, decode, embed, first_pixel


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
