"""Dynamic batching: single images from many requests, decoded and run together by a few threads.

A free thread takes what is next: a batch of decoded images for the model, or an image to decode. So
decoding and inference do not take the cores from each other, and an image that finds the service idle
goes the whole way in one thread. A batch is taken once it is full, or nothing waits to be decoded, or as
many were decoded as would fill it, broken ones included: nothing waits for company that has not come.
Requests share a batch, never a fate: an image is decoded alone; one whose client has gone is left out;
where a batch fails, its halves are run, and theirs, so that one without the memory for it is answered,
and only an image at fault fails.
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

_log = logging.getLogger(__name__)
Stage = Literal["decode", "infer"]
Why = Literal["deadline", "gone"]

_FADING = 0.1  # how much the latest batch moves the average

Decode = Callable[[bytes], NDArray[np.uint8]]
Encode = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much is done at a time."""

    threads: int  # that decode and infer
    lanes: int  # at most that many of them infer
    max_batch: int  # images


@dataclass(frozen=True, slots=True)
class Watch:
    """What the threads tell as they go."""

    batch: Callable[[int], None]  # images in an inference
    dropped: Callable[[Stage, Why], None]  # an image was left out before this stage


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of one image."""

    embedding: NDArray[np.float32]  # (dim,), unit norm
    decode_ms: float
    queue_ms: float  # for a thread, and then for a lane
    infer_ms: float  # of the whole batch


@dataclass(slots=True)
class _Image:
    data: bytes
    decode: Decode
    alone: bool  # shares no batch
    future: asyncio.Future[Encoded]
    since: float  # it waits, for a thread or for a lane
    deadline: float | None  # the client's, until that has gone
    pixels: NDArray[np.uint8] | None = None  # (H, W, 3), once decoded
    decode_ms: float = 0.0
    queue_ms: float = 0.0


class Batcher:
    """Computes in threads of its own, so that the event loop never blocks."""

    def __init__(self, encode: Encode, capacity: Capacity, watch: Watch) -> None:
        self._encode = encode
        self._capacity = capacity
        self._watch = watch
        self._last_done = time.perf_counter()
        self._decoded_since_batch = 0
        self._undecoded: deque[_Image] = deque()
        self._decoded: deque[_Image] = deque()
        self._busy: dict[int, float] = {}  # thread: since when
        self._inferring = 0
        self.seconds_per_image = 0.0  # all threads together, over the last batches; 0 before the first
        self._changed = threading.Condition()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._serve, args=(number,), name=f"images-{number}", daemon=True)
            for number in range(capacity.threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Images that wait, to be decoded or for a lane."""
        return len(self._undecoded) + len(self._decoded)

    @property
    def alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def silence_s(self) -> float:
        """Since a batch came out, or since a thread began what it is at: whichever is longer."""
        with self._changed:
            return time.perf_counter() - min([self._last_done, *self._busy.values()])

    async def submit(
        self, data: bytes, decode: Decode, alone: bool = False, deadline: float | None = None
    ) -> Encoded:
        """An encoded image to its embedding. Cancelling drops the image if it still waits.

        `deadline` (of `time.monotonic`, as are event loops) only tells why it was cancelled.
        Raises what `decode` raises, EncoderFailed for this image alone, or NotReady once it is closed.
        """
        future: asyncio.Future[Encoded] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._closing:
                raise NotReady("the service is stopping")
            image = _Image(data, decode, alone, future, time.perf_counter(), deadline)
            self._undecoded.append(image)
            self._changed.notify()
        try:
            return await future
        except asyncio.CancelledError:
            if _why(image) == "gone":
                image.deadline = None  # or it might pass before a thread comes by
            raise

    def close(self) -> None:
        """Finish what waits, then stop the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _serve(self, thread: int) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next_is_there or (self._closing and not self.depth))
                batch = self._take_batch()
                image = None if batch else self._take_undecoded()
                if not batch and not image:
                    if self._closing and not self.depth:
                        return
                    continue
                self._busy[thread] = time.perf_counter()
                self._inferring += bool(batch)
            if image:
                self._decode(image)
            outcomes = self._run(batch) if batch else []
            with self._changed:
                del self._busy[thread]
                if image and image.pixels is not None:
                    self._decoded.append(image)
                if batch:
                    self._inferring -= 1
                    self._last_done = time.perf_counter()
                self._changed.notify_all()
            if batch:
                _deliver(batch, outcomes)

    @property
    def _next_is_there(self) -> bool:
        lane_free = self._inferring < self._capacity.lanes
        return bool(self._undecoded or (self._decoded and lane_free))

    def _take_batch(self) -> list[_Image]:
        """What a free lane should take now, its part of it where several are free; empty if nothing."""
        free = self._capacity.lanes - self._inferring
        most = self._capacity.max_batch
        if not free or (self._undecoded and self._decoded_since_batch < most):
            return []
        if not self._undecoded:
            most = min(most, math.ceil(len(self._decoded) / free))
        batch: list[_Image] = []
        while self._decoded and len(batch) < most:
            if batch and (batch[0].alone or self._decoded[0].alone):
                break
            image = self._decoded.popleft()
            if image.future.done():  # its client has gone, or its deadline has passed
                self._watch.dropped("infer", _why(image))
            else:
                batch.append(image)
        if batch:
            self._decoded_since_batch = 0
        return batch

    def _take_undecoded(self) -> _Image | None:
        while self._undecoded:
            image = self._undecoded.popleft()
            if not image.future.done():
                self._decoded_since_batch += 1
                return image
            self._watch.dropped("decode", _why(image))
        return None

    def _decode(self, image: _Image) -> None:
        start = time.perf_counter()
        try:
            image.pixels = image.decode(image.data)
        except Exception as error:  # the thread must outlive any image
            if not isinstance(error, ServiceError):
                _log.exception("decoding failed")
                error = ServiceError(f"decoding failed: {type(error).__name__}")
            _deliver([image], [error])
        image.data = b""  # it may wait for long
        image.queue_ms = (start - image.since) * 1e3
        image.since = time.perf_counter()
        image.decode_ms = (image.since - start) * 1e3

    def _run(self, batch: list[_Image]) -> list[Encoded | ServiceError]:
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

    def _encode_batch(self, batch: list[_Image]) -> list[Encoded | ServiceError]:
        start = time.perf_counter()
        pixels = [image.pixels for image in batch if image.pixels is not None]
        embeddings = self._encode(np.stack(pixels))  # (N, dim) float32
        infer_s = time.perf_counter() - start
        self._watch.batch(len(batch))
        decode_s = sum(image.decode_ms for image in batch) / 1e3
        latest = (decode_s / self._capacity.threads + infer_s / self._capacity.lanes) / len(batch)
        fading = _FADING if self.seconds_per_image else 1
        self.seconds_per_image += (latest - self.seconds_per_image) * fading
        return [
            # A copy: who keeps a row (a cache) must not keep the whole batch.
            Encoded(row.copy(), image.decode_ms, image.queue_ms + (start - image.since) * 1e3, infer_s * 1e3)
            if np.isfinite(row).all()
            else EncoderFailed("the model gave an embedding that is not finite")
            for image, row in zip(batch, embeddings, strict=True)
        ]


def _why(image: _Image) -> Why:
    """An image was cancelled."""
    return "gone" if image.deadline is None or time.monotonic() < image.deadline else "deadline"


def _deliver(images: list[_Image], outcomes: list[Encoded | ServiceError]) -> None:
    """One hop to the event loop for the whole batch."""
    done = list(zip(images, outcomes, strict=True))
    images[0].future.get_loop().call_soon_threadsafe(_settle, done)


def _settle(done: list[tuple[_Image, Encoded | ServiceError]]) -> None:
    for image, outcome in done:
        with contextlib.suppress(asyncio.InvalidStateError):  # cancelled while it was in the batch
            if isinstance(outcome, Encoded):
                image.future.set_result(outcome)
            else:
                image.future.set_exception(outcome)
