"""A comparison for people: what differs between the runs, then which differences are real."""

import json
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.comparison.compare import COMPARED, Comparison
from benchmarks.scoring.measures import MEASURES
from benchmarks.stats.paired_tests import Pair

_LONGEST_VALUE = 24  # characters


def print_comparison(found: Comparison, console: Console) -> None:
    """Points and milliseconds; a difference is B less A."""
    for name, side in (("A", found.a), ("B", found.b)):
        notes = [f"{side.failed:,} queries failed or were not asked"] if side.failed else []
        notes += [] if side.valid else ["invalid, as it says itself"]
        console.print(f"{name}: {'; '.join([str(side.run.folder), *notes])}", soft_wrap=True, markup=False)
    _print_differs(found, console)
    for measure in MEASURES:
        _print_measure(found, measure, console)
    for name, side in (("A", found.a), ("B", found.b)):
        for percent in COMPARED:
            console.print(f"{name}: {side.percentiles[percent]}", soft_wrap=True, highlight=False)
        console.print(f"{name}: {side.images_per_s:.1f} images/s", highlight=False)
    ratios = [f"p{percent} {found.ratio(percent):.2f}" for percent in COMPARED]
    ratios.append(f"images/s {found.b.images_per_s / found.a.images_per_s:.2f}")
    console.print(f"B / A: {', '.join(ratios)}", highlight=False)


def _print_differs(found: Comparison, console: Console) -> None:
    table = Table("run.json", "A", "B", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for key, (a, b) in found.differs.items():
        table.add_row(key, _clipped(a), _clipped(b))
    console.print(table if found.differs else "run.json says the same of both")


def _print_measure(found: Comparison, measure: str, console: Console) -> None:
    table = Table(measure, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("queries", "A", "B", "B - A", "95%"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    of_domains = {domain: pairs[measure] for domain, pairs in found.domains.items()}
    for domain, pair in of_domains.items():
        table.add_row(domain, *_cells(found.queries[domain], pair))
    table.add_section()
    mean = found.mean[measure]
    table.add_row("mean", *_cells(sum(found.queries.values()), mean))
    console.print(table)
    console.print(
        f"mean {measure}, 95%: A {_ends(mean, 'a_interval', '.1f')}, B {_ends(mean, 'b_interval', '.1f')}; "
        f"{_in_words({**of_domains, 'mean': mean})}",
        soft_wrap=True,
        highlight=False,
    )


def _in_words(pairs: Mapping[str, Pair]) -> str:
    real = [f"{name} {pair.change * 100:+.1f}" for name, pair in pairs.items() if pair.significant]
    rest = [name for name, pair in pairs.items() if not pair.significant]
    said = [f"real: {', '.join(real)}"] if real else ["no difference is real"]
    return "; ".join([*said, f"not told apart: {', '.join(rest)}"] if real and rest else said)


def _cells(queries: int, pair: Pair) -> list[str]:
    points = [f"{pair.a * 100:.1f}", f"{pair.b * 100:.1f}", f"{pair.change * 100:+.1f}"]
    return [
        f"{queries:,}",
        *points,
        _ends(pair, "difference", "+.1f"),
        "real" if pair.significant else "not told apart",
    ]


def _ends(pair: Pair, name: str, form: str) -> str:
    interval = getattr(pair, name)
    return f"[{interval.low * 100:{form}}, {interval.high * 100:{form}}]"


def _clipped(value: Any) -> str:
    said = value if isinstance(value, str) else json.dumps(value)
    return escape(said if len(said) <= _LONGEST_VALUE else f"{said[: _LONGEST_VALUE - 3]}...")
