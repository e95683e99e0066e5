"""`load` where it is stopped, or cannot clean up or write: what was measured is summarised all the same."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from benchmarks.__main__ import app
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import BenchmarkError, DataError, RunError
from benchmarks.load.workload import DOMAIN
from benchmarks.runs.run import PACKED, Run
from benchmarks.targets import service as client
from tests.conftest import ROOT
from tests.support.reported import a_run
from tests.support.signals import heeding_ctrl_c
from tests.support.stub import stub

INDEXES = ("--mix", "search=0.5,index=0.5", "--slo-ms", 60_000, "--seconds", 1, "--concurrency", 2)


class Service:
    """Answers everything; what it does otherwise is said by its attributes."""

    def __init__(self) -> None:
        self.url = ""
        self.items = set[str]()
        self.full = 0  # the first so many deletes of each item are answered 429
        self.is_down = False
        self.gone_after: tuple[int, Path] | None = None  # requests, then this picture is no more
        self._deletes = Counter[str]()
        self._requests = 0

    async def answer(self, request: web.Request) -> web.Response:
        await request.read()
        if request.path == "/v1/info":
            index = {"items": len(self.items), "fingerprint": "f"}
            return web.json_response({"model": {"name": "m", "fingerprint": "f"}, "index": index})
        await asyncio.sleep(0.02)  # or the client would be the limit
        self._requests += 1
        if self.gone_after and self._requests == self.gone_after[0]:
            self.gone_after[1].unlink()
        name = request.path.removeprefix("/v1/items/")
        if request.method == "PUT":
            self.items.add(name)
        elif request.method == "DELETE":
            self._deletes[name] += 1
            if self._deletes[name] <= self.full:
                return web.json_response({"detail": "full"}, status=429)
            self.items.discard(name)
        return web.json_response({"hits": []}, status=500 if self.is_down else 200)


@pytest.fixture
def service() -> Iterator[Service]:
    answers = Service()
    with stub(answers.answer) as url:
        answers.url = url
        yield answers


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Five test pictures."""
    _, found, _ = a_run(tmp_path)
    return found


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_PAUSES_S", (0.0, 0.0))


def load(data: Dataset, service: Service, out: Path, *options: object) -> Result:
    words = ("load", data.root, "--url", service.url, "--out", out, *INDEXES, *options, "--json")
    return CliRunner().invoke(app, [str(word) for word in words])


def failed(done: Result) -> BenchmarkError:
    assert isinstance(done.exception, BenchmarkError), done.exception
    return done.exception


@pytest.mark.usefixtures("patient")
def test_a_delete_that_finds_no_room_is_tried_again(data: Dataset, service: Service, tmp_path: Path) -> None:
    service.full = 2
    done = load(data, service, tmp_path / "load")
    assert (done.exit_code, done.stderr) == (0, "")
    assert not service.items
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["good_share"], found["whole"]) == (1.0, True)


@pytest.mark.usefixtures("patient")
def test_what_cannot_be_deleted_is_a_warning_beside_the_figures(
    data: Dataset, service: Service, tmp_path: Path
) -> None:
    service.full = 3
    done = load(data, service, tmp_path / "load")
    assert done.exit_code == 0
    left = len(service.items)
    assert left > 0
    assert done.stderr == (
        f"warning: {left} of {left} pictures that the load indexed are still in {DOMAIN}: "
        "DELETE /v1/items failed (429): full\n"
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / "load" / "summary.json").read_text())
    assert (tmp_path / "load" / PACKED).exists()


@pytest.mark.usefixtures("patient")
def test_the_first_error_is_told_and_what_was_before_it_is_summarised(
    data: Dataset, service: Service, tmp_path: Path
) -> None:
    gone = data.image(data.queries("a")[1])
    service.full, service.gone_after = 3, (60, gone)  # 32 are the warm-up's, of searches only
    done = load(data, service, tmp_path / "load")
    error = failed(done)
    assert isinstance(error, DataError)
    assert str(error) == (
        f"{gone} cannot be read: No such file or directory; what was measured so far is summarised in "
        f"{tmp_path / 'load'}; a load is not resumed"
    )
    assert done.stderr.startswith("warning: ")
    summary = json.loads((tmp_path / "load" / "summary.json").read_text())
    assert not summary["whole"]
    assert summary["requests"] == len(Run(tmp_path / "load").observations()) > 0


def test_ctrl_c_summarises_what_was_measured(data: Dataset, service: Service, tmp_path: Path) -> None:
    out = tmp_path / "load"
    service.full = 1000
    options = ("--url", service.url, "--out", out, *INDEXES, "--seconds", 60, "--rate", 50)
    command = [sys.executable, "-m", "benchmarks", "load", *map(str, (data.root, *options))]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    told = subprocess.PIPE
    with heeding_ctrl_c():
        process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=told, stderr=told)
    part = out / "observations-000-00.jsonl"
    while not part.exists() or part.read_text().count("\n") < 10:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 130
    warning, last = said.splitlines()[-2:]
    assert warning.startswith("warning: ")
    assert (
        last == f"benchmarks: stopped; what was measured so far is summarised in {out}; a load is not resumed"
    )
    assert "answered/s" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert not summary["whole"]
    assert summary["requests"] == len(Run(out).observations()) >= 10
    assert {one.name for one in out.glob("observations*")} == {PACKED}
    assert (out / "latency.hlog").exists()
    assert "one is not resumed" in str(failed(load(data, service, out, "--seconds", 60, "--rate", 50)))


def test_where_nothing_was_measured_the_same_command_begins(
    data: Dataset, service: Service, tmp_path: Path
) -> None:
    service.is_down = True
    assert "no request of the warm-up went well" in str(failed(load(data, service, tmp_path / "load")))
    assert not (tmp_path / "load" / "summary.json").exists()
    service.is_down = False
    assert load(data, service, tmp_path / "load").exit_code == 0


def test_what_cannot_be_written_is_a_sentence_and_the_figures_are_kept(
    data: Dataset, service: Service, tmp_path: Path
) -> None:
    (tmp_path / "load" / "latency.hlog").mkdir(parents=True)
    error = failed(load(data, service, tmp_path / "load"))
    assert isinstance(error, RunError)
    assert "latency.hlog cannot be written: Is a directory; what was measured is kept" in str(error)
    summary = json.loads((tmp_path / "load" / "summary.json").read_text())
    assert summary["requests"] == len(Run(tmp_path / "load").observations()) > 0
    assert not service.items
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pictures").touch()
    error = failed(load(data, service, tmp_path / "other", "--sizes", "uned"))
    assert isinstance(error, RunError)
    assert "other/pictures/a-test-0000000-700x480.jpg cannot be written" in str(error)
