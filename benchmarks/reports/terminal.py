"""A run's summary: into its folder, and on a terminal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.files import write_atomically
from benchmarks.runs.latency import PERCENTILES
from benchmarks.scoring.measures import MEASURES


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """`summary.json`. Raises RunError."""
    write_atomically(folder / "summary.json", json.dumps(summary, indent=1) + "\n")


def print_table(summary: Mapping[str, Any], console: Console) -> None:
    """Why not to believe it, if so; one line a domain, the mean of the measures and the whole of the load."""
    for reason in summary["invalid_because"]:
        console.print(f"invalid: {reason}", markup=False, highlight=False)
    for check in summary["not_judged"]:
        console.print(f"not judged: {check}", markup=False, highlight=False)
    table = Table("domain", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("queries", "gallery", "R@1", "mMP@5", "p50 ms", "p95 ms", "p99 ms", "images/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for domain, row in summary["domains"].items():
        table.add_row(domain, *_cells(row))
    table.add_section()
    table.add_row("mean", *_cells({**summary["all"], **summary["mean"]}))
    console.print(table)
    mean, whole = summary["mean"], summary["all"]
    spans = (
        f"{name} {100 * mean[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        for name in MEASURES
        for low, high in [mean[f"{name}_interval"]]
    )
    console.print(f"mean, {summary['scope']} gallery, 95 %: {', '.join(spans)}", highlight=False)
    if summary["percentiles"]:
        console.print(summary["percentiles"][-1]["said"], highlight=False)
    if summary["open_loop"]:
        console.print(f"the client sent {whole['send_lag_p99_ms']:.1f} ms late at p99", highlight=False)
    console.print(
        f"failed queries: {whole['failed']}; short: {whole['short']}; "
        f"queries without a match: {whole['without_match']}"
    )
    if whole["retried"]:
        console.print(f"answered only when asked again: {whole['retried']}")
    for one in summary["unanswered"][:5]:
        console.print(f"{one['query']}: {one['why']}", markup=False, highlight=False)
    for domain, why in summary["left_out"].items():
        console.print(f"left out: {domain} ({why})", markup=False, highlight=False)


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['queries']:,}",
        f"{row['gallery']:,}",
        f"{row['R@1'] * 100:.1f}",
        f"{row['mMP@5'] * 100:.1f}",
        *(f"{row[f'p{percentile}_ms']:.0f}" for percentile in PERCENTILES),
        f"{row['images_per_s']:.0f}",
    ]
