"""A run's summary on the terminal."""

from functools import partial

from rich.console import Console

from benchmarks.replay.records import RunSummary
from benchmarks.reports.text import domain_table, points
from benchmarks.scoring.measures import MEASURES


def print_table(summary: RunSummary, console: Console) -> None:
    """Print the reasons for an invalid run, then one line per domain, the means and the totals."""
    show = partial(console.print, markup=False, highlight=False)
    for reason in summary.invalid_because:
        show(f"invalid: {reason}")
    for check in summary.not_judged:
        show(f"not judged: {check}")
    domain_table(summary).print(console)
    mean, totals = summary.mean, summary.totals
    intervals = (
        f"{name} {points(mean.share(name))} [{', '.join(map(points, mean.interval(name)))}]"
        for name in MEASURES
    )
    show(f"mean, {summary.scope} gallery, 95 %: {', '.join(intervals)}")
    if summary.percentiles:
        show(summary.percentiles[-1].text)
    if summary.open_loop:
        show(f"the client sent {totals.send_lag_p99_ms:.1f} ms late at p99")
    show(
        f"failed queries: {totals.failed}; short: {totals.short}; "
        f"queries without a match: {totals.without_match}"
    )
    if totals.retried:
        show(f"answered only when retried: {totals.retried}")
    for query in summary.unanswered[:5]:
        show(f"{query.query}: {query.reason}")
    for domain, reason in summary.left_out.items():
        show(f"left out: {domain} ({reason})")
