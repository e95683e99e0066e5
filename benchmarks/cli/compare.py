"""Commands that hold one run against another."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.cli.options import JSON, print_json
from benchmarks.comparison.compare import compare as compare_runs
from benchmarks.comparison.gate import Limits, drop_in_words, judge, p99_in_words
from benchmarks.comparison.table import print_comparison
from benchmarks.errors import GateFailed
from benchmarks.runs.run import Run


def compare(
    a: Annotated[Path, typer.Argument(help="A run folder.")],
    b: Annotated[Path, typer.Argument(help="Another, over the same queries.")],
    as_json: JSON = False,
) -> None:
    """Two runs, query by query: which differences in R@1 and mMP@5 are real, and how the latencies differ."""
    found = compare_runs(Run(a), Run(b))
    print_comparison(found, Console())
    if as_json:
        print_json(found.to_json())


def gate(
    run: Annotated[Path, typer.Argument(help="The run under test.")],
    baseline: Annotated[Path, typer.Option(help="The run that it must not fall behind.")],
    max_drop: Annotated[float, typer.Option(min=0, help="Points of R@1 that may be lost.")] = 0.5,
    max_p99_ratio: Annotated[float, typer.Option(min=0, help="Its p99 over the baseline's.")] = 1.2,
    as_json: JSON = False,
) -> None:
    """Exit with 1, and a sentence, where a run falls behind its baseline.

    The mean R@1 may drop by --max-drop points. A domain fails where it dropped by more AND the drop is real
    by the paired test: one query of a domain of 15 moves it by 6.7 points. Failed queries, an invalid run,
    another data set or another load fail as well.
    """
    verdict = judge(Run(run), Run(baseline), Limits(max_drop, max_p99_ratio))
    found = verdict.comparison
    print_comparison(found, Console())
    if as_json:
        changes = {"change_points": found.mean["R@1"].change * 100, "p99_ratio": found.ratio(99)}
        print_json({"passed": not verdict.why, "why": verdict.why, **changes})
    if verdict.why:
        raise GateFailed("; ".join(verdict.why))
    typer.echo(f"passed: {drop_in_words('mean', found.mean['R@1'])}; {p99_in_words(found)}", err=True)
