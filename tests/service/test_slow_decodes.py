"""Decoded images behind slow decodes, and images that wait for the pixel budget, with a clock in steps."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import ServiceError
from service.inference.batching import Batcher, DropReason, Stage
from service.inference.budget import Budget
from service.inference.work import Decode, Embedded, ReadHeader
from tests.support.batcher import Gate, SteppedClock, batching, decode, first_pixel, until

SLOW = bytes([9]) * 1000


class Simulation:
    """A batcher whose images take as many ms to decode as they have bytes, and whose inferences are equal."""

    def __init__(self, infer_s: float) -> None:
        self.clock = SteppedClock()
        self.started: list[tuple[float, int]] = []  # inferences: time, number of images
        self.ended: list[float] = []
        self._infer_s = infer_s
        self._tasks: list[asyncio.Task[Embedded]] = []

    def read_header(self, data: bytes) -> tuple[int, Decode]:
        def decode_slowly() -> NDArray[np.uint8]:
            self.clock.sleep(len(data) / 1e3)
            return decode(data)

        return 1, decode_slowly

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.started.append((self.clock.now_s, len(pixels)))
        self.clock.sleep(self._infer_s)
        self.ended.append(self.clock.now_s)  # the clock stands until this thread sleeps again
        return first_pixel(pixels)

    @contextmanager
    def batching(self, max_batch: int = 16) -> Iterator[Batcher]:
        with batching(self.encode, max_batch, threads=2, lanes=2, clock=self.clock) as (batcher, _):
            self.batcher = batcher
            try:
                yield batcher
            finally:
                self.clock.stop()

    async def warm_up(self, data: bytes) -> None:
        """Embed an image, so that the times are measured."""
        task = self.submit(data)
        for _ in ("decode", "infer"):
            await asyncio.to_thread(self.clock.step, 1)
        await task
        self.started.clear()
        self.ended.clear()

    def submit(self, data: bytes, deadline: float | None = None) -> asyncio.Task[Embedded]:
        task = asyncio.create_task(self.batcher.submit(data, self.read_header, deadline=deadline))
        self._tasks.append(task)
        return task

    async def step_until(self, done: Callable[[], bool]) -> None:
        while not done():
            await asyncio.to_thread(self.clock.step, 2)
            await asyncio.sleep(0)

    async def stop(self) -> None:
        self.clock.stop()
        await asyncio.gather(*self._tasks)


async def test_with_slow_decodes_the_first_answers_follow_the_first_decodes() -> None:
    simulation = Simulation(infer_s=0.005)
    with simulation.batching():
        await simulation.warm_up(bytes([1]) * 100)
        start = simulation.clock.now_s
        tasks = [simulation.submit(bytes([1]) * 100) for _ in range(40)]
        await until(lambda: simulation.batcher.waiting == 38)
        await simulation.step_until(tasks[0].done)
        assert simulation.ended[0] - start <= 0.3  # of 2.0 s for all decodes
        assert sum(task.done() for task in tasks) <= 4
        await simulation.stop()


async def test_an_inference_with_a_large_fixed_time_waits_for_more_images() -> None:
    simulation = Simulation(infer_s=0.05)
    with simulation.batching():
        await simulation.warm_up(bytes([1]) * 10)
        for _ in range(40):
            simulation.submit(bytes([1]) * 10)
        await until(lambda: simulation.batcher.waiting == 38)
        await simulation.step_until(lambda: bool(simulation.started))
        assert simulation.started[0][1] >= 8
        await simulation.stop()


async def test_a_batch_starts_early_to_meet_a_deadline() -> None:
    simulation = Simulation(infer_s=0.05)
    with simulation.batching():
        await simulation.warm_up(bytes([1]) * 10)
        start = simulation.clock.now_s
        urgent = simulation.submit(bytes([1]) * 10, deadline=start + 0.075)
        for _ in range(39):
            simulation.submit(bytes([1]) * 10)
        await until(lambda: simulation.batcher.waiting == 38)
        await simulation.step_until(urgent.done)
        assert simulation.started[0][1] < 8
        assert simulation.ended[0] <= start + 0.075
        await simulation.stop()


async def test_slow_decodes_do_not_hold_back_the_decoded_images_of_other_clients() -> None:
    simulation = Simulation(infer_s=0.005)
    with simulation.batching():
        for data in (bytes([1]) * 5, SLOW):
            await simulation.warm_up(data)
        start = simulation.clock.now_s
        small = simulation.submit(bytes([1]) * 5)
        for _ in range(6):
            simulation.submit(SLOW)
        await until(lambda: simulation.batcher.waiting == 5)
        await simulation.step_until(small.done)
        assert simulation.ended[0] - start < 0.1
        await simulation.stop()


class Sized:
    """Images whose first byte is their number of pixels; those of the held sizes decode when released."""

    def __init__(self) -> None:
        self.decoding: list[int] = []
        self._gates = {size: threading.Event() for size in range(256)}

    def read_header(self, data: bytes) -> tuple[int, Decode]:
        def wait_and_decode() -> NDArray[np.uint8]:
            self.decoding.append(data[0])
            assert self._gates[data[0]].wait(60)
            return decode(data)

        return data[0], wait_and_decode

    def release(self, *sizes: int) -> None:
        for size in sizes:
            self._gates[size].set()


def submit(
    batcher: Batcher, read_header: ReadHeader, px: int, alone: bool = False, deadline: float | None = None
) -> asyncio.Task[Embedded]:
    return asyncio.create_task(batcher.submit(bytes([px]), read_header, alone, deadline))


async def test_threads_infer_while_images_wait_for_the_budget() -> None:
    images, gate, budget = Sized(), Gate(), Budget(100)
    images.release(1, 60)
    with batching(gate, threads=2, lanes=1, pixels=budget) as (batcher, sizes):
        first = submit(batcher, images.read_header, 1)
        await asyncio.to_thread(gate.entered.acquire)
        second = submit(batcher, images.read_header, 1)
        await until(lambda: images.decoding == [1, 1])
        assert budget.acquire(90)  # by another model
        large = [submit(batcher, images.read_header, 60) for _ in range(4)]
        golden = submit(batcher, images.read_header, 90, alone=True)
        images.release(90)
        gate.open.release(3)
        await asyncio.gather(first, second, golden)  # a golden image needs no budget
        assert images.decoding == [1, 1, 90]
        assert batcher.waiting == 4
        budget.release(90)
        gate.open.release(4)
        await asyncio.gather(*large)
        assert sum(sizes) == 7
    assert budget.fits(100)


async def test_small_images_do_not_starve_a_large_one_of_another_model() -> None:
    images, budget = Sized(), Budget(100)
    images.release(*range(20, 50), 240)
    with (
        batching(first_pixel, threads=2, pixels=budget) as (small_model, _),
        batching(first_pixel, threads=2, pixels=budget) as (large_model, _),
    ):
        held = submit(small_model, images.read_header, 60)
        await until(lambda: images.decoding == [60])
        large = submit(large_model, images.read_header, 240)  # above the limit: alone
        await until(lambda: not budget.fits(1))
        small = [submit(small_model, images.read_header, size) for size in range(20, 50)]
        await until(lambda: small_model.waiting == 30)
        assert images.decoding == [60]  # although the small ones would fit
        images.release(60)
        await asyncio.gather(held, large, *small)
        assert images.decoding[:2] == [60, 240]
    assert budget.fits(100)


async def test_images_that_wait_for_the_budget_are_dropped_and_counted() -> None:
    images, budget, dropped = Sized(), Budget(100), list[tuple[Stage, DropReason]]()
    images.release(30)
    assert budget.acquire(60)
    with batching(first_pixel, threads=2, dropped=lambda *drop: dropped.append(drop), pixels=budget) as (
        batcher,
        _,
    ):
        expired = submit(batcher, images.read_header, 90, deadline=-1.0)
        await until(lambda: not budget.fits(1))
        gone = submit(batcher, images.read_header, 90)
        small = submit(batcher, images.read_header, 30)
        await until(lambda: batcher.waiting == 3)
        for task in (expired, gone):
            task.cancel()
        assert (await small).embedding.tolist() == [30]  # it fits beside the 60 that are held
        assert dropped == [("decode", "deadline"), ("decode", "gone")]
    budget.release(60)
    assert budget.fits(100)


@pytest.mark.parametrize("error", [ValueError, MemoryError])
async def test_a_failed_decode_returns_its_pixels(error: type[Exception]) -> None:
    def fail() -> NDArray[np.uint8]:
        raise error

    budget = Budget(100)
    with batching(first_pixel, pixels=budget) as (batcher, _), pytest.raises(ServiceError):
        await batcher.submit(b"x", lambda _: (90, fail))
    assert budget.fits(100)
