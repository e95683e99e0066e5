"""Dynamic batching: single images from many requests, together through one session.

A batch starts as soon as the session is free, with all that waits by then, up to `max_batch` images.
Nothing waits for company: an image that finds the session idle goes alone. Requests share a batch,
never a fate: an image whose client has gone is left out, and where a batch fails, its images are run
one by one so that only the one at fault fails.
"""

import asyncio
import contextlib
import logging
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
    """Runs `encode` in a thread of its own, so that the event loop never blocks."""

    def __init__(
        self,
        encode: Encode,
        max_batch: int,
        observe_batch: Callable[[int], None],
        observe_drop: Callable[[], None],
    ) -> None:
        """The session's thread tells `observe_batch` the number of images in each batch, and `observe_drop`
        of each image that it left out.
        """
        self._last_done = time.perf_counter()
        self.seconds_per_image = 0.0  # of inference, over the last batches; 0 before the first
        self._encode = encode
        self._max_batch = max_batch
        self._observe_batch = observe_batch
        self._observe_drop = observe_drop
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="session", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Images that wait for the session."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the session's thread runs."""
        return self._thread.is_alive()

    @property
    def silence_s(self) -> float:
        """Since the last batch came out of the session."""
        return time.perf_counter() - self._last_done

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
        """Finish what waits, then stop the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        while batch := self._next_batch():
            outcomes = self._run(batch)
            # One hop to the event loop for the whole batch.
            loop = batch[0].future.get_loop()
            loop.call_soon_threadsafe(_deliver, list(zip(batch, outcomes, strict=True)))

    def _next_batch(self) -> list[_Waiting]:
        """Up to max_batch images, as soon as there is one; empty when closed and drained."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                batch: list[_Waiting] = []
                while self._waiting and len(batch) < self._max_batch:
                    if batch and (batch[0].alone or self._waiting[0].alone):
                        break
                    item = self._waiting.popleft()
                    if item.future.done():  # its client has gone, or its deadline has passed
                        self._observe_drop()
                    else:
                        batch.append(item)
                if batch or self._closing:
                    return batch

    def _run(self, batch: list[_Waiting]) -> list[Encoded | ServiceError]:
        try:
            return self._encode_batch(batch)
        except Exception as error:  # the thread must outlive any batch; each image gets its own error
            if len(batch) > 1:
                return [outcome for item in batch for outcome in self._run([item])]
            if not isinstance(error, ServiceError):
                _log.exception("inference failed")
                error = EncoderFailed(f"inference failed: {type(error).__name__}")
            return [error]

    def _encode_batch(self, batch: list[_Waiting]) -> list[Encoded | ServiceError]:
        start = time.perf_counter()
        embeddings = self._encode(np.stack([item.pixels for item in batch]))  # (N, dim) float32
        self._last_done = time.perf_counter()
        infer_ms = (self._last_done - start) * 1e3
        self._observe_batch(len(batch))
        latest = infer_ms / 1e3 / len(batch)
        self.seconds_per_image += (latest - self.seconds_per_image) * (
            _FADING if self.seconds_per_image else 1
        )
        return [
            Encoded(row, (start - item.since) * 1e3, infer_ms)
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
