"""Dynamic batching: decodes and infers single images of many requests on a few shared threads.

A free thread takes the next piece of work: a batch of decoded images for the model, or an image to decode.
Decoding and inference therefore share the cores instead of competing for them, and an image that arrives at
an idle service is decoded and inferred by the same thread. A batch starts if it is full, if no image waits
to be decoded, or if as many images as fill it were decoded (broken ones included): it never waits for
requests that have not arrived.

Failures are isolated. Images are decoded separately, cancelled images are skipped, and a failed batch is
split in half and retried, so that a batch too large for the memory succeeds and only a faulty image fails.
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
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import EncoderFailed, NotReady, ServiceError
from service.inference.cache import Lookup
from service.settings import Settings

_log = logging.getLogger(__name__)
Stage = Literal["decode", "infer"]
DropReason = Literal["deadline", "gone"]

_LATEST_WEIGHT = 0.1  # of the latest batch in the moving average

Decode = Callable[[bytes], NDArray[np.uint8]]
Encode = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Embedded:
    """An image's embedding and the milliseconds of each stage.

    `queue` is the wait for a thread to decode, then for an inference to start; `infer` is the time of the
    complete batch.
    """

    embedding: NDArray[np.float32]  # (dim,), unit norm
    stages_ms: dict[str, float]  # (fetch,) decode, queue, infer; the last three not for a cache hit
    cache: Lookup | None = None  # None: the cache is off


Outcome = Embedded | ServiceError


@dataclass(slots=True)
class _Image:
    data: bytes
    decode: Decode
    alone: bool  # in a batch of one
    future: asyncio.Future[Embedded]
    waiting_since: float
    deadline: float | None  # the client's; None after it disconnected
    pixels: NDArray[np.uint8] | None = None  # (H, W, 3), once decoded
    decode_ms: float = 0.0
    queue_ms: float = 0.0

    def embedded(self, row: NDArray[np.float32], start: float, infer_ms: float) -> Embedded:
        queue_ms = self.queue_ms + (start - self.waiting_since) * 1e3
        stages_ms = {"decode": self.decode_ms, "queue": queue_ms, "infer": infer_ms}
        # A copy, because a view that is kept (by a cache) would keep the complete batch in memory.
        return Embedded(row.copy(), stages_ms)


class Batcher:
    """Decodes and infers on its threads, so that the event loop never blocks."""

    def __init__(
        self,
        encode: Encode,
        settings: Settings,
        on_batch: Callable[[int], None],
        on_drop: Callable[[Stage, DropReason], None],
        clock: Clock = time.monotonic,
    ) -> None:
        """The threads call `on_batch` with the number of images of each inference.

        They call `on_drop` with the stage that a cancelled image did not reach, and the reason.
        """
        self._encode = encode
        self._settings = settings
        self._on_batch = on_batch
        self._on_drop = on_drop
        self._clock = clock
        self._last_batch_at = clock()
        self._decoded_since_batch = 0
        self._undecoded: deque[_Image] = deque()
        self._decoded: deque[_Image] = deque()
        self._busy_since: dict[int, float] = {}  # by thread
        self._inferring = 0
        self.seconds_per_image = 0.0  # moving average over all threads together; 0 before the first batch
        self._changed = threading.Condition()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._serve, args=(number,), name=f"images-{number}", daemon=True)
            for number in range(settings.threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Number of images that wait to be decoded or inferred."""
        return len(self._undecoded) + len(self._decoded)

    @property
    def alive(self) -> bool:
        """True if all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def stalled_s(self) -> float:
        """Seconds since the last batch finished or since a thread began its current work, the longer one."""
        with self._changed:
            return self._clock() - min([self._last_batch_at, *self._busy_since.values()])

    async def submit(
        self, data: bytes, decode: Decode, alone: bool = False, deadline: float | None = None
    ) -> Embedded:
        """Embed an encoded image. Cancelling drops the image if it still waits.

        `deadline`, on the event loop's clock, only determines the reported reason of a cancellation.
        Raises what `decode` raises, EncoderFailed for this image alone, or NotReady after `close`.
        """
        future: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._closing:
                raise NotReady("the service is stopping")
            image = _Image(data, decode, alone, future, self._clock(), deadline)
            self._undecoded.append(image)
            self._changed.notify()
        try:
            return await future
        except asyncio.CancelledError:
            if deadline is not None and self._clock() < deadline:
                image.deadline = None  # it must not expire before a thread drops the image
            raise

    def close(self) -> None:
        """Finish the waiting images, then stop the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _serve(self, thread: int) -> None:
        while True:
            with self._changed:
                while not (images := self._take()):
                    if self._closing and not self.waiting:
                        return
                    self._changed.wait()
                decoded = images[0].pixels is not None
                self._busy_since[thread] = self._clock()
                self._inferring += decoded
            outcomes = self._run(images) if decoded else self._decode(images[0])
            with self._changed:
                del self._busy_since[thread]
                if decoded:
                    self._inferring -= 1
                    self._last_batch_at = self._clock()
                elif not outcomes:
                    self._decoded.append(images[0])
                self._changed.notify_all()
            if outcomes:  # all in a single callback on the event loop
                images[0].future.get_loop().call_soon_threadsafe(_settle, images, outcomes)

    def _take(self) -> list[_Image]:
        """Take a batch to infer or one image to decode. Empty if there is no work for a free thread."""
        while self._undecoded and self._undecoded[0].future.done():
            self._drop(self._undecoded, "decode")
        full = self._decoded_since_batch >= self._settings.max_batch
        if (full or not self._undecoded) and (batch := self._take_batch()):
            self._decoded_since_batch = 0
            return batch
        if not self._undecoded:
            return []
        self._decoded_since_batch += 1
        return [self._undecoded.popleft()]

    def _take_batch(self) -> list[_Image]:
        limit, free = self._settings.max_batch, self._settings.lanes - self._inferring
        if not self._undecoded:  # no more images will join: divide them among the free inferences
            limit = min(limit, math.ceil(len(self._decoded) / max(1, free)))
        batch: list[_Image] = []
        while free and self._decoded and len(batch) < limit:
            if self._decoded[0].future.done():
                self._drop(self._decoded, "infer")
            elif batch and (batch[0].alone or self._decoded[0].alone):
                break
            else:
                batch.append(self._decoded.popleft())
        return batch

    def _drop(self, images: deque[_Image], stage: Stage) -> None:
        deadline = images.popleft().deadline
        expired = deadline is not None and self._clock() >= deadline
        self._on_drop(stage, "deadline" if expired else "gone")

    def _decode(self, image: _Image) -> list[Outcome]:
        """Return the error, if there is one."""
        start = self._clock()
        try:
            image.pixels = image.decode(image.data)
        except Exception as error:  # the thread must survive any image
            return [_service_error(error, "decoding", ServiceError)]
        finally:
            image.data = b""  # frees the bytes while the image waits
        image.queue_ms = (start - image.waiting_since) * 1e3
        image.waiting_since = self._clock()
        image.decode_ms = (image.waiting_since - start) * 1e3
        return []

    def _run(self, batch: list[_Image]) -> list[Outcome]:
        try:
            return self._encode_batch(batch)
        except Exception as error:  # the thread must survive any batch
            if len(batch) > 1:
                half = len(batch) // 2
                return self._run(batch[:half]) + self._run(batch[half:])
            return [_service_error(error, "inference", EncoderFailed)]

    def _encode_batch(self, batch: list[_Image]) -> list[Outcome]:
        start = self._clock()
        pixels = [image.pixels for image in batch if image.pixels is not None]
        embeddings = self._encode(np.stack(pixels))  # (N, dim) float32
        infer_ms = (self._clock() - start) * 1e3
        self._on_batch(len(batch))
        decode_ms = sum(image.decode_ms for image in batch)
        batch_ms = decode_ms / self._settings.threads + infer_ms / self._settings.lanes
        weight = _LATEST_WEIGHT if self.seconds_per_image else 1
        self.seconds_per_image += (batch_ms / 1e3 / len(batch) - self.seconds_per_image) * weight
        return [
            image.embedded(row, start, infer_ms)
            if np.isfinite(row).all()
            else EncoderFailed("the model returned an embedding that is not finite")
            for image, row in zip(batch, embeddings, strict=True)
        ]


def _service_error(error: Exception, stage: str, kind: type[ServiceError]) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    _log.exception("%s failed", stage)
    return kind(f"{stage} failed: {type(error).__name__}")


def _settle(images: list[_Image], outcomes: list[Outcome]) -> None:
    for image, outcome in zip(images, outcomes, strict=True):
        with contextlib.suppress(asyncio.InvalidStateError):  # cancelled meanwhile
            if isinstance(outcome, Embedded):
                image.future.set_result(outcome)
            else:
                image.future.set_exception(outcome)
