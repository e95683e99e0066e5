"""Gate: a run passes if it is not worse than its baseline by more than the limits. For CI."""

from dataclasses import dataclass

from benchmarks.comparison.compare import Comparison, compare
from benchmarks.errors import RunError
from benchmarks.replay.records import ReplayRecord
from benchmarks.runs.run import Run
from benchmarks.stats.paired_tests import Pair
from benchmarks.tables import count

_ROUNDING = 1e-9  # a drop of exactly the limit passes, however its digits were rounded


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest changes that pass."""

    max_drop_points: float  # of R@1, 0.5: from 59.6 to 59.1
    max_p99_ratio: float


def judge(run: Run, baseline: Run, limits: Limits) -> tuple[Comparison, list[str]]:
    """Compare the run with its baseline, which is A. The reasons are those of a failure, none if it passes.

    A drop of a domain must also be significant to fail: a single query moves a small domain by several points
    (by 6.7, of 15), and of eight domains one always drops. Raises RunError if the two cannot be compared.
    """
    comparison = compare(baseline, run)
    load_before, load = (measured.record(ReplayRecord).scenario for measured in (baseline, run))
    if load != load_before:  # a difference in latency could come from the load
        raise RunError(
            f"{run.folder} was under another load than {baseline.folder}: scenario {load}, not {load_before}"
        )
    reasons = []
    for side in (comparison.a, comparison.b):
        if not side.valid:
            reasons.append(f"{side.run.folder} is invalid: see `report`")
        if side.failed:
            reasons.append(
                f"{count(side.failed, 'query', 'queries')} of {side.run.folder} failed or not sent"
            )
        if side.retried:
            reasons.append(
                f"{count(side.retried, 'query', 'queries')} of {side.run.folder} answered only when retried"
            )
    for name, pair, must_be_significant in (
        ("mean", comparison.mean["R@1"], False),
        *((domain, pairs["R@1"], True) for domain, pairs in comparison.domains.items()),
    ):
        is_over = -pair.change * 100 > limits.max_drop_points + _ROUNDING
        if is_over and (pair.significant or not must_be_significant):
            reasons.append(f"{describe_change(name, pair)}, over the limit of {limits.max_drop_points:g}")
    if comparison.ratio(99) > limits.max_p99_ratio + _ROUNDING:
        reasons.append(f"{describe_p99(comparison)}, over the limit of {limits.max_p99_ratio:g}")
    return comparison, reasons


def describe_change(name: str, pair: Pair) -> str:
    """`mean R@1 fell by 1.25 points (95%: -1.90 to -0.60), from 59.60 to 58.35`."""
    verb = "fell" if pair.change < 0 else "rose" if pair.change > 0 else "changed"
    interval = f"95%: {pair.difference.low * 100:+.2f} to {pair.difference.high * 100:+.2f}"
    before, after = f"{pair.a * 100:.2f}", f"{pair.b * 100:.2f}"
    return f"{name} R@1 {verb} by {abs(pair.change) * 100:.2f} points ({interval}), from {before} to {after}"


def describe_p99(comparison: Comparison) -> str:
    """`p99 is 1.35 times the baseline's: 311.9 ms, baseline 231.0 ms`."""
    before, after = (side.percentiles[99].ms for side in (comparison.a, comparison.b))
    return f"p99 is {comparison.ratio(99):.2f} times the baseline's: {after:.1f} ms, baseline {before:.1f} ms"
