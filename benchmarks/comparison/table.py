"""A comparison on the terminal: what differs between the runs, and which changes are significant."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from rich.console import Console

from benchmarks.comparison.compare import COMPARED, Comparison
from benchmarks.scoring.measures import MEASURES
from benchmarks.stats.intervals import Interval
from benchmarks.stats.paired_tests import Pair
from benchmarks.tables import Table, count

_LONGEST_VALUE = 24  # characters


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the comparison in points and milliseconds; a difference is B minus A."""
    show = partial(console.print, soft_wrap=True, markup=False, highlight=False)
    sides = (("A", comparison.a), ("B", comparison.b))
    for name, side in sides:
        notes = [f"{count(side.failed, 'query', 'queries')} failed or not sent"] if side.failed else []
        notes += [] if side.valid else ["invalid"]
        show(f"{name}: {'; '.join([str(side.run.folder), *notes])}")
    if comparison.differs:
        rows = [[key, *map(_clipped, values)] for key, values in comparison.differs.items()]
        Table(("run.json", "A", "B"), rows).print(console)
    else:
        show("run.json is the same for both")
    queries = comparison.queries
    for measure in MEASURES:
        domains = {domain: pairs[measure] for domain, pairs in comparison.domains.items()}
        mean = comparison.mean[measure]
        Table(
            (measure, "queries", "A", "B", "B - A", "95%", ""),
            [[domain, *_cells(queries[domain], pair)] for domain, pair in domains.items()],
            footer=["mean", *_cells(sum(queries.values()), mean)],
        ).print(console)
        intervals = f"A {_interval(mean.a_interval)}, B {_interval(mean.b_interval)}"
        show(f"mean {measure}, 95%: {intervals}; {_conclusion({**domains, 'mean': mean})}")
    for name, side in sides:
        for percent in COMPARED:
            show(f"{name}: {side.percentiles[percent].text}")
        show(f"{name}: {side.images_per_s:.1f} images/s")
    ratios = [f"p{percent} {comparison.ratio(percent):.2f}" for percent in COMPARED]
    ratios.append(f"images/s {comparison.images_per_s_ratio:.2f}")
    show(f"B / A: {', '.join(ratios)}")


def _conclusion(pairs: Mapping[str, Pair]) -> str:
    significant = [f"{name} {pair.change * 100:+.1f}" for name, pair in pairs.items() if pair.significant]
    others = [name for name, pair in pairs.items() if not pair.significant]
    if not significant:
        return "no difference is significant"
    parts = [f"significant: {', '.join(significant)}"]
    return "; ".join([*parts, f"not significant: {', '.join(others)}"] if others else parts)


def _cells(queries: int, pair: Pair) -> list[str]:
    return [
        f"{queries:,}",
        f"{pair.a * 100:.1f}",
        f"{pair.b * 100:.1f}",
        f"{pair.change * 100:+.1f}",
        _interval(pair.difference, "+.1f"),
        "significant" if pair.significant else "not significant",
    ]


def _interval(interval: Interval, form: str = ".1f") -> str:
    return f"[{interval.low * 100:{form}}, {interval.high * 100:{form}}]"


def _clipped(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
