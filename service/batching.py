"""Dynamic batching: single images from many requests, together through one session.

A batch starts as soon as a lane is free, with all that waits by then, up to `max_batch` images (where
several lanes are free, each takes its part).
Nothing waits for company: an image that finds a lane idle goes alone. Requests share a batch, never a
fate: an image whose client has gone is left out, and where a batch fails, its halves are run, and theirs,
so that one without the memory for it is answered, and only an image at fault fails.
"""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import EncoderFailed, NotReady, ServiceError

_log = logging.getLogger(__name__)

_FADING = 0.1  # how much the latest batch moves the average

Encode = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of one image in the batcher."""

    embedding: NDArray[np.float32]  # (dim,), unit norm
    queue_ms: float
    infer_ms: float  # of the whole batch


@dataclass(slots=True)
class _Waiting:
    pixels: NDArray[np.uint8]  # (H, W, 3)
    future: asyncio.Future[Encoded]
    since: float
    alone: bool  # shares no batch


class Batcher:
    """Runs `encode` in threads of its own, so that the event loop never blocks."""

    def __init__(
        self,
        encode: Encode,
        max_batch: int,
        observe_batch: Callable[[int], None],
        observe_drop: Callable[[], None],
        lanes: int = 1,
    ) -> None:
        """`encode` is called from `lanes` threads at a time. They tell `observe_batch` the number of images
        in each batch, and `observe_drop` of each image that was left out.
        """
        self._encode = encode
        self._max_batch = max_batch
        self._observe_batch = observe_batch
        self._observe_drop = observe_drop
        self._last_done = time.perf_counter()
        self._seconds_per_image = 0.0  # of inference, over the last batches; 0 before the first
        self._waiting: deque[_Waiting] = deque()
        self._running: dict[int, float] = {}  # lane: when its batch began
        self._changed = threading.Condition()
        self._closing = False
        self._lanes = [
            threading.Thread(target=self._serve, args=(lane,), name=f"session-{lane}", daemon=True)
            for lane in range(lanes)
        ]
        for thread in self._lanes:
            thread.start()

    @property
    def depth(self) -> int:
        """Images that wait for the session."""
        return len(self._waiting)

    @property
    def seconds_per_image(self) -> float:
        """Of all lanes together, over the last batches; 0 before the first."""
        return self._seconds_per_image / len(self._lanes)

    @property
    def alive(self) -> bool:
        """Whether all lanes run."""
        return all(thread.is_alive() for thread in self._lanes)

    @property
    def silence_s(self) -> float:
        """Since a batch came out, or since the oldest one went in that has not: whichever is longer."""
        with self._changed:
            return time.perf_counter() - min([self._last_done, *self._running.values()])

    async def submit(self, pixels: NDArray[np.uint8], alone: bool = False) -> Encoded:
        """uint8 (H, W, 3) -> its embedding. Cancelling drops the image if it still waits.

        Raises EncoderFailed for this image alone, or NotReady once the batcher is closed.
        """
        item = _Waiting(pixels, asyncio.get_running_loop().create_future(), time.perf_counter(), alone)
        with self._changed:
            if self._closing:
                raise NotReady("the service is stopping")
            self._waiting.append(item)
            self._changed.notify()
        return await item.future

    def close(self) -> None:
        """Finish what waits, then stop the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._lanes:
            thread.join()

    def _serve(self, lane: int) -> None:
        while batch := self._next_batch(lane):
            outcomes = self._run(batch)
            with self._changed:
                del self._running[lane]
                self._last_done = time.perf_counter()
            # One hop to the event loop for the whole batch.
            loop = batch[0].future.get_loop()
            loop.call_soon_threadsafe(_deliver, list(zip(batch, outcomes, strict=True)))

    def _next_batch(self, lane: int) -> list[_Waiting]:
        """Its part of what waits, up to max_batch, as soon as there is any; empty when closed and drained."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                batch: list[_Waiting] = []
                free = len(self._lanes) - len(self._running)  # each takes its part
                most = min(self._max_batch, math.ceil(len(self._waiting) / free))
                while self._waiting and len(batch) < most:
                    if batch and (batch[0].alone or self._waiting[0].alone):
                        break
                    item = self._waiting.popleft()
                    if item.future.done():  # its client has gone, or its deadline has passed
                        self._observe_drop()
                    else:
                        batch.append(item)
                if batch:
                    self._running[lane] = time.perf_counter()
                if batch or self._closing:
                    return batch

    def _run(self, batch: list[_Waiting]) -> list[Encoded | ServiceError]:
        try:
            return self._encode_batch(batch)
        except Exception as error:  # the thread must outlive any batch; each image gets its own error
            if len(batch) > 1:  # too many for the memory, or one at fault: halves fit, or find it
                half = len(batch) // 2
                return self._run(batch[:half]) + self._run(batch[half:])
            if not isinstance(error, ServiceError):
                _log.exception("inference failed")
                error = EncoderFailed(f"inference failed: {type(error).__name__}")
            return [error]

    def _encode_batch(self, batch: list[_Waiting]) -> list[Encoded | ServiceError]:
        start = time.perf_counter()
        embeddings = self._encode(np.stack([item.pixels for item in batch]))  # (N, dim) float32
        infer_s = time.perf_counter() - start
        self._observe_batch(len(batch))
        latest = infer_s / len(batch)
        fading = _FADING if self._seconds_per_image else 1
        self._seconds_per_image += (latest - self._seconds_per_image) * fading
        return [
            Encoded(row, (start - item.since) * 1e3, infer_s * 1e3)
            if np.isfinite(row).all()
            else EncoderFailed("the model gave an embedding that is not finite")
            for item, row in zip(batch, embeddings, strict=True)
        ]


def _deliver(outcomes: list[tuple[_Waiting, Encoded | ServiceError]]) -> None:
    for item, outcome in outcomes:
        with contextlib.suppress(asyncio.InvalidStateError):  # cancelled while it was in the batch
            if isinstance(outcome, Encoded):
                item.future.set_result(outcome)
            else:
                item.future.set_exception(outcome)
