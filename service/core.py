"""Everything that one worker process holds, made once at start and passed down."""

import asyncio
import time
from typing import TypeVar

from service.encoder import Encoder
from service.errors import NotReady
from service.golden import Golden
from service.index import Hit, IndexWorker, Query, open_index
from service.manifest import Manifest
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.settings import Settings

T = TypeVar("T")
_HANGS_AFTER = 10  # intervals of the golden image without any batch


class Core:
    """Settings and manifest from the beginning; the rest between `start` and `close`."""

    def __init__(self, settings: Settings, manifest: Manifest) -> None:
        self.settings = settings
        self.manifest = manifest
        self._started = False
        self.stopping = False
        self._metrics: Metrics | None = None
        self._pipeline: Pipeline | None = None
        self._index: IndexWorker | None = None
        self._golden: Golden | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the model, open the index, and be ready once a golden image went the whole way.

        Raises StartupError.
        """
        settings, manifest = self.settings, self.manifest
        encoder = Encoder(
            settings.model_folder, manifest, settings.provider, settings.threads, settings.lanes
        )
        self._metrics = Metrics()
        self._metrics.model_info.labels(
            manifest.name, manifest.fingerprint, settings.provider, manifest.precision
        ).set(1)
        self._index = IndexWorker(
            lambda: open_index(settings, manifest.dim, manifest.fingerprint),
            manifest.fingerprint,
        )
        self._pipeline = Pipeline(encoder, settings, self._metrics)
        self._golden = Golden(self._pipeline.embed_golden, settings.model_folder, settings.golden_interval_s)
        await self._golden.check()
        self._watch = asyncio.create_task(self._golden.repeat())
        self._started = True

    def stop_admission(self) -> None:
        """From here on what comes is refused; what is in flight goes on."""
        self.stopping = True

    def close(self) -> None:
        """Finish what is in flight, flush the index."""
        self._started = False
        if self._watch:
            self._watch.get_loop().call_soon_threadsafe(self._watch.cancel)
        if self._pipeline:
            self._pipeline.close()
        if self._index:
            self._index.close()

    @property
    def serving(self) -> bool:
        """Started, not stopping, and what it answers is right."""
        if not self._started or self.stopping:
            return False
        return self.pipeline.batcher.alive and _present(self._golden).right

    @property
    def ready(self) -> bool:
        """Serving, and the golden image came out not long ago."""
        return self.serving and not _present(self._golden).late

    @property
    def alive(self) -> bool:
        """Not in need of being killed: starting, stopping, or its threads answer."""
        if not self._started:
            return True
        # The golden image comes by even where nobody else does.
        longest_s = _HANGS_AFTER * self.settings.golden_interval_s
        return self.pipeline.batcher.alive and self.pipeline.batcher.silence_s < longest_s

    @property
    def metrics(self) -> Metrics:
        """Raises NotReady, as do the two below."""
        return _present(self._metrics)

    @property
    def pipeline(self) -> Pipeline:
        """From encoded image to embedding."""
        return _present(self._pipeline)

    @property
    def index(self) -> IndexWorker:
        """The gallery."""
        return _present(self._index)

    async def timed_search(self, query: Query) -> tuple[list[Hit], float]:
        """The hits, and the milliseconds that the index took, the wait for its thread included."""
        start = time.perf_counter()
        hits = await self.index.search(query)
        search_ms = (time.perf_counter() - start) * 1e3
        self.metrics.observe_stages({"search": search_ms})
        return hits, search_ms


def _present(part: T | None) -> T:
    if part is None:
        raise NotReady("the service is starting")
    return part
