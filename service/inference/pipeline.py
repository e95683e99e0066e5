"""The path of an image: bytes -> admission, cache -> decode, batch, infer -> embedding and stage times."""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial

from service.errors import Overloaded
from service.inference.batching import Batcher
from service.inference.budget import Budget
from service.inference.cache import Cache
from service.inference.encoder import Encoder
from service.inference.images import read_header
from service.inference.work import Embedded
from service.metrics import ModelMetrics
from service.settings import Settings

Admission = contextlib.AbstractContextManager[None]


class Pipeline:
    """Admits images, looks them up in the cache and counts them; the batcher decodes and infers."""

    def __init__(self, encoder: Encoder, settings: Settings, metrics: ModelMetrics, pixels: Budget) -> None:
        self._metrics = metrics
        self._queue_limit = settings.queue_limit
        self.in_flight = 0  # images
        self._cache: Cache[Embedded] | None = Cache(settings.cache_items) if settings.cache_items else None
        self._read_header = partial(
            read_header,
            preprocessing=encoder.manifest.preprocessing,
            max_pixels=settings.max_image_pixels,
        )
        self.batcher = Batcher(
            encoder.encode,
            settings,
            metrics.batch_images.observe,
            lambda stage, reason: metrics.dropped[stage, reason].inc(),
            pixels,
        )
        encoder.crowded = lambda: self.in_flight > 1
        # A bulk request keeps all threads busy without filling the queue that other requests wait in.
        concurrent = settings.threads + settings.lanes * settings.max_batch
        self.bulk_width = min(2 * concurrent, max(1, settings.queue_limit // 2))

    async def embed(
        self, data: bytes, deadline: float | None = None, admission: Admission | None = None
    ) -> Embedded:
        """Embed an encoded image. `deadline` is the client's, in the event loop's time.

        `admission` is held while the image is in flight; by default it is `admit()`.
        Raises UndecodableImage, ImageTooLarge, EncoderFailed, or Overloaded.
        """
        if admission is None:
            # With a cache, other requests may wait for this inference and get its errors: only without one
            # may this request's deadline refuse it.
            admission = self.admit(deadline if self._cache is None else None)
        if self._cache is None:
            return await self._infer(data, admission, deadline)
        infer = partial(self._infer, admission=admission, deadline=deadline)
        embedded, lookup = await self._cache.get(data, infer)
        self._metrics.cache[lookup].inc()
        return replace(embedded, cache=lookup, stages_ms={} if lookup == "hit" else embedded.stages_ms)

    async def embed_fetched(
        self, fetch: Callable[[], Awaitable[bytes]], deadline: float | None = None
    ) -> Embedded:
        """Embed an image that is admitted before it is fetched. Raises the errors of `fetch` and `embed`."""
        with contextlib.ExitStack() as slot:
            slot.enter_context(self.admit(deadline))
            start = time.perf_counter()
            data = await fetch()
            fetch_ms = {"fetch": (time.perf_counter() - start) * 1e3}
            self._metrics.observe_stages(fetch_ms)
            # The inference takes the slot over: with a cache it may outlive this request.
            embedded = await self.embed(data, deadline, self._counted(slot.close))
        return replace(embedded, stages_ms=fetch_ms | embedded.stages_ms)

    async def embed_golden(self, data: bytes) -> Embedded:
        """Embed the golden image: no limits, no cache, and a batch of one.

        In dynamic int8 the other images of a batch would change its embedding.
        """
        return await self._infer(data, self._counted(), golden=True)

    async def _infer(
        self,
        data: bytes,
        admission: Admission,
        deadline: float | None = None,
        golden: bool = False,
    ) -> Embedded:
        with admission:
            embedded = await self.batcher.submit(data, self._read_header, alone=golden, deadline=deadline)
        self._metrics.observe_stages(embedded.stages_ms)
        return embedded

    @contextlib.contextmanager
    def admit(self, deadline: float | None = None) -> Iterator[None]:
        """Hold a slot of the queue, from admission to the result. Raises as `check_capacity`."""
        self.check_capacity(deadline)
        with self._counted():
            yield

    @contextlib.contextmanager
    def _counted(self, release: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Count an image in flight; `release` frees the slot that it held before."""
        release()
        self.in_flight += 1
        self._metrics.queue_depth.inc()
        try:
            yield
        finally:
            self.in_flight -= 1
            self._metrics.queue_depth.dec()

    def check_capacity(self, deadline: float | None = None) -> None:
        """Raise Overloaded if the queue is full, or its images take longer than the deadline leaves."""
        if self.in_flight >= self._queue_limit:
            self._metrics.shed["queue"].inc()
            raise Overloaded("the queue is full", limit=self._queue_limit, retry_after_s=self.retry_after_s)
        # A deadline that has already passed is DeadlineExceeded, raised elsewhere.
        if deadline is not None and 0 < deadline - asyncio.get_running_loop().time() < self._wait_s:
            self._metrics.shed["deadline"].inc()
            raise Overloaded(
                "the queued images take longer than the deadline allows", retry_after_s=self.retry_after_s
            )

    @property
    def _wait_s(self) -> float:
        """Expected time until the images in flight are done."""
        return self.in_flight * self.batcher.seconds_per_image

    @property
    def retry_after_s(self) -> int:
        """Whole seconds until the images in flight should be done, from 1 to 60."""
        return min(60, max(1, math.ceil(self._wait_s)))

    def close(self) -> None:
        """Finish the images in flight."""
        self.batcher.close()
