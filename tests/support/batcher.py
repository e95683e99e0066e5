"""A batcher whose encoder returns the first pixel as the embedding."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.errors import EncoderFailed, UndecodableImage
from service.inference.batching import Batcher, Clock, DropReason, Encode, Stage
from service.inference.budget import Budget
from service.inference.work import Decode, Embedded
from service.settings import Settings

BAD = 13
BROKEN, BUG = 250, 251  # the decoder fails on these


def read_header(data: bytes) -> tuple[int, Decode]:
    return 1, partial(decode, data)


def decode(data: bytes) -> NDArray[np.uint8]:
    if data[0] == BROKEN:
        raise UndecodableImage("broken")
    if data[0] == BUG:
        raise ZeroDivisionError
    return np.full((2, 2, 3), data[0], dtype=np.uint8)


async def embed(batcher: Batcher, value: int, alone: bool = False) -> Embedded:
    return await batcher.submit(bytes([value]), read_header, alone)


def first_pixel(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    if (pixels[:, 0, 0, 0] == BAD).any():
        raise EncoderFailed("a bad image was in the batch")
    return pixels[:, 0, 0, :1].astype(np.float32)


class Gate:
    """An encoder that blocks until the test opens it, so that the test controls what waits behind it."""

    def __init__(self, encode: Encode = first_pixel) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Semaphore(0)
        self._encode = encode

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.entered.release()
        assert self.open.acquire(timeout=60)
        return self._encode(pixels)


@dataclass
class ManualClock:
    """A clock that a test sets."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


class SteppedClock(ManualClock):
    """A clock that advances to the end of the earliest sleep once enough threads sleep."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._ends: list[float] = []  # of the sleeps
        self._stopped = False

    def sleep(self, seconds: float) -> None:
        with self._changed:
            end = self.now_s + seconds
            self._ends.append(end)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._stopped or self.now_s >= end, 60)

    def step(self, sleeping: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._ends) == sleeping, 60)
            self.now_s = min(self._ends)
            self._ends = [end for end in self._ends if end > self.now_s]
            self._changed.notify_all()

    def stop(self) -> None:
        """End all sleeps."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


@contextmanager
def batching(
    encode: Encode,
    max_batch: int = 4,
    threads: int = 1,
    lanes: int = 1,
    dropped: Callable[[Stage, DropReason], None] = lambda _, __: None,
    clock: Clock | None = None,
    pixels: Budget | None = None,
) -> Iterator[tuple[Batcher, list[int]]]:
    sizes: list[int] = []
    settings = Settings(threads=threads, lanes=lanes, max_batch=max_batch)
    batcher = Batcher(encode, settings, sizes.append, dropped, pixels or Budget(1000), clock or ManualClock())
    try:
        yield batcher, sizes
    finally:
        batcher.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (the other side is a thread)
            await asyncio.sleep(0.001)


async def submit_behind(gate: Gate, batcher: Batcher, values: list[int]) -> list[asyncio.Task[Embedded]]:
    """Submit images so that the first is being encoded and the others wait."""
    tasks = [asyncio.create_task(embed(batcher, values[0]))]
    await asyncio.to_thread(gate.entered.acquire)
    tasks += [asyncio.create_task(embed(batcher, value)) for value in values[1:]]
    await until(lambda: batcher.waiting == len(values) - 1)
    return tasks
