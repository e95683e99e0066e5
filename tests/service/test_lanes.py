"""The batcher's threads: concurrent inferences, and decoding during inference."""

import asyncio
import contextlib
import threading
import time

from service.errors import UndecodableImage
from service.inference.work import Decode
from tests.support.batcher import BROKEN, Gate, ManualClock, batching, embed, first_pixel, read_header


async def test_inferences_run_concurrently_and_a_stalled_one_is_detected() -> None:
    gate, clock = Gate(), ManualClock()
    with batching(gate, threads=2, lanes=2, clock=clock) as (batcher, _):
        tasks = {asyncio.create_task(embed(batcher, value)) for value in (1, 2)}
        for _ in tasks:  # both inferences started, neither finished
            await asyncio.to_thread(gate.entered.acquire)
        clock.now_s = 1.0
        gate.open.release()
        done, stalled = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        clock.now_s = 5.0
        assert batcher.stalled_s == 5  # since the start of the inference that has not finished
        gate.open.release()
        await asyncio.wait(stalled)
        assert batcher.stalled_s == 0


async def test_images_are_decoded_while_an_inference_runs() -> None:
    gate, decoded = Gate(), threading.Semaphore(0)

    def counting(data: bytes) -> tuple[int, Decode]:
        decoded.release()
        return read_header(data)

    with batching(gate, threads=2) as (batcher, sizes):
        tasks = [asyncio.create_task(batcher.submit(bytes([value]), counting)) for value in range(1, 7)]
        for _ in tasks:
            await asyncio.to_thread(decoded.acquire)
        gate.open.release(len(tasks))
        results = await asyncio.gather(*tasks)
        assert [result.embedding.tolist() for result in results] == [[value] for value in range(1, 7)]
        assert sum(sizes) == 6
        assert len(sizes) < 6


async def test_endless_broken_images_do_not_starve_valid_ones() -> None:
    with batching(first_pixel, threads=2, lanes=2, clock=time.monotonic) as (batcher, _):
        stop = asyncio.Event()

        async def flood() -> None:
            while not stop.is_set():
                with contextlib.suppress(UndecodableImage):
                    await embed(batcher, BROKEN)

        floods = [asyncio.create_task(flood()) for _ in range(12)]
        async with asyncio.timeout(60):
            for value in range(1, 9):
                assert (await embed(batcher, value, alone=value % 2 == 0)).embedding.tolist() == [value]
        stop.set()
        await asyncio.gather(*floods)
