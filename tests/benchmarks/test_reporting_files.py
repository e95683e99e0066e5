"""The files of a run for other tools."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from benchmarks.replay.records import ReplayRecord, RunSummary
from benchmarks.reports import write_hdr_log, write_mteb, write_points
from benchmarks.reports.hdr_log import DIGITS, HIGHEST_US, LOWEST_US
from benchmarks.runs.run import Run
from tests.support.observed import seen
from tests.support.reported import A, Q, a_run


@pytest.fixture
def reported(tmp_path: Path) -> tuple[Run, RunSummary]:
    run, _, summary = a_run(tmp_path)
    return run, summary


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_mteb(reported: tuple[Run, RunSummary]) -> None:
    run, summary = reported
    files = write_mteb(run, summary)
    assert [file.name for file in files] == ["a.json", "b.json"]
    result = json.loads(files[0].read_text())
    assert result["task_name"] == "data set-a"
    assert result["dataset_revision"] == "f" * 64
    assert result["evaluation_time"] == pytest.approx(0.53)  # of the answered queries
    assert result["date"] == 1795564201
    (scores,) = result["scores"]["test"]
    assert scores["main_score"] == scores["hit_rate_at_1"] == 0.25
    assert scores["mMP@5"] == summary.domains["a"].mmp_at_5
    assert (scores["hf_subset"], scores["languages"]) == ("default", ["zxx-Zxxx"])


def test_points_of_many_runs_lie_side_by_side(reported: tuple[Run, RunSummary], tmp_path: Path) -> None:
    run, summary = reported
    (row,) = rows_of(write_points(run, summary))
    assert (row["run"], row["precision"], row["concurrency"], row["ef"]) == ("run", "fp32", "4", "")
    assert float(row["R@1"]) == 0.125
    assert (float(row["R@1 a"]), float(row["R@1 b"])) == (0.25, 0.0)
    assert row["valid"] == "True"
    other = Run(tmp_path / "other")
    other.begin(run.record(ReplayRecord))
    table = tmp_path / "ladder.csv"
    write_points(run, summary, table)
    fewer = replace(summary, domains={"c": summary.domains["b"]})
    write_points(other, fewer, table)
    write_points(other, replace(fewer, valid=False), table)  # replaces the row before
    first, second = rows_of(table)
    assert (first["run"], first["R@1 a"], first["R@1 c"], first["valid"]) == ("run", "0.25", "", "True")
    assert (second["run"], second["R@1 a"], second["R@1 c"], second["valid"]) == ("other", "", "0.0", "False")


def test_cells_with_line_breaks_survive(reported: tuple[Run, RunSummary], tmp_path: Path) -> None:
    run, summary = reported
    table = tmp_path / "points.csv"
    table.write_text('run,note\nother,"two\r\nlines, ""quoted"""\n', newline="")
    write_points(run, summary, table)
    write_points(run, summary, table)
    rows = rows_of(table)
    assert [(row["run"], row["note"]) for row in rows] == [("other", 'two\r\nlines, "quoted"'), ("run", "")]


def test_the_hdr_log_is_read_again_by_its_own_reader(reported: tuple[Run, RunSummary]) -> None:
    run, _ = reported
    observations = [
        seen(A[0], [], 0.0, 0.010),
        seen(A[1], [], 0.1, 0.020),
        seen(A[2], [], 0.2, 0.030, status=503),  # has no latency
        seen(A[3], [], 1.9, 0.0),
        seen(Q, [], 0.1, 0.5, segment=1, kind="embed"),  # 1.9 s went before
    ]
    file = write_hdr_log(run, observations)
    reader = HistogramLogReader(str(file), HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS))
    rows = []
    while (histogram := reader.get_next_interval_histogram()) is not None:
        start_s = histogram.get_start_time_stamp() / 1000 - 1795564201
        rows.append((start_s, histogram.get_tag(), histogram.get_total_count(), histogram.get_max_value()))
    reader.close()
    assert [row[:3] for row in rows] == [(0, "search", 2), (1, "search", 1), (2, "embed", 1)]
    assert [row[3] for row in rows] == pytest.approx([20_000, 1, 500_000], rel=1e-3)
