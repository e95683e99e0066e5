"""What a summary says of runs that were resumed, cut short, sent in groups, or put together of others."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.comparison.gate import Limits, judge
from benchmarks.errors import RunError
from benchmarks.replay.summary import summarise
from benchmarks.reports import write_points
from benchmarks.runs.latency import latency
from benchmarks.runs.run import Observation, Run
from tests.support.observed import observe, seen
from tests.support.reported import SAID, A, B, Q, a_run


def observe_only(run: Run, observations: Sequence[Observation]) -> None:
    (run.folder / "observations-000-00.jsonl").unlink()
    observe(run, observations)


def test_a_query_that_failed_and_was_asked_again_is_told(tmp_path: Path) -> None:
    run, data, before = a_run(tmp_path)
    assert (before["all"]["failed"], before["all"]["retried"]) == (1, 0)
    observe(run, [seen(A[3], [A[2]], 0.0, 0.040, segment=1)])
    after = summarise(data, run)
    assert (after["all"]["failed"], after["all"]["retried"], after["valid"]) == (0, 1, True)
    done = CliRunner().invoke(app, ["report", str(run.folder)], catch_exceptions=False)
    assert "answered only when asked again: 1" in done.stdout
    page = " ".join((run.folder / "report.html").read_text().split())
    assert "0 queries failed, 1 request answered only when asked again" in page
    assert "retried" in (run.folder / "points.csv").read_text().splitlines()[0]
    verdict = judge(run, run, Limits(0.5, 1.2))
    assert verdict.why[0] == f"1 requests of {run.folder} were answered only when asked again"


def test_a_run_that_is_not_whole_is_invalid_wherever_it_is_read(tmp_path: Path) -> None:
    run, data, _ = a_run(tmp_path)
    observe_only(run, run.observations()[:2])
    summary = summarise(data, run)
    why = "the run is not whole: 3 of 5 queries were not asked yet; replay again to go on"
    assert (summary["valid"], summary["invalid_because"]) == (False, [why])
    assert write_points(run, summary).read_text().splitlines()[1].endswith(",False")


def test_what_was_sent_together_took_until_all_of_it_was_answered(tmp_path: Path) -> None:
    run, data, _ = a_run(tmp_path)
    scenario = {**SAID["scenario"], "name": "MultiStream", "streams": 1, "group": 5}
    (run.folder / "run.json").write_text(json.dumps({**run.said(), "scenario": scenario}))
    observe_only(run, [seen(one, B, 0.0, 0.010 * (row + 1)) for row, one in enumerate([*A, Q])])
    whole = summarise(data, run)["all"]
    assert [whole[f"p{percent}_ms"] for percent in (50, 95, 99)] == pytest.approx([50, 50, 50])


def test_clocks_of_their_own_add_up() -> None:
    """As the oracle is made: two runs of 100 answers/s, each with its own zero."""
    one = [seen(A[0], [], n / 100, 0.010) for n in range(100)]
    other = [replace(answer, segment=1) for answer in one[:50]]
    assert latency([*one, *other]).images_per_s == pytest.approx(100, rel=0.02)


def test_a_table_of_something_else_is_left_alone(tmp_path: Path) -> None:
    run, _, summary = a_run(tmp_path)
    file = tmp_path / "points.csv"
    file.write_text("name,value\na,1\n")
    with pytest.raises(RunError, match="no table of operating points"):
        write_points(Run(run.folder), summary, file)
    assert file.read_text() == "name,value\na,1\n"
