"""From a run's observations to accuracy and latency: pure functions, and a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.dataset import Dataset
from benchmarks.metrics import DomainScore, Judge, mean_over_domains, score_domain
from benchmarks.runs import Observation, Run

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Latency:
    """Of the answered queries, from the time each should have been sent."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_s: float


def summarise(data: Dataset, run: Run) -> dict[str, Any]:
    """Scores and latencies per domain and over all, as `summary.json` holds them."""
    observations = run.observations()
    answered = [one for one in observations if one.status == 200]
    domains: list[str] = run.said()["domains"]
    scores = score_run(data, domains, observations)
    by_domain = {
        domain: {
            **scores[domain].to_json(),
            **asdict(latency([one for one in observations if one.domain == domain])),
        }
        for domain in domains
    }
    return {
        "domains": by_domain,
        "mean": mean_over_domains(scores),
        "all": {
            "queries": sum(score.queries for score in scores.values()),
            "gallery": sum(score.gallery for score in scores.values()),
            "failed": sum(score.failed for score in scores.values()),  # those not asked included
            "not_asked": sum(len(data.queries(domain)) for domain in domains)
            - len({one.query_id for one in observations}),
            "from_cache": sum(one.cache not in ("", "miss") for one in answered),
            "without_match": sum(score.without_match for score in scores.values()),
            **asdict(latency(observations)),
        },
        "left_out": run.said()["left_out"],
        "stages_ms": stage_means([one.server_ms for one in answered], [one.latency_ms for one in answered]),
    }


def score_run(
    data: Dataset, domains: Sequence[str], observations: Sequence[Observation]
) -> dict[str, DomainScore]:
    """Per domain, against the merged gallery. Queries without an answer of status 200 have failed."""
    judge = Judge(record for domain in domains for record in data.gallery(domain))
    rankings = {one.query_id: one.hit_ids if one.status == 200 else None for one in observations}
    return {domain: score_domain(judge, domain, data.queries(domain), rankings) for domain in domains}


def latency(observations: Sequence[Observation]) -> Latency:
    """Percentiles, and answered queries over the time in which they were asked."""
    answered = [one for one in observations if one.status == 200]
    if not answered:
        return Latency(0.0, 0.0, 0.0, 0.0)
    p50, p95, p99 = np.percentile([one.latency_ms for one in answered], PERCENTILES)
    segments: dict[int, list[Observation]] = {}
    for one in answered:
        segments.setdefault(one.segment, []).append(one)
    busy_s = sum(
        max(one.done_s for one in part) - min(one.scheduled_s for one in part) for part in segments.values()
    )
    return Latency(float(p50), float(p95), float(p99), len(answered) / busy_s)


def stage_means(server_ms: Sequence[Mapping[str, float]], latencies_ms: Sequence[float]) -> dict[str, float]:
    """Mean milliseconds of a request by where they went; they add up to the mean latency.

    The stages are the service's own; `other` is the rest of its `total`, and `http` is what is outside.
    """
    if not server_ms:
        return {}
    stages = sorted({stage for one in server_ms for stage in one})
    means = {stage: _mean([one.get(stage, 0.0) for one in server_ms]) for stage in stages}
    total = means.pop("total", sum(means.values()))
    return {**means, "other": total - sum(means.values()), "http": _mean(latencies_ms) - total}


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """`summary.json`."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def print_table(summary: Mapping[str, Any], console: Console) -> None:
    """One line a domain, then the mean of the measures and the whole of the load."""
    table = Table("domain", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("queries", "gallery", "R@1", "mMP@5", "p50 ms", "p95 ms", "p99 ms", "images/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for domain, row in summary["domains"].items():
        table.add_row(domain, *_cells(row))
    table.add_section()
    table.add_row("mean", *_cells({**summary["all"], **summary["mean"]}))
    console.print(table)
    whole = summary["all"]
    console.print(f"failed queries: {whole['failed']}; queries without a match: {whole['without_match']}")
    if whole["not_asked"]:
        console.print(f"{whole['not_asked']} of the failed were not asked yet: replay again to go on")
    if whole["from_cache"]:
        console.print(
            f"{whole['from_cache']} answers came from the service's cache: its times are not of work"
        )
    for domain, why in summary["left_out"].items():
        console.print(f"left out: {domain} ({why})")


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['queries']:,}",
        f"{row['gallery']:,}",
        f"{row['R@1'] * 100:.1f}",
        f"{row['mMP@5'] * 100:.1f}",
        *(f"{row[f'p{percentile}_ms']:.0f}" for percentile in PERCENTILES),
        f"{row['images_per_s']:.0f}",
    ]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
