"""The path of an image: bytes -> admission, cache -> decode, batch, infer -> embedding and stage times."""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from service.errors import Overloaded
from service.inference.batching import Batcher
from service.inference.budget import Budget
from service.inference.cache import Cache
from service.inference.encoder import Encoder
from service.inference.images import read_header
from service.inference.work import Embedded
from service.metrics import ModelMetrics
from service.settings import Settings

T = TypeVar("T")
Admission = contextlib.AbstractContextManager[None]


class Pipeline:
    """Admits images, looks them up in the cache and counts them; the batcher decodes and infers."""

    def __init__(self, encoder: Encoder, settings: Settings, metrics: ModelMetrics, pixels: Budget) -> None:
        self._metrics = metrics
        self._queue_limit = settings.queue_limit
        self.in_flight = 0  # images
        self.discards = 0
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
        # Bulk requests together keep all threads busy without filling the queue that other requests wait in.
        concurrent = settings.threads + settings.lanes * settings.max_batch
        self.bulk_width = min(2 * concurrent, max(1, settings.queue_limit // 2))
        self._bulk_slots = asyncio.Semaphore(self.bulk_width)
        self._bulk_waiting = 0  # images of bulk requests that wait for a slot

    async def embed(
        self, data: bytes, deadline: float | None = None, admission: Admission | None = None
    ) -> Embedded:
        """Embed an encoded image. `deadline` is the client's, in the event loop's time.

        `admission` is held while the image is in flight; without it the image may be refused.
        Raises UndecodableImage, ImageTooLarge, EncoderFailed, or Overloaded.
        """

        def infer(data: bytes) -> Coroutine[Any, Any, Embedded]:
            # Refused before the inference starts: other requests may wait for it, and get its errors.
            if admission is None:
                self.check_capacity(deadline if self._cache is None else None)
            return self._infer(data, admission or self.counted(), deadline)

        if self._cache is None:
            return await infer(data)
        embedded, lookup = await self._cache.get(data, infer)
        self._metrics.cache[lookup].inc()
        return replace(embedded, cache=lookup, stages_ms={} if lookup == "hit" else embedded.stages_ms)

    async def embed_fetched(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        deadline: float | None = None,
        admission: Admission | None = None,
    ) -> Embedded:
        """Embed an image that is admitted before it is fetched. Raises the errors of `fetch` and `embed`."""
        with contextlib.ExitStack() as slot:
            slot.enter_context(admission or self.admit(deadline))
            start = time.perf_counter()
            data = await fetch()
            fetch_ms = {"fetch": (time.perf_counter() - start) * 1e3}
            self._metrics.observe_stages(fetch_ms)
            # The inference takes the slot over: with a cache it may outlive this request.
            embedded = await self.embed(data, deadline, self.counted(slot.close))
        return replace(embedded, stages_ms=fetch_ms | embedded.stages_ms)

    def discard(self) -> None:
        """Forget all results, those in flight included: they may be wrong."""
        self.discards += 1
        if self._cache is not None:
            self._cache.clear()

    async def embed_golden(self, data: bytes) -> Embedded:
        """Embed the golden image: no limits, no cache, and a batch of one.

        In dynamic int8 the other images of a batch would change its embedding.
        """
        return await self._infer(data, self.counted(), golden=True)

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
        with self.counted():
            yield

    @contextlib.contextmanager
    def counted(self, release: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Count an image in flight that is always admitted; `release` frees the slot that it held before."""
        release()
        self.in_flight += 1
        self._metrics.queue_depth.inc()
        try:
            yield
        finally:
            self.in_flight -= 1
            self._metrics.queue_depth.dec()

    def check_capacity(self, deadline: float | None = None, in_bulk: bool = False) -> None:
        """Raise Overloaded if the queue is full, or its images take longer than the deadline leaves.

        `in_bulk` includes the images of bulk requests that are not in flight yet.
        """
        if self.in_flight >= self._queue_limit:
            self._metrics.shed["queue"].inc()
            raise Overloaded("the queue is full", limit=self._queue_limit, retry_after_s=self.retry_after_s())
        self.check_deadline(deadline, in_bulk)

    def check_deadline(self, deadline: float | None, in_bulk: bool) -> None:
        """Raise Overloaded if the images in the queue take longer than the deadline leaves."""
        # A deadline that has already passed is DeadlineExceeded, raised elsewhere.
        if deadline is not None and 0 < deadline - asyncio.get_running_loop().time() < self._wait_s(in_bulk):
            self._metrics.shed["deadline"].inc()
            raise Overloaded(
                "the queued images take longer than the deadline allows",
                retry_after_s=self.retry_after_s(in_bulk),
            )

    async def in_bulk(self, embeddings: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """Run the coroutines that embed the images of a bulk request, in order. Returns their results.

        All bulk requests share the slots, and each waits for a single one: they alternate, so that a small
        request does not wait for all images of a large one. An error cancels the others.
        """
        tasks: list[asyncio.Task[T]] = []
        self._bulk_waiting += len(embeddings)
        try:
            async with asyncio.TaskGroup() as group:
                for embedding in embeddings:
                    await self._bulk_slots.acquire()
                    tasks.append(group.create_task(embedding))
                    tasks[-1].add_done_callback(lambda _: self._bulk_slots.release())
                    self._bulk_waiting -= 1
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            for embedding in embeddings[len(tasks) :]:
                embedding.close()
                self._bulk_waiting -= 1
        return [task.result() for task in tasks]

    def _wait_s(self, in_bulk: bool) -> float:
        """Expected time until the images in flight are done, `in_bulk` also those that wait for a slot."""
        return (self.in_flight + in_bulk * self._bulk_waiting) * self.batcher.seconds_per_image

    def retry_after_s(self, in_bulk: bool = False) -> int:
        """Whole seconds until a request should be admitted, from 1 to 60."""
        return min(60, max(1, math.ceil(self._wait_s(in_bulk))))

    def close(self) -> None:
        """Finish the images in flight."""
        self.batcher.close()
