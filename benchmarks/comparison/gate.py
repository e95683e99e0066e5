"""Is a run good enough beside its baseline? For anybody's CI."""

from dataclasses import dataclass

from benchmarks.comparison.compare import Comparison, Side, compare
from benchmarks.errors import RunError
from benchmarks.runs.run import Run
from benchmarks.stats.paired_tests import Pair

# Latencies under another load cannot be told from a slower service.
_LOAD = ("scenario",)
_ROUNDING = 1e-9  # a drop of just the limit passes, however its digits were rounded


@dataclass(frozen=True, slots=True)
class Limits:
    """What is let through."""

    max_drop_points: float  # of R@1, 0.5: from 59.6 to 59.1
    max_p99_ratio: float


@dataclass(frozen=True)
class Verdict:
    """The comparison, A being the baseline, and why the run fails: nothing where it passes."""

    comparison: Comparison
    why: list[str]


def judge(run: Run, baseline: Run, limits: Limits) -> Verdict:
    """The mean's drop is held against the limit alone, a domain's only where it is real as well.

    For one query of a small domain moves it by points (by 6.7, of 15), and of eight domains one always drops.
    Raises RunError where the two cannot be compared.
    """
    comparison = compare(baseline, run)
    for key in _LOAD:
        before, now = baseline.said().get(key), run.said().get(key)
        if before != now:
            raise RunError(
                f"{run.folder} was under another load than {baseline.folder}: {key} {now}, not {before}"
            )
    why = [sentence for side in (comparison.a, comparison.b) for sentence in _unfit(side)]
    for name, pair, must_be_real in (
        ("mean", comparison.mean["R@1"], False),
        *((domain, pairs["R@1"], True) for domain, pairs in comparison.domains.items()),
    ):
        if -pair.change * 100 > limits.max_drop_points + _ROUNDING and (pair.significant or not must_be_real):
            why.append(f"{drop_in_words(name, pair)}, over the limit of {limits.max_drop_points:g}")
    if comparison.ratio(99) > limits.max_p99_ratio + _ROUNDING:
        why.append(f"{p99_in_words(comparison)}, over the limit of {limits.max_p99_ratio:g}")
    return Verdict(comparison, why)


def drop_in_words(name: str, pair: Pair) -> str:
    """`mean R@1 fell by 1.25 points (95%: -1.90 to -0.60), from 59.60 to 58.35`."""
    way = "fell" if pair.change < 0 else "rose" if pair.change > 0 else "moved"
    ends = f"95%: {pair.difference.low * 100:+.2f} to {pair.difference.high * 100:+.2f}"
    before, now = f"{pair.a * 100:.2f}", f"{pair.b * 100:.2f}"
    return f"{name} R@1 {way} by {abs(pair.change) * 100:.2f} points ({ends}), from {before} to {now}"


def p99_in_words(comparison: Comparison) -> str:
    """`p99 is 1.35 times the baseline's: 231.0 ms, then 311.9 ms`."""
    before, now = (side.percentiles[99].value_ms for side in (comparison.a, comparison.b))
    return f"p99 is {comparison.ratio(99):.2f} times the baseline's: {before:.1f} ms, then {now:.1f} ms"


def _unfit(side: Side) -> list[str]:
    why = []
    if not side.valid:
        why.append(f"{side.run.folder} is invalid: `report` says why")
    if side.failed:
        why.append(f"{side.failed:,} queries of {side.run.folder} failed or were not asked")
    if side.retried:
        why.append(f"{side.retried:,} requests of {side.run.folder} were answered only when asked again")
    return why
