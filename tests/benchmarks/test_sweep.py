"""A sweep: its axes, its front and its table; `test_points` measures one."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.errors import BenchmarkError
from benchmarks.operating_points.sweep import (
    LATENCY,
    THROUGHPUT,
    GridPoint,
    axes_of,
    front,
    point_at,
    print_sweep,
    sweep_to_json,
)
from benchmarks.runs.run import Run


def test_axes_are_read_and_refused() -> None:
    assert axes_of(["max_batch=4,16", "UIE_LANES=1"]) == {"max_batch": ["4", "16"], "lanes": ["1"]}
    with pytest.raises(BenchmarkError, match="an axis has the form"):
        axes_of(["max_batch"])
    point = point_at({"max_batch": "4", "concurrency": "2", "ef": "64"})
    assert (point.settings, point.streams, point.ef) == ({"max_batch": "4"}, 2, 64)
    assert (point.exact, point.graph) == (False, True)  # an ef is of HNSW
    assert point_at({"exact": "true"}).exact
    for wrong in ({"ef": "many"}, {"exact": "perhaps"}):
        with pytest.raises(BenchmarkError, match="not a valid value"):
            point_at(wrong)
    for none in ({"concurrency": "0"}, {"ef": "0"}, {"concurrency": "-1"}):
        with pytest.raises(BenchmarkError, match="at least 1"):
            point_at(none)


@pytest.mark.parametrize("text", ["a=4,,16", "a=4,", "a= ", " =4", "UIE_=4"])
def test_an_empty_name_or_value_is_refused(text: str) -> None:
    with pytest.raises(BenchmarkError, match="an axis has the form"):
        axes_of([text])


def test_an_axis_that_is_given_twice_is_refused() -> None:
    with pytest.raises(BenchmarkError, match=r"max_batch=4,16$"):
        axes_of(["max_batch=4", "UIE_MAX_BATCH=16"])


def test_values_are_printed_as_they_are() -> None:
    output = io.StringIO()
    point = GridPoint({"model[b]": "a[/b]"}, Run(Path("x")), 0.5, 10, 20, "it [/lagged]")
    print_sweep([point], Console(file=output, width=100))
    for text in ("model[b]", "a[/b]", "invalid: x: it [/lagged]"):
        assert text in output.getvalue()


def test_the_front_holds_the_points_that_no_other_beats() -> None:
    results = {"slow": (0.6, 90, 10), "best": (0.6, 80, 20), "fast": (0.5, 40, 50), "worse": (0.4, 60, 40)}
    points = [GridPoint({"name": name}, Run(Path(name)), *values) for name, values in results.items()]
    assert [point.axes["name"] for point in front(points, LATENCY)] == ["best", "fast"]
    assert [point.axes["name"] for point in front(points, THROUGHPUT)] == ["best", "fast"]
    assert sweep_to_json(points)["front"] == {"p99_ms": ["best", "fast"], "images_per_s": ["best", "fast"]}
    lagged = replace(points[1], r_at_1=0.9, invalid_because="the client lagged")
    assert [point.axes["name"] for point in front([*points, lagged], LATENCY)] == ["best", "fast"]
