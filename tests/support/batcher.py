"""A batcher with an encoder that is easy to verify: the embedding is the first pixel."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from service.errors import EncoderFailed, UndecodableImage
from service.inference.batching import Batcher, Capacity, Encode, Encoded, Watch
from tests.support.waiting import LIMIT_S
from tests.support.waiting import until as until

BAD = 13  # the encoder fails for a batch with this value
BROKEN, BUG = 250, 251  # the decoder fails for these values


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
        raise EncoderFailed("a bad image was in the batch")
    return pixels[:, 0, 0, :1].astype(np.float32)


class Gate:
    """An encoder that blocks until the test opens it, so that the test controls what waits in the queue."""

    def __init__(self, encode: Encode = first_pixel) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Semaphore(0)
        self._encode = encode

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.entered.release()
        assert self.open.acquire(timeout=LIMIT_S)
        return self._encode(pixels)


@contextmanager
def batching(
    encode: Encode, max_batch: int = 4, threads: int = 1, lanes: int = 1
) -> Iterator[tuple[Batcher, list[int]]]:
    """A running batcher, and the sizes of its batches so far."""
    sizes: list[int] = []
    batcher = Batcher(encode, Capacity(threads, lanes, max_batch), Watch(sizes.append, lambda _, __: None))
    try:
        yield batcher, sizes
    finally:
        batcher.close()


async def submit_behind(gate: Gate, batcher: Batcher, values: list[int]) -> list[asyncio.Task[Encoded]]:
    """Submits the values: the first one is in inference, the others wait in the queue."""
    tasks = [asyncio.create_task(embed(batcher, values[0]))]
    await asyncio.to_thread(gate.entered.acquire)
    tasks += [asyncio.create_task(embed(batcher, value)) for value in values[1:]]
    await until(lambda: batcher.depth == len(values) - 1)
    return tasks
