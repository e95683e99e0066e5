"""The summary of a replay, computed from its observations."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import chain
from statistics import fmean
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Dataset, Record
from benchmarks.replay.records import (
    Accuracy,
    Counts,
    DomainAccuracy,
    DomainSummary,
    RunSummary,
    ScopeSummary,
    Totals,
    Unanswered,
)
from benchmarks.replay.results import RankedRun, Rankings, measured, ranked_run, scores_of
from benchmarks.runs.latency import latency, stages_of, tail_of
from benchmarks.runs.run import Run, answered
from benchmarks.runs.validity import Verdict, judge, send_lag_ms
from benchmarks.scoring.measures import DEPTH, Judge, QueryScore
from benchmarks.stats.intervals import (
    interval_of,
    percentile_of,
    resample,
)

S = TypeVar("S", RunSummary, ScopeSummary)
_LISTED = 100  # unanswered queries


def summarise(data: Dataset, run: Run) -> RunSummary:
    """Scores and latencies per domain and over all. Raises what `ranked_run` raises."""
    return summary_of(ranked_run(run, data))


def summary_of(ranked: RankedRun) -> RunSummary:
    """The summary of a run that was read before."""
    record, observations = ranked.record, ranked.observations
    scores = {
        scope: accuracy(ranked.judge, ranked.queries, rankings) for scope, rankings in ranked.by_scope.items()
    }
    main = scores[record.scope]
    with_status_200, verdict = answered(observations), verdict_on(ranked)
    latencies_ms = np.array(ranked.latencies_ms)
    percents = (50, 90, 95, 99) if len(latencies_ms) else ()
    times = {
        name: latency([observation for observation in observations if observation.domain == name])
        for name in main.domains
    }
    totals, reasons = _totals(ranked, list(main.domains.values())), verdict.invalid_because
    if totals.not_sent:
        missing = f"{totals.not_sent:,} of {totals.queries:,} queries were not sent"
        reasons = [f"the run is incomplete: {missing}; the same `replay` resumes it", *reasons]
    return RunSummary(
        domains={
            name: DomainSummary(**vars(row), **asdict(times[name])) for name, row in main.domains.items()
        },
        mean=main.mean,
        scope=record.scope,
        separate=scores["separate"] if len(scores) > 1 else None,
        totals=totals,
        percentiles=[percentile_of(latencies_ms, percent) for percent in percents],
        stages_ms=stages_of(with_status_200),
        tail_stages_ms=stages_of(tail_of(with_status_200)),
        confusion=_confusion(ranked.queries, ranked.rankings),
        unanswered=_unanswered(ranked),
        open_loop=record.open_loop,
        valid=not reasons,
        invalid_because=reasons,
        not_judged=verdict.not_judged,
        left_out=record.left_out,
    )


def rounded(summary: RunSummary) -> RunSummary:
    """Round each domain to 3 decimals before averaging, as the reference does; intervals stay."""
    separate = summary.separate and _rounded(summary.separate)
    return replace(_rounded(summary), separate=separate, reference_rounding=True)


def _rounded(scores: S) -> S:
    rows = {
        domain: replace(row, r_at_1=round(row.r_at_1, 3), mmp_at_5=round(row.mmp_at_5, 3))
        for domain, row in scores.domains.items()
    }
    r_at_1 = fmean(row.r_at_1 for row in rows.values())
    mmp_at_5 = fmean(row.mmp_at_5 for row in rows.values())
    return replace(scores, domains=rows, mean=replace(scores.mean, r_at_1=r_at_1, mmp_at_5=mmp_at_5))


def verdict_on(ranked: RankedRun) -> Verdict:
    """The verdict on what was observed; whether every query was sent is a separate check."""
    observations, record, usage = ranked.observations, ranked.record, ranked.run.client_usage()
    verdict = judge(
        observations, record.open_loop, cache_expected=False, usage=usage, limits=record.client.limits
    )
    embedded = {observation.query_id for observation in observations if observation.embedding}
    missing = [image.id for image in ranked.gallery if image.id not in embedded]
    if embedded and missing:  # no query can find them, so R@1 would be too high
        reason = f"{len(missing)} gallery images have no embedding, the first is {missing[0]}"
        return replace(verdict, invalid_because=[reason, *verdict.invalid_because])
    return verdict


def _totals(ranked: RankedRun, rows: Sequence[DomainAccuracy]) -> Totals:
    observations = ranked.observations
    return Totals(
        # Of groups, if requests were sent in groups; the rows of domains are of single requests.
        **asdict(latency(observations, ranked.latencies_ms)),
        **{count.name: sum(getattr(row, count.name) for row in rows) for count in fields(Counts)},
        not_sent=sum(query.id not in ranked.latest for query in chain.from_iterable(ranked.queries.values())),
        retried=ranked.retried,
        from_cache=sum(observation.from_cache for observation in answered(observations)),
        send_lag_p99_ms=send_lag_ms(observations, 99),
    )


def accuracy(judge: Judge, queries: Mapping[str, Sequence[Record]], rankings: Rankings) -> ScopeSummary:
    """Both measures with 95 % intervals, by domain and as their unweighted mean."""
    scores = scores_of(judge, queries, rankings)
    values = measured(scores)
    resampled = resample(values)
    domains = {}
    for domain, records in queries.items():
        hits = [rankings.get(query.id) for query in records]
        domains[domain] = DomainAccuracy(
            **vars(_accuracy(values[domain], resampled.domains[domain])),
            queries=len(records),
            gallery=judge.gallery_size(domain),
            without_match=sum(score.n_q == 0 for score in scores[domain].values()),
            failed=sum(hit_ids is None for hit_ids in hits),
            short=sum(map(_is_short, hits, scores[domain].values())),
        )
    means = np.stack([rows.mean(axis=0) for rows in values.values()])  # (domains, 2)
    return ScopeSummary(domains=domains, mean=_accuracy(means, resampled.mean))


def _accuracy(values: NDArray[np.float64], resampled: NDArray[np.float64]) -> Accuracy:
    r_at_1, mmp_at_5 = values.mean(axis=0).tolist()
    ends = [(interval.low, interval.high) for interval in map(interval_of, resampled.T)]
    return Accuracy(r_at_1=r_at_1, mmp_at_5=mmp_at_5, r_at_1_interval=ends[0], mmp_at_5_interval=ends[1])


def _is_short(hit_ids: list[str] | None, score: QueryScore) -> bool:
    """True if the service returned fewer hits than the measure reads; missing hits count as wrong."""
    return hit_ids is not None and len(hit_ids) < min(score.n_q, DEPTH)


def _confusion(queries: Mapping[str, Sequence[Record]], rankings: Rankings) -> dict[str, dict[str, int]]:
    """Domains of the first hits, counted by the query's domain; an id begins with its domain."""
    counters = {
        domain: Counter(hits[0].split("/")[0] for query in records if (hits := rankings.get(query.id)))
        for domain, records in queries.items()
    }
    return {domain: dict(counter.most_common()) for domain, counter in counters.items()}


def _unanswered(ranked: RankedRun) -> list[Unanswered]:
    """The first queries that failed or have too few hits, with the reason."""
    unanswered = []
    for query in chain.from_iterable(ranked.queries.values()):
        hits, observation = ranked.rankings.get(query.id), ranked.latest.get(query.id)
        if hits is None:
            failure = observation and (observation.error or f"status {observation.status}")
            unanswered.append(Unanswered(query.id, failure or "not sent"))
        elif _is_short(hits, ranked.judge.score(query, hits)):
            unanswered.append(Unanswered(query.id, f"only {len(hits)} hits"))
    return unanswered[:_LISTED]
