"""Health by the golden image: its embedding is compared with the canonical one at start and periodically."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from service.errors import NotReady, ServiceError, StartupError
from service.inference.work import Embedded
from service.manifest import MIN_COSINE, load_canonical

_log = logging.getLogger(__name__)
_RETRY_FACTOR = 10  # checks are this much more frequent while the embedding is wrong
_MAX_FAILURES = 5  # consecutive ones


class Golden:
    """The model folder's canonical image, and the result of its latest inference."""

    def __init__(
        self,
        embed: Callable[[bytes], Awaitable[Embedded]],
        folder: Path,
        interval_s: float,
        discard: Callable[[], None] = lambda: None,
    ) -> None:
        """`discard` is called if results since the last match may be wrong. Raises ManifestError."""
        self._embed = embed
        self._image, canonical = load_canonical(folder)
        self._expected = np.asarray(canonical.embedding, dtype=np.float32)
        self._interval_s = interval_s
        self._discard = discard
        self._matched_at: datetime | None = None
        self._last_result = time.monotonic()
        self._failures = 0  # consecutive
        self.matches = True  # the latest result, if there was one

    @property
    def overdue(self) -> bool:
        """True if the latest result is too old: the service hangs, or has very much to do."""
        return time.monotonic() - self._last_result > 2 * self._interval_s

    @property
    def failing(self) -> bool:
        """True if the latest inferences all failed: a broken GPU stays broken until the process restarts."""
        return self._failures >= _MAX_FAILURES

    async def check(self) -> None:
        """Raise StartupError if the embedding is missing or wrong, NotReady while the service stops."""
        try:
            embedded = await self._embed(self._image)
        except NotReady:  # stopping: this says nothing about the model
            raise
        except ServiceError as error:
            self._failures += 1
            self._record(matches=False)
            raise StartupError(f"embedding the golden image failed: {error.detail}") from error
        self._failures = 0
        cosine = float(np.dot(embedded.embedding, self._expected))
        self._record(cosine > MIN_COSINE)
        if not self.matches:
            raise StartupError(
                f"the golden image's embedding is wrong: cosine {cosine:.5f} to the model folder's"
            )

    def _record(self, matches: bool) -> None:
        now = datetime.now(UTC)
        if not (matches and self.matches):
            self._discard()
        if matches != self.matches and self._matched_at:
            start, end = (moment.isoformat() for moment in (self._matched_at, now))
            _log.warning(
                "embeddings from %s to %s may be wrong; `python -m service indexed --from %s --to %s` lists "
                "the items that were indexed then",
                *(start, end, start, end),
            )
        if matches:
            self._matched_at = now
        self._last_result, self.matches = time.monotonic(), matches

    async def repeat(self) -> None:
        """Check at every interval, and more often while the embedding is wrong, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s if self.matches else self._interval_s / _RETRY_FACTOR)
            try:
                await self.check()
            except NotReady as error:
                _log.warning("no embedding of the golden image: %s", error.detail)
            except StartupError as error:
                _log.error("not serving: %s", error)
