"""What Prometheus sees at /metrics, summed over the worker processes."""

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.registry import Collector

_STAGE_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_STAGES = ("fetch", "decode", "queue", "infer")  # an image's
_PID = re.compile(r"_(\d+)\.db$")  # in the names of the files that worker processes count in
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """All metrics of the service, in a registry of their own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._domains: set[str] = set()  # that had items
        self._routes: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._requests = Counter("uie_requests", "Answered requests.", ["route", "status"], registry=registry)
        self._durations = Histogram(
            "uie_request_duration_seconds",
            "From a request's head to its answer's.",
            ["route"],
            buckets=_STAGE_S,
            registry=registry,
        )
        self.stages = Histogram(
            "uie_stage_duration_seconds",
            "Time in a stage: fetch, decode, queue, infer (of the whole batch), search.",
            ["model", "stage"],
            buckets=_STAGE_S,
            registry=registry,
        )
        self.batch_images = Histogram(
            "uie_batch_images", "Images in an inference.", ["model"], buckets=_IMAGES, registry=registry
        )
        self.queue_depth = Gauge(
            "uie_queue_depth_images",
            "Images in the service: being fetched, decoding, waiting, or in the session.",
            ["model"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.shed = Counter(
            "uie_shed",
            "Requests and images refused for lack of room, by why: queue, bytes, index, deadline.",
            ["model", "reason"],
            registry=registry,
        )
        self.dropped = Counter(
            "uie_dropped_images",
            "Images whose deadline passed or whose client went (gone), dropped before this stage's work.",
            ["model", "stage", "reason"],
            registry=registry,
        )
        self.cache = Counter(
            "uie_cache_lookups",
            "Images looked up in the cache: hit, miss, coalesced (waited for the same image of another).",
            ["model", "result"],
            registry=registry,
        )
        self.fetches = Counter(
            "uie_fetches",
            "Images by URL: fetched, refused (where we do not go), failed (no image came from there).",
            ["result"],
            registry=registry,
        )
        self.index_items = Gauge(
            "uie_index_items",
            "Items in the index, by domain.",
            ["domain"],
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.model_info = Gauge(
            "uie_model_info",
            "Always 1; the labels say which model is served.",
            ["model", "fingerprint", "provider", "precision"],
            multiprocess_mode="livemax",
            registry=registry,
        )

    def count_request(self, route: str, status: int, duration_s: float) -> None:
        """Of the routes' patterns, so that the series are few."""
        known = self._routes.get((route, status))
        if known is None:  # looked up once: a lookup by labels costs more than what it counts
            known = self._requests.labels(route, status), self._durations.labels(route)
            self._routes[route, status] = known
        known[0].inc()
        known[1].observe(duration_s)

    def set_index_items(self, counts: Mapping[str, int]) -> None:
        """By domain; one that has none any more is 0."""
        for domain in self._domains.union(counts):
            self.index_items.labels(domain).set(counts.get(domain, 0))
        self._domains |= counts.keys()

    def of(self, model: str) -> "ModelMetrics":
        """The series of one model."""
        return ModelMetrics(self, model)


class Processes(Collector):
    """What the living workers use, together: the library's own collector knows only the one that is asked."""

    def collect(self) -> Iterator[Metric]:
        """One sample each."""
        cpu_s = resident_bytes = open_fds = 0.0
        for pid in _worker_pids():
            with contextlib.suppress(psutil.Error):  # it died
                process = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    cpu_s += times.user + times.system
                    resident_bytes += process.memory_info().rss
                    open_fds += process.num_fds()
        yield CounterMetricFamily("process_cpu_seconds", "User and system CPU time of the workers.", cpu_s)
        yield GaugeMetricFamily(
            "process_resident_memory_bytes",
            "Memory of the workers; what they share counts in each.",
            resident_bytes,
        )
        yield GaugeMetricFamily("process_open_fds", "Open files and connections of the workers.", open_fds)


def forget_dead_workers() -> None:
    """What a worker that died had in flight is gone, but its gauges would say for ever that it is there."""
    for pid in _worker_pids():
        if not psutil.pid_exists(pid):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _worker_pids() -> set[int]:
    """Of all workers, dead ones among them. Empty where there is one process that counts for itself."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    files = Path(folder).iterdir() if folder else []
    return {int(found[1]) for file in files if (found := _PID.search(file.name))}


class ModelMetrics:
    """Looked up once, as for the routes."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._stages = {stage: metrics.stages.labels(model, stage) for stage in _STAGES}
        self.batch_images = metrics.batch_images.labels(model)
        self.queue_depth = metrics.queue_depth.labels(model)
        self.shed = {reason: metrics.shed.labels(model, reason) for reason in ("queue", "deadline")}
        self._dropped = {
            each: metrics.dropped.labels(model, *each)
            for each in itertools.product(("decode", "infer"), ("deadline", "gone"))
        }
        self.cache = {how: metrics.cache.labels(model, how) for how in ("hit", "miss", "coalesced")}

    def count_dropped(self, stage: str, reason: str) -> None:
        """An image, before this stage."""
        self._dropped[stage, reason].inc()

    def observe_stages(self, stages_ms: Mapping[str, float]) -> None:
        """Milliseconds by stage."""
        for stage, ms in stages_ms.items():
            self._stages[stage].observe(ms / 1e3)
