"""Everything that one worker process holds: created once at start and passed down."""

import asyncio
import contextlib
import math
import time
from typing import Literal, TypeVar

from service.errors import NotReady, Overloaded, ServiceError, SettingsError, UnknownModel
from service.fetch import Fetcher
from service.index import Hit, IndexWorker, Query, VectorIndex
from service.index.edge import EdgeIndex
from service.index.links import Link, ProcessLink, ThreadLink
from service.index.process import IndexProcess, announced_socket
from service.inference.budget import Budget
from service.inference.encoder import Encoder
from service.inference.model import EncoderFactory, Model
from service.manifest import Manifest, load_manifest
from service.metrics import Metrics, forget_dead_workers
from service.settings import Settings

T = TypeVar("T")
_COUNT_S = 1  # that a scrape of the metrics waits for the index


class Core:
    """Settings and manifests from construction on; everything else between `start` and `close`."""

    def __init__(self, settings: Settings, encoder_factory: EncoderFactory = Encoder) -> None:
        """Raises StartupError."""
        self.settings = settings
        self.manifests = [load_manifest(folder) for folder in settings.model_folders]
        names = [manifest.name for manifest in self.manifests]
        if len(set(names)) < len(names):
            raise SettingsError(f"UIE_MODEL: two models have the same name: {', '.join(names)}")
        self.stopping = False  # True: new requests are refused, those in flight continue
        self.fetcher: Fetcher | None = None  # None: fetching images by URL is off
        self.pixels = Budget(settings.max_pixels_in_flight)
        self._encoder_factory = encoder_factory
        self._started = False
        self._metrics: Metrics | None = None
        self._items_counted = -math.inf
        self._item_counts: dict[str, int] | None = None  # by domain; None before the first count
        self._counting: asyncio.Task[None] | None = None  # shared by concurrent scrapes
        self._models: dict[str, Model] = {}
        self._index: IndexWorker | None = None
        self._index_process: IndexProcess | None = None  # None: the supervisor's, or a server

    async def start(self) -> None:
        """Load the models, open the index, and embed the golden images. Raises StartupError."""
        settings, first = self.settings, self.manifest
        forget_dead_workers()
        self._metrics = metrics = Metrics()
        if settings.url_hosts:
            self.fetcher = Fetcher(settings, metrics)
        self._index = IndexWorker(
            self._link(),
            first.fingerprint,
            settings.queue_limit,
            metrics.shed.labels("", "index").inc,
        )
        await self._index.open()
        for folder, manifest in zip(settings.model_folders, self.manifests, strict=True):
            self._models[manifest.name] = Model(
                folder, manifest, settings, metrics, self.pixels, self._encoder_factory
            )
        for model in self._models.values():
            await model.start()
        self._started = True

    async def close(self) -> None:
        """Finish the work in flight, and flush the index."""
        self._started = False
        for model in self._models.values():
            await asyncio.to_thread(model.close)
        if self._index:
            await self._index.close()
        if self._index_process:
            await asyncio.to_thread(self._index_process.stop)

    def _link(self) -> Link:
        """Return the link to a server, to the supervisor's index process, or to a new one."""
        settings, first = self.settings, self.manifest
        if settings.qdrant_url is not None:
            return ThreadLink(lambda: open_index(settings, first))
        if socket := announced_socket():
            return ProcessLink(socket)
        self._index_process = IndexProcess.of(settings, first)
        return ProcessLink(self._index_process.socket)

    @property
    def serving(self) -> bool:
        """True if started, not stopping, and every model returns correct embeddings."""
        models = self._models.values()
        healthy = all(model.pipeline.batcher.alive and model.golden.matches for model in models)
        return self._started and not self.stopping and healthy

    @property
    def ready(self) -> bool:
        """True if serving, and every golden image has a recent result."""
        return self.serving and not any(model.golden.overdue for model in self._models.values())

    @property
    def alive(self) -> bool:
        """False if the process should be killed: it has started, and a model does not respond."""
        return not self._started or all(model.alive for model in self._models.values())

    @property
    def manifest(self) -> Manifest:
        """The first model's manifest: the index holds its embeddings, and it is the default."""
        return self.manifests[0]

    @property
    def metrics(self) -> Metrics:
        """The metrics. Raises NotReady, as do `index` and `model`."""
        return _started(self._metrics)

    @property
    def index(self) -> IndexWorker:
        """The gallery's index."""
        return _started(self._index)

    def model(self, name: str | None = None) -> Model:
        """Return the model of this name, by default the first one. Raises UnknownModel."""
        served = [manifest.name for manifest in self.manifests]
        if name is not None and name not in served:
            raise UnknownModel(
                f"the model {name[:100]!r} is not served; served: {', '.join(served)}", served=served
            )
        return _started(self._models.get(name or served[0]))

    def too_many_bytes(self, reason: Literal["bytes", "bulk"]) -> Overloaded:
        """Count and return the error for a body that exceeds the limit on bytes in flight.

        Bulk requests have a share of that limit.
        """
        self.metrics.shed.labels("", reason).inc()
        pipelines = [model.pipeline for model in self._models.values()]
        return Overloaded(
            f"too many bytes of {'bulk requests' if reason == 'bulk' else 'requests'} in flight",
            limit=self.settings.max_bytes_in_flight // (2 if reason == "bulk" else 1),
            retry_after_s=max(pipeline.retry_after_s(in_bulk=True) for pipeline in pipelines),
        )

    async def item_counts(self, max_age_s: float = 5) -> dict[str, int] | None:
        """Return the items by domain, or None before the first count.

        They are at most `max_age_s` old unless the index does not respond in time: metrics must work when
        something else is down. Counting 50,000 items holds Python's lock for 10 ms.
        """
        counting = self._counting is not None and not self._counting.done()
        if not counting and time.monotonic() - self._items_counted >= max_age_s:
            self._items_counted = time.monotonic()
            self._counting = asyncio.create_task(self._count_items())
        if self._counting:
            await asyncio.wait([self._counting], timeout=_COUNT_S)
        return self._item_counts

    async def _count_items(self) -> None:
        with contextlib.suppress(ServiceError):
            self._item_counts = await self.index.domains()

    def count_request(self, route: str, status: int, duration_s: float) -> None:
        """Count a response. Before the start there are no metrics."""
        if self._metrics:
            self._metrics.count_request(route, status, duration_s)

    async def timed_search(self, query: Query) -> tuple[list[Hit], float]:
        """Return the hits and the milliseconds of the search, including the wait for the index."""
        start = time.perf_counter()
        hits = await self.index.search(query)
        search_ms = (time.perf_counter() - start) * 1e3
        self.metrics.stages.labels(self.manifest.name, "search").observe(search_ms / 1e3)
        return hits, search_ms


def open_index(settings: Settings, manifest: Manifest, create: bool = True) -> VectorIndex:
    """Open the first model's index; `create` it if there is none. Raises StartupError."""
    properties = manifest.dim, manifest.fingerprint, settings.index_quantization, create
    if settings.qdrant_url is None:
        return EdgeIndex(settings.index_folder, *properties)
    # Imported here because loading the client takes a second.
    from qdrant_client import QdrantClient

    from service.index.server import ServerIndex

    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    client = QdrantClient(url=settings.qdrant_url, api_key=key, timeout=10)
    return ServerIndex(client, settings.collection, *properties)


def _started(part: T | None) -> T:
    if part is None:
        raise NotReady("the service is starting")
    return part
