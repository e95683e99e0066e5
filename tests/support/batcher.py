"""A batcher whose encoder can be checked by hand: the embedding is the first pixel."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from service.errors import EncoderFailed, UndecodableImage
from service.inference.batching import Batcher, Capacity, Encode, Encoded, Watch

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
    batcher = Batcher(encode, Capacity(threads, lanes, max_batch), Watch(sizes.append, lambda _, __: None))
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
