"""Truthful health: a picture whose embedding is known goes the whole way, at start and ever again."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from service.errors import ServiceError, StartupError
from service.manifest import MIN_COSINE, load_canonical
from service.pipeline import Embedded

_log = logging.getLogger(__name__)


class Golden:
    """The model folder's canonical picture, and how it last came out."""

    def __init__(
        self, embed: Callable[[bytes], Awaitable[Embedded]], folder: Path, interval_s: float
    ) -> None:
        """Raises ManifestError."""
        self._embed = embed
        self._image, canonical = load_canonical(folder)
        self._wanted = np.asarray(canonical.embedding, dtype=np.float32)
        self._interval_s = interval_s
        self._answered = time.monotonic()
        self.right = True  # as far as it came out at all

    @property
    def late(self) -> bool:
        """No answer for longer than it is asked for: the service is stuck, or has very much to do."""
        return time.monotonic() - self._answered > 2 * self._interval_s

    async def check(self) -> None:
        """Raises StartupError where the embedding is off."""
        embedded = await self._embed(self._image)
        cosine = float(np.dot(embedded.embedding, self._wanted))
        self._answered, self.right = time.monotonic(), cosine > MIN_COSINE
        if not self.right:
            raise StartupError(
                f"the golden image's embedding is off: cosine {cosine:.5f} to the canonical one"
            )

    async def repeat(self) -> None:
        """At every interval, until it is cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.check()
            except ServiceError as error:
                _log.warning("no golden embedding: %s", error.detail)  # if that goes on, it is late
            except StartupError as error:
                _log.error("not serving: %s", error)
