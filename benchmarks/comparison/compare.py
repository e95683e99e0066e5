"""Two runs over the same queries, query by query: which differences are real?"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import RunError
from benchmarks.replay.results import Replayed, measured, replayed, scores_of
from benchmarks.replay.summary import retried, verdict_on
from benchmarks.runs.latency import latencies_ms, latency
from benchmarks.runs.run import Run
from benchmarks.scoring.measures import MEASURES, QueryScore
from benchmarks.stats.intervals import Percentile, percentile_of
from benchmarks.stats.paired_tests import Pair, compare_scores

COMPARED = (50, 99)
# Must be equal in two runs, or their queries are no pairs.
_PAIRED = ("kind", "data_fingerprint", "domains", "split", "scope", "self_exclusion")
_TOLD_ELSEWHERE = ("service.models",)  # its first is `service.model`


@dataclass(frozen=True)
class Side:
    """One of the two runs, apart from its scores."""

    run: Run
    valid: bool
    failed: int  # queries not answered with 200, those not asked included
    retried: int  # failed at first, answered when the run was resumed
    percentiles: dict[int, Percentile]
    images_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Latencies by `p50_ms` and `p99_ms`."""
        said = {"run": str(self.run.folder), "valid": self.valid, "failed": self.failed}
        said["retried"] = self.retried
        for percent, one in self.percentiles.items():
            said |= {f"p{percent}_ms": one.value_ms, f"p{percent}_interval_ms": one.interval.to_json()}
        return {**said, "images_per_s": self.images_per_s}


@dataclass(frozen=True)
class Comparison:
    """Of run A, the older, and run B."""

    a: Side
    b: Side
    differs: dict[str, tuple[Any, Any]]  # by key of run.json, dotted
    queries: dict[str, int]  # by domain
    domains: dict[str, dict[str, Pair]]  # by domain and measure
    mean: dict[str, Pair]  # by measure

    def ratio(self, percent: int) -> float:
        """B's latency over A's."""
        return self.b.percentiles[percent].value_ms / self.a.percentiles[percent].value_ms

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        ratios: dict[str, float] = {f"p{percent}": self.ratio(percent) for percent in COMPARED}
        return {
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "differs": self.differs,
            "domains": {
                domain: {"queries": self.queries[domain], **_to_json(pairs)}
                for domain, pairs in self.domains.items()
            },
            "mean": _to_json(self.mean),
            "ratio": {**ratios, "images_per_s": self.b.images_per_s / self.a.images_per_s},
        }


def compare(a: Run, b: Run) -> Comparison:
    """Raises RunError where the runs' queries are no pairs, or nothing was answered; DataError."""
    _must_pair(a, b)
    data = _data_of(a, b)
    both = [replayed(run, data) for run in (a, b)]
    before, after = (scores_of(one.judge, one.queries, one.rankings) for one in both)
    for domain, ours in before.items():
        if not ours or ours.keys() != after[domain].keys():
            raise RunError(
                f"{a.folder} and {b.folder} cannot be paired: other queries of {domain}, or none "
                "(--queries-per-domain and its seed have to be the same)"
            )
    ids = {domain: list(ours) for domain, ours in before.items()}
    domains, mean = compare_scores(_rows(before, ids), _rows(after, ids), MEASURES)
    queries = {domain: len(one) for domain, one in ids.items()}
    every = {one for some in ids.values() for one in some}
    before_side, after_side = (_side(one, every) for one in both)
    return Comparison(before_side, after_side, _differences(a.said(), b.said()), queries, domains, mean)


def _rows(
    scores: Mapping[str, Mapping[str, QueryScore]], ids: Mapping[str, list[str]]
) -> dict[str, NDArray[np.float64]]:
    return {domain: measured(scores[domain][one] for one in ids[domain]) for domain in ids}


def _to_json(pairs: Mapping[str, Pair]) -> dict[str, Any]:
    return {measure: pair.to_json() for measure, pair in pairs.items()}


def _must_pair(a: Run, b: Run) -> None:
    for key in _PAIRED:
        ours, theirs = (run.said().get(key) for run in (a, b))
        if ours is None or theirs is None:
            raise RunError(f"{(a if ours is None else b).folder}: run.json does not say its {key}")
        if ours != theirs:
            raise RunError(
                f"{a.folder} and {b.folder} cannot be paired: {key} is {ours} in one, {theirs} in the other"
            )


def _data_of(a: Run, b: Run) -> Dataset:
    # A run may come from another machine; its data set is known by the fingerprint, wherever it lies.
    roots = [Path(run.said()["data"]) for run in (a, b)]
    return Dataset(next((root for root in roots if root.is_dir()), roots[0]))


def _side(seen: Replayed, queries: Set[str]) -> Side:
    answered = [one for one in seen.observations if one.status == 200]
    if not answered:
        raise RunError(f"{seen.run.folder} holds no answered query")
    latencies = np.array(latencies_ms(seen.said["scenario"], answered))
    return Side(
        seen.run,
        valid=not verdict_on(seen).invalid_because,
        failed=len(queries - {one.query_id for one in answered}),
        retried=retried(seen),
        percentiles={percent: percentile_of(latencies, percent) for percent in COMPARED},
        images_per_s=latency(seen.observations).images_per_s,
    )


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], above: str = "") -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**a, **b}:
        ours, theirs, name = a.get(key), b.get(key), f"{above}{key}"
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found |= _differences(ours, theirs, f"{name}.")
        elif ours != theirs and name not in _TOLD_ELSEWHERE:
            found[name] = (ours, theirs)
    return found
