"""Everything that one worker process holds, made once at start and passed down."""

import math
import time
from typing import TypeVar

from service.errors import NotReady, Overloaded, SettingsError, UnknownModel
from service.fetch import Fetcher
from service.index import Hit, IndexWorker, Query, open_index
from service.inference.budget import Budget
from service.inference.model import Model
from service.manifest import Manifest, load_manifest
from service.metrics import Metrics, forget_dead_workers
from service.settings import Settings

T = TypeVar("T")

_COUNT_EVERY_S = 5  # 50,000 items take 10 ms of Python's lock


class Core:
    """Settings and manifests from the beginning; the rest between `start` and `close`."""

    def __init__(self, settings: Settings) -> None:
        """Raises StartupError."""
        self.settings = settings
        self.manifests = [load_manifest(folder) for folder in settings.model_folders]
        names = [manifest.name for manifest in self.manifests]
        if len(set(names)) < len(names):
            raise SettingsError(f"UIE_MODEL: two models have the same name: {', '.join(names)}")
        self.stopping = False
        self._started = False
        self.fetcher: Fetcher | None = None  # None: images by URL are off
        self._metrics: Metrics | None = None
        self._counted = -math.inf  # when the index's items were
        self._models: dict[str, Model] = {}
        self._index: IndexWorker | None = None

    async def start(self) -> None:
        """Load the models, open the index, and be ready once golden images went the whole way.

        Raises StartupError.
        """
        settings, manifest = self.settings, self.manifest
        forget_dead_workers()
        self._metrics = metrics = Metrics()
        if settings.url_hosts:
            self.fetcher = Fetcher(settings, metrics)
        self._index = IndexWorker(
            lambda: open_index(settings, manifest.dim, manifest.fingerprint),
            manifest.fingerprint,
            settings.queue_limit,
            metrics.shed.labels("", "index").inc,
        )
        pixels = Budget(settings.max_pixels_in_flight)
        for folder, one in zip(settings.model_folders, self.manifests, strict=True):
            self._models[one.name] = Model(folder, one, settings, metrics, pixels)
        for model in self._models.values():
            await model.start()
        self._started = True

    def stop_admission(self) -> None:
        """From here on what comes is refused; what is in flight goes on."""
        self.stopping = True

    def close(self) -> None:
        """Finish what is in flight, flush the index."""
        self._started = False
        for model in self._models.values():
            model.close()
        if self._index:
            self._index.close()

    @property
    def serving(self) -> bool:
        """Started, not stopping, and what it answers is right."""
        return self._started and not self.stopping and all(one.right for one in self._models.values())

    @property
    def ready(self) -> bool:
        """Serving, and the golden images came out not long ago."""
        return self.serving and not any(one.golden.late for one in self._models.values())

    @property
    def alive(self) -> bool:
        """Not in need of being killed: starting, stopping, or its threads answer."""
        return not self._started or all(one.alive for one in self._models.values())

    @property
    def manifest(self) -> Manifest:
        """Of the first model: the index holds its embeddings, and it answers where none is named."""
        return self.manifests[0]

    @property
    def metrics(self) -> Metrics:
        """Raises NotReady, as do those below."""
        return _present(self._metrics)

    @property
    def index(self) -> IndexWorker:
        """The gallery."""
        return _present(self._index)

    def model(self, name: str | None = None) -> Model:
        """The first one, where none is named. Raises UnknownModel."""
        served = [manifest.name for manifest in self.manifests]
        if name is not None and name not in served:
            raise UnknownModel("no such model is served here", served=served)
        return _present(self._models.get(name or served[0]))

    def no_room_for_bytes(self) -> Overloaded:
        """The error, counted, for a body that would be too much beside the others."""
        self.metrics.shed.labels("", "bytes").inc()
        return Overloaded(
            "there is no room for more bytes",
            limit=self.settings.max_bytes_in_flight,
            retry_after_s=max(one.pipeline.retry_after_s for one in self._models.values()),
        )

    async def count_items(self) -> None:
        """By domain, into the metrics; every few seconds at most, however often those are asked for."""
        if time.monotonic() - self._counted >= _COUNT_EVERY_S:
            self._counted = time.monotonic()
            self.metrics.set_index_items(await self.index.domains())

    async def timed_search(self, query: Query) -> tuple[list[Hit], float]:
        """The hits, and the milliseconds that the index took, the wait for its thread included."""
        start = time.perf_counter()
        hits = await self.index.search(query)
        search_ms = (time.perf_counter() - start) * 1e3
        self.metrics.stages.labels(self.manifest.name, "search").observe(search_ms / 1e3)
        return hits, search_ms


def _present(part: T | None) -> T:
    if part is None:
        raise NotReady("the service is starting")
    return part
