"""Commands that need no service: score descriptors, check a data set."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from benchmarks.cli.options import DATA, JSON, print_json
from benchmarks.datasets.check import check as run_check
from benchmarks.datasets.check import print_checks
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import DataError
from benchmarks.scoring.descriptor_folder import intervals, print_scores, rounded, score_folder, to_json
from benchmarks.scoring.evaluation import SelfExclusion


def score(
    data: DATA,
    vectors: Annotated[
        Path, typer.Option(help="Folder of <domain>/<split>.npy, float32 (N, D), rows as in the info file.")
    ],
    split: Annotated[Literal["val", "test"], typer.Option(help="Split of the queries.")] = "test",
    self_exclusion: Annotated[
        SelfExclusion,
        typer.Option(help="Exclude the query by its id, or the first hit, as the reference does."),
    ] = "id",
    reference_rounding: Annotated[
        bool, typer.Option("--reference-rounding", help="Round each domain to 3 decimals before averaging.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Score the descriptors of any model with exact search: R@1 and mMP@5, merged and separate."""
    console = Console()
    result = score_folder(Dataset(data), vectors, split, self_exclusion, console)
    scores = rounded(result.scores) if reference_rounding else result.scores
    print_scores(scores, console)
    if reference_rounding:
        console.print("scores of each domain are rounded to 3 decimals before averaging, as in the reference")
    for domain, reason in result.left_out.items():
        console.print(f"left out: {domain} ({reason})", markup=False, highlight=False)
    speed, peak = result.speed, result.peak
    console.print(
        f"{speed.gflop_per_s:,.0f} GFLOP/s, {speed.gflop_per_s / peak.gflop_per_s:.0%} of this machine's "
        f"{peak.gflop_per_s:,.0f}; by CPU time {speed.gflop_per_cpu_s / peak.gflop_per_cpu_s:.0%}"
    )
    if as_json:
        failed = {domain: row.failed for domain, row in scores.merged.items()}
        options = {"split": split, "self_exclusion": self_exclusion, "reference_rounding": reference_rounding}
        details = {"intervals": intervals(scores), "failed": failed, "left_out": result.left_out}
        speeds = {"speed": asdict(speed), "peak": asdict(peak)}
        print_json({**to_json(scores), **options, **details, **speeds})


def check(
    data: DATA,
    decode: Annotated[
        bool, typer.Option(help="Decode every image, or only check that the file exists.")
    ] = True,
    as_json: JSON = False,
) -> None:
    """Check that a data set is complete: UnED's row counts, and every image present and decodable."""
    console = Console()
    checks = run_check(Dataset(data), decode, console)
    print_checks(checks, console)
    incomplete = [domain for domain, result in checks.items() if not result.complete]
    if as_json:
        domains = {domain: result.to_json() for domain, result in checks.items()}
        print_json({"whole": not incomplete, "domains": domains})
    if incomplete:
        raise DataError(f"{data} is not complete: {', '.join(incomplete)}")
