"""An image's path: bytes -> room, cache -> decoded, batched, inferred -> embedding, with what each took."""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.errors import Overloaded
from service.inference.batching import Batcher, Callbacks, Capacity, Decode
from service.inference.budget import Budget
from service.inference.cache import Cache, How
from service.inference.encoder import Encoder
from service.inference.images import decode
from service.metrics import ModelMetrics
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Embedded:
    """One image's embedding and the milliseconds it took, by stage."""

    embedding: NDArray[np.float32]  # (dim,), unit norm
    stages_ms: dict[str, float]  # (fetch,) decode, queue, infer; without the last three it was known
    cache: How | None = None  # None: there is no cache


class Pipeline:
    """What bounds the work, remembers it and counts it; the batcher does it."""

    def __init__(self, encoder: Encoder, settings: Settings, metrics: ModelMetrics, pixels: Budget) -> None:
        self._metrics = metrics
        self._queue_limit = settings.queue_limit
        self._in_flight = 0
        self._cache: Cache[Embedded] | None = Cache(settings.cache_items) if settings.cache_items else None
        self._decode = partial(
            decode,
            preprocessing=encoder.manifest.preprocessing,
            max_pixels=settings.max_image_pixels,
        )
        self._pixels = pixels
        self.batcher = Batcher(
            encoder.encode,
            Capacity(settings.threads, settings.lanes, settings.max_batch),
            Callbacks(metrics.batch_images.observe, metrics.count_dropped),
        )
        # A bulk request feeds the lanes without filling the queue that others wait in.
        at_once = settings.threads + settings.lanes * settings.max_batch
        self.bulk_width = min(2 * at_once, max(1, settings.queue_limit // 2))

    async def embed(self, data: bytes, deadline: float | None = None) -> Embedded:
        """`deadline` is the client's, in the event loop's time.

        Raises UndecodableImage, ImageTooLarge, Overloaded, EncoderFailed.
        """
        return await self._known_or(data, partial(self._embed_if_room, deadline=deadline))

    async def _known_or(self, data: bytes, make: Callable[[bytes], Awaitable[Embedded]]) -> Embedded:
        if self._cache is None:
            return await make(data)
        embedded, how = await self._cache.get(data, make)
        self._metrics.cache[how].inc()
        return replace(embedded, cache=how, stages_ms={} if how == "hit" else embedded.stages_ms)

    async def _embed_if_room(self, data: bytes, deadline: float | None) -> Embedded:
        # Who waits for the same image has a deadline of its own, and shares this one's errors.
        self.require_room(deadline if self._cache is None else None)
        return await self._bounded(data, deadline)

    async def _bounded(self, data: bytes, deadline: float | None) -> Embedded:
        bounded = partial(self._decode, holding=self._pixels.holding)
        return await self._through(data, bounded, deadline=deadline)

    async def embed_golden(self, data: bytes) -> Embedded:
        """Past all limits and the cache, and alone: in dynamic int8 a batch's other images matter."""
        return await self._through(data, self._decode, alone=True)

    async def _through(
        self, data: bytes, decode: Decode, alone: bool = False, deadline: float | None = None
    ) -> Embedded:
        with self._counted():
            encoded = await self.batcher.submit(data, decode, alone, deadline)
        stages_ms = {"decode": encoded.decode_ms, "queue": encoded.queue_ms, "infer": encoded.infer_ms}
        self._metrics.observe_stages(stages_ms)
        return Embedded(encoded.embedding, stages_ms)

    async def embed_fetched(
        self, fetch: Callable[[], Awaitable[bytes]], deadline: float | None = None
    ) -> Embedded:
        """An image has its place from before its bytes are there. Raises what `fetch` and `embed` raise."""
        self.require_room(deadline)
        start = time.perf_counter()
        with contextlib.ExitStack() as place:
            place.enter_context(self._counted())
            data = await fetch()
            fetch_ms = {"fetch": (time.perf_counter() - start) * 1e3}
            self._metrics.observe_stages(fetch_ms)

            async def in_its_place(data: bytes) -> Embedded:
                place.close()  # and it is counted again before anybody else has a turn
                return await self._bounded(data, deadline)

            embedded = await self._known_or(data, in_its_place)
        return replace(embedded, stages_ms=fetch_ms | embedded.stages_ms)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._in_flight += 1
        self._metrics.queue_depth.inc()
        try:
            yield
        finally:
            self._in_flight -= 1
            self._metrics.queue_depth.dec()

    def require_room(self, deadline: float | None = None) -> None:
        """Raises Overloaded where another image would not be taken, or not be had before the deadline."""
        if self._in_flight >= self._queue_limit:
            self._metrics.shed["queue"].inc()
            raise Overloaded(
                "there is no room for more images", limit=self._queue_limit, retry_after_s=self.retry_after_s
            )
        # What is past its deadline already is another error, that the route raises.
        if deadline is not None and 0 < deadline - asyncio.get_running_loop().time() < self._wait_s:
            self._metrics.shed["deadline"].inc()
            raise Overloaded(
                "the images that are here take longer than the deadline leaves",
                retry_after_s=self.retry_after_s,
            )

    @property
    def _wait_s(self) -> float:
        """Until what is here now will have been done."""
        return self._in_flight * self.batcher.seconds_per_image

    @property
    def retry_after_s(self) -> int:
        """The same for clients, from 1 to 60."""
        return min(60, max(1, math.ceil(self._wait_s)))

    def close(self) -> None:
        """Finish what is in flight."""
        self.batcher.close()
