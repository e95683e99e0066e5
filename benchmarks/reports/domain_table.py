"""The table of a run's domains, for the terminal and for Markdown."""

from benchmarks.replay.records import Accuracy, DomainAccuracy, DomainSummary, RunSummary, Totals
from benchmarks.reports.text import interval, ms, points
from benchmarks.runs.latency import PERCENTILES
from benchmarks.scoring.measures import MEASURES
from benchmarks.tables import Table


def domain_table(summary: RunSummary, detailed: bool = False) -> Table:
    """One row per domain, then the means and totals; in detail, with intervals and the separate scope."""
    separate = summary.separate if detailed else None
    extra = tuple(f"{name} separate" for name in MEASURES) if separate else ()
    times = (*(f"p{percent} ms" for percent in PERCENTILES), "images/s")

    def cells(
        name: str, counts: DomainSummary | Totals, scores: Accuracy, alone: Accuracy | None
    ) -> list[str]:
        return [
            name,
            f"{counts.queries:,}",
            f"{counts.gallery:,}",
            *(_share(scores, measure, detailed) for measure in MEASURES),
            *(points(alone.share(measure)) for measure in MEASURES if alone),
            *(ms(counts.percentile_ms(percent)) for percent in PERCENTILES),
            f"{counts.images_per_s:.0f}",
        ]

    alone: dict[str, DomainAccuracy] = separate.domains if separate else {}
    return Table(
        ("domain", "queries", "gallery", *MEASURES, *extra, *times),
        [cells(name, row, row, alone.get(name)) for name, row in summary.domains.items()],
        footer=cells("mean", summary.totals, summary.mean, separate.mean if separate else None),
    )


def _share(scores: Accuracy, measure: str, detailed: bool) -> str:
    share = points(scores.share(measure))
    return f"{share} ({interval(scores.interval(measure))})" if detailed else share
