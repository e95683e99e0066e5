"""Prometheus metrics at /metrics, summed over the worker processes."""

import contextlib
import heapq
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.registry import Collector

_STAGE_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_STAGES = ("fetch", "decode", "queue", "infer")  # of an image
_PID = re.compile(r"_(\d+)\.db$")  # in the names of the metric files of worker processes
_LARGEST = 20  # domains with a separate series
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """All metrics of the service, in a separate registry."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self._routes: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._requests = counter("uie_requests", "Completed requests.", ["route", "status"])
        self._durations = histogram(
            "uie_request_duration_seconds",
            "Time from a request's headers to its response's.",
            ["route"],
            buckets=_STAGE_S,
        )
        self.stages = histogram(
            "uie_stage_duration_seconds",
            "Time in a stage: fetch, decode, queue, infer (of the complete batch), search.",
            ["model", "stage"],
            buckets=_STAGE_S,
        )
        self.batch_images = histogram("uie_batch_images", "Images per inference.", ["model"], buckets=_IMAGES)
        self.queue_depth = gauge(
            "uie_queue_depth_images",
            "Images in flight: being fetched, waiting, or in decoding or inference.",
            ["model"],
            multiprocess_mode="livesum",
        )
        self.shed = counter(
            "uie_shed",
            "Requests refused with 429, by the limit: queue, bytes, bulk, index, deadline.",
            ["model", "reason"],
        )
        self.dropped = counter(
            "uie_dropped_images",
            "Images dropped before a stage: deadline exceeded (deadline) or client disconnected (gone).",
            ["model", "stage", "reason"],
        )
        self.cache = counter(
            "uie_cache_lookups",
            "Cache lookups: hit, miss, or coalesced with a concurrent request for the same image.",
            ["model", "result"],
        )
        self.fetches = counter(
            "uie_fetches",
            "Images by URL: fetched, refused (URL or address not allowed), failed (no image received).",
            ["result"],
        )
        self.model_info = gauge(
            "uie_model_info",
            "Always 1; the labels describe a served model.",
            ["model", "fingerprint", "provider", "precision"],
            multiprocess_mode="livemax",
        )

    def count_request(self, route: str, status: int, duration_s: float) -> None:
        """Count a request; `route` is the pattern, which bounds the number of series."""
        series = self._routes.get((route, status))
        if series is None:  # cached, because a lookup by labels costs more than counting
            series = self._requests.labels(route, status), self._durations.labels(route)
            self._routes[route, status] = series
        series[0].inc()
        series[1].observe(duration_s)


class IndexItems(Collector):
    """The size of the index. Clients choose the names of domains, so only the largest have a series."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        """`counts` are the items by domain."""
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Yield one metric per number."""
        counts = self._counts
        yield GaugeMetricFamily("uie_index_items", "Items in the index.", sum(counts.values()))
        yield GaugeMetricFamily("uie_index_domains", "Domains that have items.", len(counts))
        largest = GaugeMetricFamily(
            "uie_index_domain_items", f"Items of the {_LARGEST} largest domains.", labels=["domain"]
        )
        for domain in heapq.nlargest(_LARGEST, counts, key=lambda name: (counts[name], name)):
            largest.add_metric([domain], counts[domain])
        yield largest


class Processes(Collector):
    """Resources used by all living workers; the library's collector covers only the current process."""

    def collect(self) -> Iterator[Metric]:
        """Yield one metric per resource."""
        cpu_s = resident_bytes = open_fds = 0.0
        for pid in _worker_pids():
            with contextlib.suppress(psutil.Error):  # the worker died
                process = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    cpu_s += times.user + times.system
                    resident_bytes += process.memory_info().rss
                    open_fds += process.num_fds()
        yield CounterMetricFamily("process_cpu_seconds", "User and system CPU time of the workers.", cpu_s)
        yield GaugeMetricFamily(
            "process_resident_memory_bytes",
            "Memory of the workers; shared pages are counted once per worker.",
            resident_bytes,
        )
        yield GaugeMetricFamily("process_open_fds", "Open files and connections of the workers.", open_fds)


def forget_dead_workers() -> None:
    """Remove the gauges of dead workers, which would otherwise keep their last values indefinitely."""
    for pid in _worker_pids():
        if not psutil.pid_exists(pid):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _worker_pids() -> set[int]:
    """Return the ids of all workers, including dead ones. Empty if a single process counts in memory."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    files = Path(folder).iterdir() if folder else []
    return {int(match[1]) for file in files if (match := _PID.search(file.name))}


class ModelMetrics:
    """The series of one model, looked up once."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._stages = {stage: metrics.stages.labels(model, stage) for stage in _STAGES}
        self.batch_images = metrics.batch_images.labels(model)
        self.queue_depth = metrics.queue_depth.labels(model)
        self.shed = {reason: metrics.shed.labels(model, reason) for reason in ("queue", "deadline")}
        self.dropped = {
            key: metrics.dropped.labels(model, *key)
            for key in itertools.product(("decode", "infer"), ("deadline", "gone"))
        }
        self.cache = {result: metrics.cache.labels(model, result) for result in ("hit", "miss", "coalesced")}

    def observe_stages(self, stages_ms: Mapping[str, float]) -> None:
        """Record the time of each stage."""
        for stage, ms in stages_ms.items():
            self._stages[stage].observe(ms / 1e3)
