"""Commands that need no service: descriptors scored, a data set checked."""

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
        Path, typer.Option(help="<domain>/<split>.npy, float32 (N, D), rows as the info file's.")
    ],
    split: Annotated[Literal["val", "test"], typer.Option(help="Whose queries.")] = "test",
    self_exclusion: Annotated[
        SelfExclusion,
        typer.Option(help="Leave out the query itself, or whatever comes first, as the reference does."),
    ] = "id",
    reference_rounding: Annotated[
        bool, typer.Option("--reference-rounding", help="Round each domain to 3 decimals before averaging.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """R@1 and mMP@5 of descriptors, any model's, by exact search: merged and separate."""
    console = Console()
    scored = score_folder(Dataset(data), vectors, split, self_exclusion, console)
    scores = rounded(scored.scores) if reference_rounding else scored.scores
    print_scores(scores, console)
    if reference_rounding:
        console.print("each domain was rounded to 3 decimals before averaging, as in the reference")
    for domain, why in scored.left_out.items():
        console.print(f"left out: {domain} ({why})", markup=False, highlight=False)
    speed, peak = scored.speed, scored.peak
    console.print(
        f"{speed.gflop_per_s:,.0f} GFLOP/s, {speed.gflop_per_s / peak.gflop_per_s:.0%} of this machine's "
        f"{peak.gflop_per_s:,.0f}; by CPU time {speed.gflop_per_cpu_s / peak.gflop_per_cpu_s:.0%}"
    )
    if as_json:
        said = {"split": split, "self_exclusion": self_exclusion, "reference_rounding": reference_rounding}
        failed = {domain: row.failed for domain, row in scored.scores.merged.items()}
        speeds = {"speed": asdict(speed), "peak": asdict(peak)}
        told = {"intervals": intervals(scored.scores), "failed": failed, "left_out": scored.left_out}
        print_json({**to_json(scores), **said, **told, **speeds})


def check(
    data: DATA,
    decode: Annotated[
        bool, typer.Option(help="Decode every picture, or only look whether it is there.")
    ] = True,
    as_json: JSON = False,
) -> None:
    """Is a data set whole? Rows, where it is UnED; every picture there and decodable."""
    console = Console()
    checks = run_check(Dataset(data), decode, console)
    print_checks(checks, console)
    broken = [domain for domain, one in checks.items() if not one.whole]
    if as_json:
        print_json(
            {"whole": not broken, "domains": {domain: one.to_json() for domain, one in checks.items()}}
        )
    if broken:
        raise DataError(f"{data} is not whole: {', '.join(broken)}")
