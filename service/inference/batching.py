"""Dynamic batching: decodes and infers single images of many requests on a few shared threads.

A free thread takes the next piece of work: a batch of decoded images for the model, or an image to decode.
Decoding and inference therefore share the cores instead of competing for them, and an image that arrives at
an idle service is decoded and inferred by the same thread. A batch starts if it is full, if no other image
can be decoded now, or if decoding another one first would cost the decoded images more waiting than a larger
batch saves: it never waits for requests that have not arrived.

An image whose pixels exceed the budget waits without a thread, after its header was read.

Failures are isolated. Images are decoded separately, cancelled images are skipped, and a failed batch is
split in half and retried, so that a batch too large for the memory succeeds and only a faulty image fails.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import EncoderFailed, NotReady, ServiceError
from service.inference import work
from service.inference.budget import Budget
from service.inference.work import Decode, Embedded, Image, MeasuredTime, Outcome, ReadHeader
from service.settings import Settings

Stage = Literal["decode", "infer"]
DropReason = Literal["deadline", "gone"]

Encode = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Clock = Callable[[], float]


class Batcher:
    """Decodes and infers on its threads, so that the event loop never blocks."""

    def __init__(
        self,
        encode: Encode,
        settings: Settings,
        on_batch: Callable[[int], None],
        on_drop: Callable[[Stage, DropReason], None],
        pixels: Budget,
        clock: Clock = time.monotonic,
    ) -> None:
        """The threads call `on_batch` with the number of images of each inference.

        They call `on_drop` with the stage that a cancelled image did not reach, and the reason.
        """
        self._encode = encode
        self._settings = settings
        self._on_batch = on_batch
        self._on_drop = on_drop
        self._budget = pixels
        self._clock = clock
        self._last_batch_at = clock()
        self._undecoded: deque[Image] = deque()
        self._over_budget: deque[Image] = deque()  # the header was read, the pixels do not fit yet
        self._decoded: deque[Image] = deque()
        self._busy_since: dict[int, float] = {}  # by thread
        self._inferring = 0
        self._decode_time = MeasuredTime()  # by bytes
        self._inference_time = MeasuredTime()  # by images
        self.seconds_per_image = 0.0  # moving average over all threads together; 0 before the first batch
        self._changed = pixels.condition()
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
        return len(self._undecoded) + len(self._over_budget) + len(self._decoded)

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
        self, data: bytes, read_header: ReadHeader, alone: bool = False, deadline: float | None = None
    ) -> Embedded:
        """Embed an encoded image. Cancelling drops the image if it still waits.

        `deadline`, on the event loop's clock, is when the caller cancels. A batch starts early to meet it.
        Raises the errors of decoding, EncoderFailed for this image alone, or NotReady after `close`.
        """
        future: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._closing:
                raise NotReady("the service is stopping")
            image = Image(data, read_header, alone, future, self._clock(), deadline, len(data))
            self._undecoded.append(image)
            self._changed.notify()
        try:
            return await future
        except asyncio.CancelledError:
            if deadline is not None and self._clock() < deadline:
                image.deadline = None  # it must not expire before a thread drops the image
            with self._changed:
                self._changed.notify()  # it may be next for the budget
            raise

    def close(self) -> None:
        """Finish the waiting images, then stop the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _serve(self, thread: int) -> None:
        while images := self._next(thread):
            if images[0].pixels is None:
                outcomes = self._decode(images[0])
            else:
                outcomes = self._run(images)
                with self._changed:
                    del self._busy_since[thread]
                    self._inferring -= 1
                    self._last_batch_at = self._clock()
            if outcomes:  # all in a single callback on the event loop
                images[0].future.get_loop().call_soon_threadsafe(work.settle, images, outcomes)

    def _next(self, thread: int) -> list[Image]:
        """Wait for work. Empty after `close`, once nothing waits."""
        with self._changed:
            while not (images := self._take()):
                if self._closing and not self.waiting:
                    return []
                self._busy_since.pop(thread, None)
                self._changed.wait()
            self._busy_since[thread] = self._clock()
            self._inferring += images[0].pixels is not None
            if self._closing:
                self._changed.notify_all()
            elif self.waiting:
                self._changed.notify()  # another thread may find work, and then notifies the next one
            return images

    def _take(self) -> list[Image]:
        """Take a batch to infer or one image to decode. Empty if there is no work for a free thread."""
        for images in (self._over_budget, self._undecoded):
            while images and images[0].future.done():
                self._budget.withdraw(images[0])
                self._drop(images, "decode")
        image = self._decodable()
        limit, free = self._settings.max_batch, self._settings.lanes - self._inferring
        if free and self._decoded and (image is None or self._worth_starting(image)):
            if image is None:  # no more images will join: divide them among the free inferences
                limit = min(limit, math.ceil(len(self._decoded) / free))
            if batch := self._take_batch(limit):
                return batch
        if image is None:
            return []
        if image.decode:
            self._over_budget.remove(image)
            self._budget.acquire(image.budget_px, image)
        else:
            self._undecoded.remove(image)
        return [image]

    def _decodable(self) -> Image | None:
        """Return the next image to decode: while one waits for the budget, none that needs it passes."""
        if not self._over_budget:
            return self._undecoded[0] if self._undecoded else None
        image = self._over_budget[0]
        if self._budget.fits(image.budget_px, image):
            return image
        return next((image for image in self._undecoded if image.alone), None)

    def _worth_starting(self, undecoded: Image) -> bool:
        """Compare the costs of decoding one more image before the decoded ones are inferred.

        It adds to their waiting, and saves each image behind them a part of an inference's fixed time: that
        is shared by n + 1 instead of n images. Both sides are seconds, summed over the images.
        """
        images, now = len(self._decoded), self._clock()
        decode_s = self._decode_time.of(undecoded.data_bytes)
        waiting_costs = sum(now - image.waiting_since + decode_s for image in self._decoded)
        behind = len(self._undecoded) + len(self._over_budget)
        batching_saves = behind * self._inference_time.of(0) / (images + 1)
        if images >= self._settings.max_batch or waiting_costs > batching_saves:
            return True
        end = now + decode_s + self._inference_time.of(images + 1)
        return any(image.deadline is not None and image.deadline < end for image in self._decoded)

    def _take_batch(self, limit: int) -> list[Image]:
        batch: list[Image] = []
        while self._decoded and len(batch) < limit:
            if self._decoded[0].future.done():
                self._drop(self._decoded, "infer")
            elif batch and (batch[0].alone or self._decoded[0].alone):
                break
            else:
                batch.append(self._decoded.popleft())
        return batch

    def _drop(self, images: deque[Image], stage: Stage) -> None:
        deadline = images.popleft().deadline
        expired = deadline is not None and self._clock() >= deadline
        self._on_drop(stage, "deadline" if expired else "gone")

    def _decode(self, image: Image) -> list[Outcome]:
        """Decode, or leave the image waiting for the budget. Return the error, if there is one."""
        start = self._clock()
        image.queue_ms += (start - image.waiting_since) * 1e3
        try:
            decode = image.decode or self._read_header(image, start)
            if decode is None:
                return []
            pixels = decode()
            decode = image.decode = None  # frees the encoded image and its pixels at full size
        except Exception as error:  # the thread must survive any image
            self._budget.release(image.budget_px)
            return [work.service_error(error, "decoding", ServiceError)]
        with self._changed:
            self._budget.release(image.budget_px)
            image.pixels = pixels
            self._wait(image, self._decoded, start)
            self._decode_time.add(image.data_bytes, image.decode_ms / 1e3)
        return []

    def _read_header(self, image: Image, start: float) -> Decode | None:
        data, image.data = image.data, b""
        pixels, decode = image.read_header(data)
        image.budget_px = 0 if image.alone else pixels
        with self._changed:
            if self._budget.acquire(image.budget_px, image):
                return decode
            image.decode = decode
            self._wait(image, self._over_budget, start)
            return None

    def _wait(self, image: Image, images: deque[Image], start: float) -> None:
        image.waiting_since = self._clock()
        image.decode_ms += (image.waiting_since - start) * 1e3
        images.append(image)

    def _run(self, batch: list[Image]) -> list[Outcome]:
        try:
            return self._encode_batch(batch)
        except Exception as error:  # the thread must survive any batch
            if len(batch) > 1:
                half = len(batch) // 2
                return self._run(batch[:half]) + self._run(batch[half:])
            return [work.service_error(error, "inference", EncoderFailed)]

    def _encode_batch(self, batch: list[Image]) -> list[Outcome]:
        start = self._clock()
        pixels = [image.pixels for image in batch if image.pixels is not None]
        stacked = np.stack(pixels) if len(pixels) > 1 else pixels[0][None]  # (N, H, W, 3)
        embeddings = self._encode(stacked)  # (N, dim)
        infer_s = self._clock() - start
        self._inference_time.add(len(batch), infer_s)
        self._on_batch(len(batch))
        decode_s = sum(image.decode_ms for image in batch) / 1e3
        batch_s = decode_s / self._settings.threads + infer_s / self._settings.lanes
        self.seconds_per_image = work.average(self.seconds_per_image, batch_s / len(batch))
        return [
            image.embedded(row, start, infer_s * 1e3)
            if math.isfinite(row @ row)
            else EncoderFailed("the model returned an embedding that is not finite")
            for image, row in zip(batch, embeddings, strict=True)
        ]
