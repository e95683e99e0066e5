"""`load` if it is stopped, or cannot delete or write: the results so far are summarised."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from benchmarks.__main__ import app
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import BenchmarkError, DataError, RunError
from benchmarks.load.records import LoadSummary
from benchmarks.load.trial import Trial
from benchmarks.load.workload import DOMAIN
from benchmarks.runs.records import read_record, to_json
from benchmarks.runs.run import PACKED, Run
from tests.support.paths import ROOT
from tests.support.reported import a_run
from tests.support.signals import heeding_ctrl_c
from tests.support.stub import stub

INDEXES = ("--mix", "search=0.5,index=0.5", "--slo-ms", 60_000, "--seconds", 1, "--concurrency", 2)
LATER_S = "3600"  # more than the harness waits: it does not retry


class Service:
    """A stub of the service; its attributes cause failures."""

    def __init__(self) -> None:
        self.url = ""
        self.items = set[str]()
        self.refusals = 0  # so many deletes of each item are answered 429
        self.retry_after = "0"  # seconds, with a 429
        self.is_down = False
        self.hangs = False
        self.removes_after: tuple[int, Path] | None = None  # removes the image after so many requests
        self._deletes = Counter[str]()
        self._requests = 0

    async def answer(self, request: web.Request) -> web.Response:
        await request.read()
        if request.path == "/v1/info":
            index = {"items": len(self.items), "fingerprint": "f"}
            return web.json_response({"model": {"name": "m", "fingerprint": "f"}, "index": index})
        await asyncio.sleep(0.02)  # or the client would be the bottleneck
        self._requests += 1
        if self.removes_after and self._requests == self.removes_after[0]:
            self.removes_after[1].unlink()
        name = request.path.removeprefix("/v1/items/")
        while self.hangs:  # noqa: ASYNC110 (set by another thread)
            await asyncio.sleep(0.05)
        if request.method == "PUT":
            self.items.add(name)
        elif request.method == "DELETE":
            self._deletes[name] += 1
            if self._deletes[name] <= self.refusals:
                problem = {"type": "overloaded", "detail": "full"}
                return web.json_response(problem, status=429, headers={"Retry-After": self.retry_after})
            self.items.discard(name)
        return web.json_response({"hits": [], "deleted": True}, status=500 if self.is_down else 200)


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    with stub(service.answer) as url:
        service.url = url
        yield service


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Five test images."""
    _, data, _ = a_run(tmp_path)
    return data


def load(data: Dataset, service: Service, out: Path, *options: object) -> Result:
    words = ("load", data.root, "--url", service.url, "--out", out, *INDEXES, *options, "--json")
    return CliRunner().invoke(app, [str(word) for word in words])


def failed(done: Result) -> BenchmarkError:
    assert isinstance(done.exception, BenchmarkError), done.exception
    return done.exception


def test_a_delete_that_is_refused_with_429_is_repeated(
    data: Dataset, service: Service, tmp_path: Path
) -> None:
    service.refusals = 2
    done = load(data, service, tmp_path / "load")
    assert (done.exit_code, done.stderr) == (0, "")
    assert not service.items
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["good_share"], summary["whole"]) == (1.0, True)


def test_items_that_cannot_be_deleted_are_a_warning(data: Dataset, service: Service, tmp_path: Path) -> None:
    service.refusals, service.retry_after = 1, LATER_S
    done = load(data, service, tmp_path / "load")
    assert done.exit_code == 0
    left = len(service.items)
    assert left > 0
    assert done.stderr.startswith(f"warning: {left} of {left} items")
    assert DOMAIN in done.stderr
    assert done.stderr.endswith("failed (429): full\n")
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary == json.loads((tmp_path / "load" / "summary.json").read_text())
    assert summary.keys() == {"version", "whole", *(field.name for field in fields(Trial))}
    assert to_json(read_record(tmp_path / "load" / "summary.json", LoadSummary)) == summary
    assert (tmp_path / "load" / PACKED).exists()


def test_the_first_error_is_reported_and_the_results_before_it_are_summarised(
    data: Dataset, service: Service, tmp_path: Path
) -> None:
    missing = data.image(data.queries("a")[1])
    service.refusals, service.retry_after = 1, LATER_S
    service.removes_after = (60, missing)  # the warm-up sends 32 at most
    # A rate bounds the number of prepared requests; the time is never reached.
    done = load(data, service, tmp_path / "load", "--rate", 50, "--seconds", 300)
    error = failed(done)
    assert isinstance(error, DataError)
    assert str(error).startswith(f"{missing} cannot be read: No such file or directory; ")
    assert str(tmp_path / "load") in str(error)
    assert done.stderr.startswith("warning: ")
    summary = json.loads((tmp_path / "load" / "summary.json").read_text())
    assert not summary["whole"]
    assert summary["requests"] == len(Run(tmp_path / "load").observations()) > 0


def started(data: Dataset, service: Service, out: Path) -> subprocess.Popen[str]:
    """A load that has some results."""
    options = ("--url", service.url, "--out", out, *INDEXES, "--seconds", 60, "--rate", 50)
    command = [sys.executable, "-m", "benchmarks", "load", *map(str, (data.root, *options))]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    with heeding_ctrl_c():
        process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=pipe)
    part = out / "observations-000-00.jsonl"
    while not part.exists() or part.read_text().count("\n") < 10:
        assert process.poll() is None
        time.sleep(0.02)
    return process


def test_ctrl_c_summarises_the_results_so_far(data: Dataset, service: Service, tmp_path: Path) -> None:
    out = tmp_path / "load"
    service.refusals, service.retry_after = 1, LATER_S
    process = started(data, service, out)
    for _ in range(3):  # pressed repeatedly
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    warning, last = errors.splitlines()[-2:]
    assert warning.startswith("warning: ")
    assert last.startswith("benchmarks: stopped; ")
    assert str(out) in last
    assert "answered/s" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert not summary["whole"]
    assert summary["requests"] == len(Run(out).observations()) >= 10
    assert {file.name for file in out.glob("observations*")} == {PACKED}
    assert (out / "latency.hlog").exists()
    assert "not resumed" in str(failed(load(data, service, out, "--seconds", 60, "--rate", 50)))


def test_a_second_ctrl_c_does_not_wait_for_requests_in_flight(
    data: Dataset, service: Service, tmp_path: Path
) -> None:
    process = started(data, service, tmp_path / "load")
    service.hangs = True
    time.sleep(1)  # requests are sent that will not be answered
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(2)
    service.hangs = False  # its items can be deleted
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("benchmarks: stopped; the results so far are in")


def test_a_load_without_results_starts_again(data: Dataset, service: Service, tmp_path: Path) -> None:
    service.is_down = True
    assert "warm-up" in str(failed(load(data, service, tmp_path / "load")))
    assert not (tmp_path / "load" / "summary.json").exists()
    service.is_down = False
    assert load(data, service, tmp_path / "load").exit_code == 0


def test_files_that_cannot_be_written_are_reported_and_results_are_kept(
    data: Dataset, service: Service, tmp_path: Path
) -> None:
    (tmp_path / "load" / "latency.hlog").mkdir(parents=True)
    error = failed(load(data, service, tmp_path / "load"))
    assert isinstance(error, RunError)
    assert "latency.hlog cannot be written: Is a directory" in str(error)
    summary = json.loads((tmp_path / "load" / "summary.json").read_text())
    assert summary["requests"] == len(Run(tmp_path / "load").observations()) > 0
    assert not service.items
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "images").touch()
    error = failed(load(data, service, tmp_path / "other", "--sizes", "uned"))
    assert isinstance(error, RunError)
    assert "other/images/a-test-0000000-700x480.jpg cannot be written" in str(error)
