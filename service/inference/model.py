"""One served model: its manifest, its images' path, and the picture that tells its health."""

import asyncio
from pathlib import Path

from service.inference.budget import Budget
from service.inference.encoder import Encoder
from service.inference.golden import Golden
from service.inference.pipeline import Pipeline
from service.manifest import Manifest
from service.metrics import Metrics
from service.settings import Settings

_HANGS_AFTER = 10  # intervals of the golden image without any batch


class Model:
    """Has a queue, threads and a cache of its own; pixels in flight are bounded over all models."""

    def __init__(
        self, folder: Path, manifest: Manifest, settings: Settings, metrics: Metrics, pixels: Budget
    ) -> None:
        """Raises StartupError."""
        encoder = Encoder(
            folder, manifest, settings.provider, settings.threads, settings.lanes, settings.max_batch
        )
        self.manifest = manifest
        self.pipeline = Pipeline(encoder, settings, metrics.of(manifest.name), pixels)
        self.golden = Golden(self.pipeline.embed_golden, folder, settings.golden_interval_s)
        self._interval_s = settings.golden_interval_s
        self._watch: asyncio.Task[None] | None = None
        metrics.model_info.labels(
            manifest.name, manifest.fingerprint, settings.provider, manifest.precision
        ).set(1)

    async def start(self) -> None:
        """Be ready once a golden image went the whole way. Raises StartupError."""
        await self.golden.check()
        self._watch = asyncio.create_task(self.golden.repeat())

    def close(self) -> None:
        """Finish what is in flight."""
        if self._watch:
            self._watch.get_loop().call_soon_threadsafe(self._watch.cancel)
        self.pipeline.close()

    @property
    def right(self) -> bool:
        """It can answer, and what it answers is right."""
        return self.pipeline.batcher.alive and self.golden.right

    @property
    def alive(self) -> bool:
        """Its threads answer, and not always with a failure."""
        # The golden image comes by even where nobody else does.
        silent = self.pipeline.batcher.stalled_s >= _HANGS_AFTER * self._interval_s
        return self.pipeline.batcher.alive and not silent and not self.golden.given_up
