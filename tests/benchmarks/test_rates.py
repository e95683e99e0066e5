"""`load`, `saturate`, `concurrency` and `selftest` from the command line, on the live service."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import BenchmarkError
from benchmarks.load.records import SaturateSummary
from benchmarks.load.workload import DOMAIN
from benchmarks.runs.records import RunRecord, read_record, to_json
from benchmarks.runs.run import PACKED, Run
from benchmarks.targets.process import ServiceProcess

SLO_MS = "60000"  # every request of a slow machine is within the SLO
pytestmark = pytest.mark.usefixtures("patient")


def result_of(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_mixed_traffic_leaves_the_gallery_unchanged(
    octet: Dataset, service: ServiceProcess, http: httpx.Client, tmp_path: Path
) -> None:
    before = http.get("/v1/domains").json()
    mix = "search=0.4,embed=0.3,index=0.2,delete=0.1"
    options = ("--url", service.url, "--out", tmp_path / "run", "--seconds", 2, "--slo-ms", SLO_MS)
    command = ("load", octet.root, *options, "--concurrency", 4, "--mix", mix, "--sizes", "uned")
    summary = result_of(*command)
    assert summary["good_share"] == 1
    assert summary["failed"] == 0
    run = Run(tmp_path / "run")
    assert {observation.kind for observation in run.observations()} <= {"search", "embed", "index", "delete"}
    assert (run.folder / PACKED).exists()
    assert (run.folder / "latency.hlog").read_text().startswith("#[")
    assert json.loads((run.folder / "summary.json").read_text()) == summary
    assert run.record(RunRecord).info.model.name == "efficientnet-lite0-octet"
    after = http.get("/v1/domains").json()
    assert after == before
    assert DOMAIN not in str(after)
    with pytest.raises(BenchmarkError, match="not resumed"):
        result_of(*command)


def test_a_rate_is_found_and_a_second_call_runs_no_trial(
    octet: Dataset, service: ServiceProcess, tmp_path: Path
) -> None:
    options = ("--url", service.url, "--out", tmp_path, "--seconds", 0.3, "--slo-ms", 3000, "--repeats", 1)
    summary = result_of("saturate", octet.root, *options)
    assert summary["rate_per_s"] > 0
    assert summary["confirmed"][0]["good_share"] >= 0.99
    assert to_json(read_record(tmp_path / "summary.json", SaturateSummary)) == summary
    lines = (tmp_path / "trials.jsonl").read_text()
    assert result_of("saturate", octet.root, *options) == summary
    assert (tmp_path / "trials.jsonl").read_text() == lines


def test_the_sweep_of_concurrencies_has_a_knee(
    octet: Dataset, service: ServiceProcess, tmp_path: Path
) -> None:
    options = ("--url", service.url, "--out", tmp_path, "--seconds", 0.3, "--mix", "embed=1")
    summary = result_of("concurrency", octet.root, *options)
    assert [trial["streams"] for trial in summary["trials"]] == [1, 2, 4, 8, 16, 32, 64]
    assert summary["knee"] in {1, 2, 4, 8, 16, 32, 64}
    assert (tmp_path / "concurrency.png").read_bytes().startswith(b"\x89PNG")


def test_selftest_measures_the_client(octet: Dataset) -> None:
    result = result_of("selftest", octet.root, "--seconds", 1)
    assert result["requests_per_s"] > 0
    assert result["client_cpu_ms"] > 0
