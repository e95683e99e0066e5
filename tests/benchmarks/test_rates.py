"""`load`, `saturate`, `concurrency` and `selftest` as a person runs them, on the live service."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import BenchmarkError
from benchmarks.load.workload import DOMAIN
from benchmarks.runs.records import RunRecord
from benchmarks.runs.run import PACKED, Run
from benchmarks.targets.process import ServiceProcess

SLOW_MS = "60000"  # so that nothing is bad on a slow machine
pytestmark = pytest.mark.usefixtures("patient")


def asked(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_mixed_traffic_leaves_the_gallery_as_it_was(
    octet: Dataset, service: ServiceProcess, http: httpx.Client, tmp_path: Path
) -> None:
    before = http.get("/v1/domains").json()
    mix = "search=0.4,embed=0.3,index=0.2,delete=0.1"
    options = ("--url", service.url, "--out", tmp_path / "run", "--seconds", 2, "--slo-ms", SLOW_MS)
    found = asked("load", octet.root, *options, "--concurrency", 4, "--mix", mix, "--sizes", "uned")
    assert found["good_share"] == 1
    assert found["failed"] == 0
    run = Run(tmp_path / "run")
    assert {one.kind for one in run.observations()} <= {"search", "embed", "index", "delete"}
    assert (run.folder / PACKED).exists()
    assert (run.folder / "latency.hlog").read_text().startswith("#[")
    assert json.loads((run.folder / "summary.json").read_text()) == found
    assert run.record(RunRecord).info.model.name == "efficientnet-lite0-octet"
    after = http.get("/v1/domains").json()
    assert after == before
    assert DOMAIN not in str(after)
    with pytest.raises(BenchmarkError, match="is not resumed"):
        asked("load", octet.root, *options, "--concurrency", 4, "--mix", mix, "--sizes", "uned")


def test_a_rate_is_found_and_a_second_call_tries_nothing(
    octet: Dataset, service: ServiceProcess, tmp_path: Path
) -> None:
    options = ("--url", service.url, "--out", tmp_path, "--seconds", 0.3, "--slo-ms", 1000, "--repeats", 1)
    found = asked("saturate", octet.root, *options)
    assert found["rate_per_s"] > 0
    assert found["confirmed"][0]["good_share"] >= 0.99
    lines = (tmp_path / "trials.jsonl").read_text()
    assert asked("saturate", octet.root, *options) == found
    assert (tmp_path / "trials.jsonl").read_text() == lines


def test_the_sweep_of_concurrencies_has_a_knee(
    octet: Dataset, service: ServiceProcess, tmp_path: Path
) -> None:
    options = ("--url", service.url, "--out", tmp_path, "--seconds", 0.3, "--mix", "embed=1")
    found = asked("concurrency", octet.root, *options)
    assert [one["streams"] for one in found["trials"]] == [1, 2, 4, 8, 16, 32, 64]
    assert found["knee"] in {1, 2, 4, 8, 16, 32, 64}
    assert (tmp_path / "concurrency.png").read_bytes().startswith(b"\x89PNG")


def test_the_client_knows_its_own_limit(octet: Dataset) -> None:
    found = asked("selftest", octet.root, "--seconds", 1)
    assert found["requests_per_s"] > 50  # what this service could answer at most, anywhere
    assert found["client_cpu_ms"] > 0
