"""Summaries of runs that were resumed, interrupted, sent in groups, or composed of others."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.comparison.gate import Limits, judge
from benchmarks.errors import RunError
from benchmarks.load.scenarios import Scenario
from benchmarks.replay.summary import summarise
from benchmarks.reports import write_points
from benchmarks.runs.latency import latency
from benchmarks.runs.records import write_record
from benchmarks.runs.run import Observation, Run
from tests.support.observed import observe, seen
from tests.support.page import Page
from tests.support.reported import REPORTED, A, B, Q, a_run


def observe_only(run: Run, observations: Sequence[Observation]) -> None:
    (run.folder / "observations-000-00.jsonl").unlink()
    observe(run, observations)


def test_a_retried_query_is_reported(tmp_path: Path) -> None:
    run, data, before = a_run(tmp_path)
    assert (before.totals.failed, before.totals.retried) == (1, 0)
    observe(run, [seen(A[3], [A[2]], 0.0, 0.040, segment=1)])
    after = summarise(data, run)
    assert (after.totals.failed, after.totals.retried, after.valid) == (0, 1, True)
    done = CliRunner().invoke(app, ["report", str(run.folder)], catch_exceptions=False)
    assert "answered only when retried: 1" in done.stdout
    page = Page(run.folder / "report.html").text
    assert "0 queries failed, 1 query answered only when retried" in page
    assert "retried" in (run.folder / "points.csv").read_text().splitlines()[0]
    _, reasons = judge(run, run, Limits(0.5, 1.2))
    assert reasons[0] == f"1 query of {run.folder} answered only when retried"


def test_an_incomplete_run_is_invalid_wherever_it_is_read(tmp_path: Path) -> None:
    run, data, _ = a_run(tmp_path)
    observe_only(run, run.observations()[:2])
    summary = summarise(data, run)
    assert not summary.valid
    (reason,) = summary.invalid_because
    assert reason.startswith("the run is incomplete: 3 of 5 queries were not sent")
    assert write_points(run, summary).read_text().splitlines()[1].endswith(",False")


def test_latency_of_a_group_ends_with_its_last_response(tmp_path: Path) -> None:
    run, data, _ = a_run(tmp_path)
    record = replace(REPORTED, data=str(data.root), scenario=Scenario("MultiStream", group=5))
    write_record(run.folder / "run.json", record)
    observe_only(run, [seen(query, B, 0.0, 0.010 * (row + 1)) for row, query in enumerate([*A, Q])])
    totals = summarise(data, run).totals
    assert [totals.p50_ms, totals.p95_ms, totals.p99_ms] == pytest.approx([50, 50, 50])


def test_segments_with_separate_clocks_add_up() -> None:
    """The oracle is composed so: two runs of 100 answers/s, each starting at zero."""
    first = [seen(A[0], [], n / 100, 0.010) for n in range(100)]
    other = [replace(answer, segment=1) for answer in first[:50]]
    assert latency([*first, *other]).images_per_s == pytest.approx(100, rel=0.02)


def test_a_table_of_something_else_is_left_alone(tmp_path: Path) -> None:
    run, _, summary = a_run(tmp_path)
    file = tmp_path / "points.csv"
    file.write_text("name,value\na,1\n")
    with pytest.raises(RunError, match="not a table of operating points"):
        write_points(Run(run.folder), summary, file)
    assert file.read_text() == "name,value\na,1\n"
