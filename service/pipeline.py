"""An image's path: bytes -> decode pool -> batcher -> embedding, with the time each part took."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.batching import Batcher
from service.encoder import Encoder
from service.errors import Overloaded
from service.images import decode
from service.metrics import Metrics
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Embedded:
    """One image's embedding and the milliseconds it took, by stage."""

    embedding: NDArray[np.float32]  # (dim,), unit norm
    stages_ms: dict[str, float]  # decode, queue, infer


class Pipeline:
    """Decodes in a thread pool *before* anything is batched, so that a broken image harms no other."""

    def __init__(self, encoder: Encoder, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._limit = settings.queue_limit
        self._in_flight = 0
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._decode = partial(
            decode,
            preprocessing=encoder.manifest.preprocessing,
            max_pixels=settings.max_image_pixels,
        )
        self.batcher = Batcher(encoder.encode, settings.max_batch, metrics.batch_images.observe)
        # A bulk request feeds the session without filling the queue that others wait in.
        self.bulk_width = min(2 * settings.max_batch, settings.queue_limit)

    async def embed(self, data: bytes) -> Embedded:
        """Raises UndecodableImage, ImageTooLarge, Overloaded, EncoderFailed."""
        if self._in_flight >= self._limit:
            raise Overloaded("the queue is full", limit=self._limit, retry_after_s=1)
        self._in_flight += 1
        self._metrics.queue_depth.inc()
        try:
            arrived = time.perf_counter()
            loop = asyncio.get_running_loop()
            pixels, started, decode_ms = await loop.run_in_executor(self._pool, self._timed_decode, data)
            encoded = await self.batcher.submit(pixels)
        finally:
            self._in_flight -= 1
            self._metrics.queue_depth.dec()
        queue_ms = (started - arrived) * 1e3 + encoded.queue_ms  # for a decode thread, and for the session
        stages_ms = {"decode": decode_ms, "queue": queue_ms, "infer": encoded.infer_ms}
        self._metrics.observe_stages(stages_ms)
        return Embedded(encoded.embedding, stages_ms)

    def _timed_decode(self, data: bytes) -> tuple[NDArray[np.uint8], float, float]:
        started = time.perf_counter()
        pixels = self._decode(data)
        return pixels, started, (time.perf_counter() - started) * 1e3

    def close(self) -> None:
        """Finish what is in flight."""
        self._pool.shutdown()
        self.batcher.close()
