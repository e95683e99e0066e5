"""Comparison of two runs over the same queries, query by query."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import RunError
from benchmarks.replay.records import ReplayRecord
from benchmarks.replay.results import RankedRun, measured, ranked_run, scores_of
from benchmarks.replay.summary import verdict_on
from benchmarks.runs.latency import latency
from benchmarks.runs.records import to_json
from benchmarks.runs.run import Run, answered
from benchmarks.scoring.measures import MEASURES
from benchmarks.stats.intervals import Percentile, percentile_of
from benchmarks.stats.paired_tests import Pair, compare_scores

COMPARED = (50, 99)
# Fields of run.json that must be equal in two runs for their queries to be pairs.
_PAIRED: tuple[tuple[str, Callable[[ReplayRecord], object]], ...] = (
    ("data_fingerprint", lambda record: record.data_fingerprint),
    ("domains", lambda record: record.domains),
    ("split", lambda record: record.split),
    ("scope", lambda record: record.scope),
    ("self_exclusion", lambda record: record.self_exclusion),
)


@dataclass(frozen=True)
class Side:
    """One of the two runs, without its scores."""

    run: Run
    valid: bool
    failed: int  # queries not answered with 200, including those not sent
    retried: int  # failed at first, answered when the run was resumed
    percentiles: dict[int, Percentile]
    images_per_s: float

    def to_json(self) -> dict[str, Any]:
        """The side as JSON, with latencies as `p50_ms` and `p99_ms`."""
        counts = {"valid": self.valid, "failed": self.failed, "retried": self.retried}
        latencies: dict[str, Any] = {}
        for percent, row in self.percentiles.items():
            latencies[f"p{percent}_ms"] = row.ms
            latencies[f"p{percent}_interval_ms"] = row.interval_ms
        return {"run": str(self.run.folder), **counts, **latencies, "images_per_s": self.images_per_s}


@dataclass(frozen=True)
class Comparison:
    """Run A, the older one, compared with run B."""

    a: Side
    b: Side
    differs: dict[str, tuple[Any, Any]]  # by dotted key of run.json
    queries: dict[str, int]  # by domain
    domains: dict[str, dict[str, Pair]]  # by domain and measure
    mean: dict[str, Pair]  # by measure

    def ratio(self, percent: int) -> float:
        """B's latency over A's."""
        return self.b.percentiles[percent].ms / self.a.percentiles[percent].ms

    @property
    def images_per_s_ratio(self) -> float:
        """B's throughput over A's."""
        return self.b.images_per_s / self.a.images_per_s

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON."""
        return {
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "differs": self.differs,
            "mean": pairs_to_json(self.mean),
            **self.differences_to_json(),
        }

    def differences_to_json(self) -> dict[str, Any]:
        """The pairs of each domain, and the ratios of latency and throughput."""
        ratios = {f"p{percent}": self.ratio(percent) for percent in COMPARED}
        domains = {
            domain: {"queries": self.queries[domain], **pairs_to_json(pairs)}
            for domain, pairs in self.domains.items()
        }
        return {"domains": domains, "ratio": {**ratios, "images_per_s": self.images_per_s_ratio}}


def compare(a: Run, b: Run) -> Comparison:
    """Compare two runs. Raises DataError, and RunError if they cannot be paired or a run has no answers."""
    records = (a.record(ReplayRecord), b.record(ReplayRecord))
    for name, field in _PAIRED:
        value_a, value_b = map(field, records)
        if value_a != value_b:
            raise RunError(
                f"{a.folder} and {b.folder} cannot be paired: {name} is {value_a} in A, {value_b} in B"
            )
    # A run may come from another machine: its data set is identified by the fingerprint, not by its folder.
    folders = [Path(record.data) for record in records]
    data = Dataset(next((folder for folder in folders if folder.is_dir()), folders[0]))
    runs = [ranked_run(run, data) for run in (a, b)]
    scores_a, scores_b = (scores_of(run.judge, run.queries, run.rankings) for run in runs)
    for domain, scores in scores_a.items():
        if not scores or list(scores) != list(scores_b[domain]):
            raise RunError(
                f"{a.folder} and {b.folder} cannot be paired: other queries of {domain}, or none "
                "(--queries-per-domain and --subset-seed must be equal)"
            )
    domains, mean = compare_scores(measured(scores_a), measured(scores_b), MEASURES)
    differs = _differences(to_json(records[0]), to_json(records[1]))
    queries = {domain: len(scores) for domain, scores in scores_a.items()}
    side_a, side_b = map(_side, runs)
    return Comparison(side_a, side_b, differs, queries, domains, mean)


def pairs_to_json(pairs: Mapping[str, Pair]) -> dict[str, Any]:
    """The pairs as JSON, by measure."""
    return {measure: pair.to_json() for measure, pair in pairs.items()}


def _side(ranked: RankedRun) -> Side:
    with_status_200 = answered(ranked.observations)
    if not with_status_200:
        raise RunError(f"{ranked.run.folder} holds no answered query")
    latencies_ms = np.array(ranked.latencies_ms)
    queries = {query.id for of_domain in ranked.queries.values() for query in of_domain}
    return Side(
        ranked.run,
        valid=not verdict_on(ranked).invalid_because,
        failed=len(queries - {observation.query_id for observation in with_status_200}),
        retried=ranked.retried,
        percentiles={percent: percentile_of(latencies_ms, percent) for percent in COMPARED},
        images_per_s=latency(ranked.observations).images_per_s,
    )


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    differences: dict[str, tuple[Any, Any]] = {}
    for key in {**a, **b}:
        value_a, value_b, name = a.get(key), b.get(key), f"{prefix}{key}"
        if isinstance(value_a, dict) and isinstance(value_b, dict):
            differences |= _differences(value_a, value_b, f"{name}.")
        elif value_a != value_b and name != "service.models":  # the first of those is `service.model`
            differences[name] = (value_a, value_b)
    return differences
