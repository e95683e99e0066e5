"""Commands that compare one run with another."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.cli.options import JSON, print_json
from benchmarks.comparison.compare import compare as compare_runs
from benchmarks.comparison.gate import Limits, describe_change, describe_p99, judge
from benchmarks.comparison.table import print_comparison
from benchmarks.errors import GateFailed
from benchmarks.runs.run import Run


def compare(
    a: Annotated[Path, typer.Argument(help="A run folder.")],
    b: Annotated[Path, typer.Argument(help="Another run of the same queries.")],
    as_json: JSON = False,
) -> None:
    """Compare two runs query by query: significant changes of R@1 and mMP@5, and of the latencies."""
    comparison = compare_runs(Run(a), Run(b))
    print_comparison(comparison, Console())
    if as_json:
        print_json(comparison.to_json())


def gate(
    run: Annotated[Path, typer.Argument(help="The run under test.")],
    baseline: Annotated[Path, typer.Option(help="The run to compare with.")],
    max_drop: Annotated[float, typer.Option(min=0, help="Largest drop of R@1 that passes, in points.")] = 0.5,
    max_p99_ratio: Annotated[
        float, typer.Option(min=0, help="Largest p99 that passes, as a multiple of the baseline's.")
    ] = 1.2,
    as_json: JSON = False,
) -> None:
    """Exit with status 1 and a sentence if a run is worse than its baseline.

    The mean R@1 may drop by --max-drop points. A domain fails if it dropped by more AND the drop is
    significant by the paired test: one query of a domain of 15 moves it by 6.7 points. Failed queries, an
    invalid run, another data set or another load fail as well.
    """
    comparison, reasons = judge(Run(run), Run(baseline), Limits(max_drop, max_p99_ratio))
    mean = comparison.mean["R@1"]
    print_comparison(comparison, Console())
    if as_json:
        changes = {"change_points": mean.change * 100, "p99_ratio": comparison.ratio(99)}
        print_json({"passed": not reasons, "why": reasons, **changes})
    if reasons:
        raise GateFailed("; ".join(reasons))
    typer.echo(f"passed: {describe_change('mean', mean)}; {describe_p99(comparison)}", err=True)
