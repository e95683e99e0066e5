"""Truthful health: a picture whose embedding is known goes the whole way, at start and ever again."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from service.errors import NotReady, ServiceError, StartupError
from service.inference.pipeline import Embedded
from service.manifest import MIN_COSINE, load_canonical

_log = logging.getLogger(__name__)
_SOONER = 10  # times as often, while something is wrong
_GIVEN_UP_AFTER = 5  # times in a row


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
        self._failures = 0  # since it last came out
        self.right = True  # as far as there was an answer

    @property
    def late(self) -> bool:
        """No answer for longer than it is asked for: the service is stuck, or has very much to do."""
        return time.monotonic() - self._answered > 2 * self._interval_s

    @property
    def given_up(self) -> bool:
        """The model failed on it again and again: a broken GPU stays so for as long as the process lives."""
        return self._failures >= _GIVEN_UP_AFTER

    async def check(self) -> None:
        """Raises StartupError where there is no embedding, or one that is off; NotReady while stopping."""
        try:
            embedded = await self._embed(self._image)
        except NotReady:  # stopping: it says nothing of the model
            raise
        except ServiceError as error:
            self._answered, self.right = time.monotonic(), False
            self._failures += 1
            raise StartupError(f"the golden image has no embedding: {error.detail}") from error
        self._failures = 0
        cosine = float(np.dot(embedded.embedding, self._wanted))
        self._answered, self.right = time.monotonic(), cosine > MIN_COSINE
        if not self.right:
            raise StartupError(
                f"the golden image's embedding is off: cosine {cosine:.5f} to the canonical one"
            )

    async def repeat(self) -> None:
        """At every interval, sooner while it is not right; until it is cancelled."""
        while True:
            await asyncio.sleep(self._interval_s if self.right else self._interval_s / _SOONER)
            try:
                await self.check()
            except NotReady as error:
                _log.warning("no golden embedding: %s", error.detail)  # if that goes on, it is late
            except StartupError as error:
                _log.error("not serving: %s", error)
