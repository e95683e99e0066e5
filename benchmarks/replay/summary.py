"""A run's observations to its summary, as `summary.json` holds it: pure functions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Dataset, Record
from benchmarks.replay.results import Rankings, Replayed, measured, replayed, scores_of
from benchmarks.runs.latency import PERCENTILES, latencies_ms, latency, stages_of, tail_of
from benchmarks.runs.run import Observation, Run
from benchmarks.runs.validity import Verdict, judge, send_lag_ms, without_gallery
from benchmarks.scoring.measures import DEPTH, MEASURES, Judge, QueryScore
from benchmarks.stats.intervals import enough, interval_of, percentile_of, queries_asked, resample

_LISTED = 100  # queries that failed or came back short


def summarise(data: Dataset, run: Run) -> dict[str, Any]:
    """Scores and latencies per domain and over all: `summary.json`. Raises what `replayed` does."""
    return summary_of_replay(replayed(run, data))


def summary_of_replay(seen: Replayed) -> dict[str, Any]:
    """The same of a run that was read already."""
    said, observations, latest = seen.said, seen.observations, seen.latest
    by_scope = {scope: accuracy(seen.judge, seen.queries, ranked) for scope, ranked in seen.by_scope.items()}
    main = next(iter(by_scope.values()))
    for domain, row in main["domains"].items():
        row.update(asdict(latency([one for one in observations if one.domain == domain])))
    answered = [one for one in observations if one.status == 200]
    percentiles = _percentiles(said["scenario"], answered)
    not_asked = sum(one.id not in latest for records in seen.queries.values() for one in records)
    verdict = verdict_on(seen)
    reasons = _not_whole(not_asked, seen.queries) + verdict.invalid_because
    return {
        **main,
        "scope": said["scope"],
        "separate": by_scope["separate"] if len(by_scope) > 1 else None,
        "all": {
            **{
                name: sum(row[name] for row in main["domains"].values())
                for name in ("queries", "gallery", "failed", "short", "without_match")
            },
            "not_asked": not_asked,
            "retried": retried(seen),
            "from_cache": sum(one.cache not in ("", "miss") for one in answered),
            **asdict(latency(observations)),
            # Of what was sent together, until all of it was answered; a domain's row is of single requests.
            **{
                f"p{row['percentile']}_ms": row["ms"]
                for row in percentiles
                if row["percentile"] in PERCENTILES
            },
            "send_lag_p99_ms": send_lag_ms(observations, 99),
        },
        "percentiles": percentiles,
        "stages_ms": stages_of(answered),
        "tail_stages_ms": stages_of(tail_of(answered)),
        "confusion": _confusion(seen.queries, seen.rankings),
        "unanswered": _unanswered(seen),
        "open_loop": said["scenario"]["rate_per_s"] is not None,
        "valid": not reasons,
        "invalid_because": reasons,
        "not_judged": verdict.not_judged,
        "left_out": said["left_out"],
    }


def rounded(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Each domain's shares to 3 decimals and the mean of those, as the reference has it; intervals stay."""

    def of(scores: Mapping[str, Any]) -> dict[str, Any]:
        domains = {
            domain: {**row, **{name: round(row[name], 3) for name in MEASURES}}
            for domain, row in scores["domains"].items()
        }
        means = {name: fmean(row[name] for row in domains.values()) for name in MEASURES}
        return {**scores, "domains": domains, "mean": {**scores["mean"], **means}}

    separate = summary["separate"]
    return {**of(summary), "separate": separate and of(separate), "reference_rounding": True}


def verdict_on(seen: Replayed) -> Verdict:
    """Verdict on what was observed; whether every query was sent is a separate check."""
    said, reasons = seen.said, list[str]()
    if any(one.embedding for one in seen.observations):
        gallery = [one.id for domain in said["domains"] for one in seen.data.gallery(domain, said["split"])]
        reasons = without_gallery(gallery, seen.observations)
    open_loop = said["scenario"]["rate_per_s"] is not None
    verdict = judge(seen.observations, open_loop, cache_expected=False, usage=seen.run.client_usage())
    return replace(verdict, invalid_because=reasons + verdict.invalid_because)


def _not_whole(not_asked: int, queries: Mapping[str, Sequence[Record]]) -> list[str]:
    if not not_asked:
        return []
    total = sum(map(len, queries.values()))
    return [
        f"the run is not whole: {not_asked:,} of {total:,} queries were not asked yet; replay again to go on"
    ]


def retried(seen: Replayed) -> int:
    """How many failed, and were answered when the run was resumed: no query counts as wrong for that."""
    failed = {one.query_id for one in seen.observations if one.status != 200}
    return sum(seen.latest[one].status == 200 for one in failed)


def accuracy(judge: Judge, queries: Mapping[str, Sequence[Record]], rankings: Rankings) -> dict[str, Any]:
    """Both measures with 95 % intervals, by domain and their unweighted mean."""
    scores = scores_of(judge, queries, rankings)
    values = {domain: measured(some.values()) for domain, some in scores.items()}
    resampled = resample(values)
    domains = {}
    for domain, records in queries.items():
        ranked = [rankings.get(one.id) for one in records]
        domains[domain] = {
            **_measured(values[domain], resampled.domains[domain]),
            "queries": len(records),
            "gallery": judge.gallery_size(domain),
            "without_match": sum(one.n_q == 0 for one in scores[domain].values()),
            "failed": sum(hits is None for hits in ranked),  # those not asked included
            "short": sum(map(_is_short, ranked, scores[domain].values())),
        }
    of_means = np.stack([rows.mean(axis=0) for rows in values.values()])  # (domains, 2)
    return {"domains": domains, "mean": _measured(of_means, resampled.mean)}


def _measured(values: NDArray[np.float64], resampled: NDArray[np.float64]) -> dict[str, Any]:
    found: dict[str, Any] = dict(zip(MEASURES, values.mean(axis=0).tolist(), strict=True))
    for column, name in enumerate(MEASURES):
        found[f"{name}_interval"] = interval_of(resampled[:, column]).to_json()
    return found


def _is_short(hits: list[str] | None, score: QueryScore) -> bool:
    """Fewer hits than the measure looks at: the places that are missing are wrong."""
    return hits is not None and len(hits) < min(score.n_q, DEPTH)


def _percentiles(scenario: Mapping[str, Any], answered: Sequence[Observation]) -> list[dict[str, Any]]:
    """With intervals; of what was sent together, until all of it was answered."""
    if not answered:
        return []
    latencies = latencies_ms(scenario, answered)
    rows = [percentile_of(np.asarray(latencies), percent) for percent in (50, 90, 95, 99)]
    return [
        {
            "percentile": row.percent,
            "ms": row.value_ms,
            "interval_ms": row.interval.to_json(),
            "answered": row.queries,
            "needed": queries_asked(row.percent / 100),
            "enough": enough(row.queries, row.percent / 100),
            "said": str(row),
        }
        for row in rows
    ]


def _confusion(queries: Mapping[str, Sequence[Record]], rankings: Rankings) -> dict[str, dict[str, int]]:
    """By the query's domain: how often each domain had the first hit; ids begin with their domain."""
    return {
        domain: dict(
            Counter(hits[0].split("/")[0] for one in records if (hits := rankings.get(one.id))).most_common()
        )
        for domain, records in queries.items()
    }


def _unanswered(run: Replayed) -> list[dict[str, str]]:
    """The first queries that failed or came back short, and why."""
    found = []
    for query in (one for records in run.queries.values() for one in records):
        hits, seen = run.rankings.get(query.id), run.latest.get(query.id)
        if hits is None:
            why = (seen.error or f"status {seen.status}") if seen else "not asked"
        elif _is_short(hits, run.judge.score(query, hits)):
            why = f"{len(hits)} hits only"
        else:
            continue
        found.append({"query": query.id, "why": why})
        if len(found) == _LISTED:
            break
    return found
