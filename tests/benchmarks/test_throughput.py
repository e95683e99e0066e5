"""Throughput against latency in a report, from a run of `concurrency` of the same service."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.errors import RunError
from benchmarks.load.records import ConcurrencySummary, LoadRecord
from benchmarks.load.trial import Trial
from benchmarks.reports import throughput_of
from benchmarks.runs.records import write_summary
from benchmarks.runs.run import Run
from tests.support.page import Page
from tests.support.reported import REPORTED, a_run


def trial(streams: int, rate: float, p50_ms: float, p99_ms: float) -> Trial:
    return Trial(None, streams, 100, 1.0, 0, 0, rate, p50_ms, p99_ms, [])


def swept(folder: Path, **service: Any) -> Path:
    """47 answered/s at most, 1,000 ms at most: the plot ends at 50 and at 1,000."""
    trials = [trial(1, 23.5, 40, 50), trial(2, 47, 42, 100), trial(64, 47, 900, 1000)]
    folder.mkdir()
    record = LoadRecord(
        kind="trials",
        started=REPORTED.started,
        commit=REPORTED.commit,
        machine=REPORTED.machine,
        versions=REPORTED.versions,
        url=REPORTED.url,
        data=REPORTED.data,
        data_fingerprint=REPORTED.data_fingerprint,
        service={**REPORTED.service, **service},
        mix="search=1",
        sizes="own",
        cache="hostile",
        seconds=10,
        slo_ms=500,
        seed=0,
        processes=1,
    )
    Run(folder).begin(record)
    write_summary(folder, ConcurrencySummary(trials=trials, knee=2))
    return folder


def test_points_lie_where_they_were_measured(tmp_path: Path) -> None:
    throughput = throughput_of(swept(tmp_path / "swept"), REPORTED)
    assert throughput.plot.lines["p50"] == "47.00,96.00 94.00,95.80 94.00,10.00"
    assert throughput.plot.lines["p99"] == "47.00,95.00 94.00,90.00 94.00,0.00"
    assert [tick.text for tick in throughput.plot.x_ticks][-1] == "50"


def test_the_report_has_the_curve_its_table_and_its_knee(tmp_path: Path) -> None:
    run, _, _ = a_run(tmp_path)
    options = ["--concurrency", str(swept(tmp_path / "swept")), "--markdown"]
    done = CliRunner().invoke(app, ["report", str(run.folder), *options], catch_exceptions=False)
    assert "| 2, the knee | 47 | 42 | 100 | 100.0% |" in done.stdout
    page = Page(run.folder / "report.html")
    text = page.text
    assert "search=1, own sizes, cache-hostile, 10 s each" in text
    assert "2 the knee 47 42 100 100.0%" in text
    dots = [attributes for _, attributes in page.tags if attributes.get("class", "").startswith("dot")]
    assert [dot["class"] for dot in dots] == ["dot", "dot knee", "dot"]
    assert dots[0]["style"] == "left:47.00%;top:96.00%"


def test_another_service_or_half_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="its precision is int8, not fp32"):
        throughput_of(swept(tmp_path / "int8", precision="int8"), REPORTED)
    half = swept(tmp_path / "half")
    (half / "summary.json").unlink()
    with pytest.raises(RunError, match="not a complete run of `concurrency`"):
        throughput_of(half, REPORTED)
    with pytest.raises(RunError, match="is not a run"):
        throughput_of(tmp_path / "nothing", REPORTED)
