"""One served model: its manifest, its pipeline and its golden image."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from service.inference.budget import Budget
from service.inference.encoder import Encoder
from service.inference.golden import Golden
from service.inference.pipeline import Pipeline
from service.manifest import Manifest
from service.metrics import Metrics, ModelMetrics
from service.settings import Settings

_log = logging.getLogger(__name__)
_STALLED_AFTER = 10  # intervals of the golden image without any batch

# Arguments: as of `Encoder`.
EncoderFactory = Callable[[Path, Manifest, str, int, int, int], Encoder]


class Model:
    """Has its own queue, threads and cache. The limit on pixels in flight is shared by all models."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        settings: Settings,
        metrics: Metrics,
        pixels: Budget,
        encoder_factory: EncoderFactory = Encoder,
    ) -> None:
        """Raises StartupError."""
        self.encoder = encoder_factory(
            folder, manifest, settings.provider, settings.threads, settings.lanes, settings.max_batch
        )
        self.manifest = manifest
        if size := self.encoder.fixed_batch:
            _log.warning(
                "%s was exported with a fixed batch of %d: larger batches are not made", folder, size
            )
            settings = settings.model_copy(update={"max_batch": min(size, settings.max_batch)})
        self.max_batch = settings.max_batch
        self.pipeline = Pipeline(self.encoder, settings, ModelMetrics(metrics, manifest.name), pixels)
        self.golden = Golden(
            self.pipeline.embed_golden, folder, settings.golden_interval_s, self.pipeline.discard
        )
        self._interval_s = settings.golden_interval_s
        self._checks: asyncio.Task[None] | None = None
        metrics.model_info.labels(
            manifest.name, manifest.fingerprint, settings.provider, manifest.precision
        ).set(1)

    async def start(self) -> None:
        """Embed the golden image once, then periodically. Raises StartupError."""
        await self.golden.check()
        self._checks = asyncio.create_task(self.golden.repeat())

    def close(self) -> None:
        """Finish the images in flight."""
        if self._checks:
            self._checks.get_loop().call_soon_threadsafe(self._checks.cancel)
        self.pipeline.close()

    @property
    def alive(self) -> bool:
        """True if its threads respond and not every inference fails."""
        # The golden image makes a batch even if there is no other traffic.
        silent = self.pipeline.batcher.stalled_s >= _STALLED_AFTER * self._interval_s
        return self.pipeline.batcher.alive and not silent and not self.golden.failing
