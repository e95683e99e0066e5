"""Replays through a live service of a tiny model: every protocol gives the expected scores."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import BenchmarkError
from benchmarks.replay.records import ReplayRecord
from benchmarks.runs.records import write_record
from benchmarks.runs.run import PACKED, Run
from benchmarks.targets.process import ServiceProcess, running_service
from model_export.export.fp32 import export_model
from tests.support.paths import ROOT
from tests.support.signals import heeding_ctrl_c
from tests.support.stub import stub
from tests.support.tiny import tiny_data, tiny_trained

KEY = "a-key-of-the-tests"
pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    export_model(tiny_trained("conv"), data, folder)
    return folder


@pytest.fixture(scope="module")
def tiny(data: Dataset, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service with keys, the test gallery in its index."""
    folder = tmp_path_factory.mktemp("service")
    settings = {"model": str(model), "data_dir": str(folder / "index"), "api_keys": KEY}
    with running_service(folder / "log", None, **settings) as service:
        run_json("index", data.root, "--url", service.url)
        yield service


def run_json(*arguments: object) -> dict[str, Any]:
    """The JSON line of a command, which must succeed."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"], env={"BENCHMARKS_KEY": KEY})
    if done.exception:
        raise done.exception
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def offline(data: Dataset, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The descriptors of the same model, without a service."""
    out = tmp_path_factory.mktemp("vectors")
    command = [sys.executable, "-m", "model_export", "embed", str(model), "--data", str(data.root)]
    for split in ("test", "val"):
        subprocess.run([*command, "--out", str(out), "--split", split], check=True, cwd=ROOT)
    return out


def assert_same_scores(summary: dict[str, Any], scored: dict[str, Any]) -> None:
    for name in ("R@1", "mMP@5"):
        assert summary["mean"][name] == pytest.approx(scored["mean"][name], abs=1e-9)
        for domain, row in summary["domains"].items():
            assert row[name] == pytest.approx(scored[domain][name], abs=1e-9)


@pytest.mark.parametrize("exclusion", ["id", "position"])
@pytest.mark.parametrize("scope", ["merged", "separate"])
def test_the_service_scores_as_offline(
    data: Dataset, tiny: ServiceProcess, offline: Path, tmp_path: Path, exclusion: str, scope: str
) -> None:
    options = ("--scope", scope, "--self-exclusion", exclusion, "--concurrency", 4)
    summary = run_json("replay", data.root, "--url", tiny.url, "--out", tmp_path / "run", *options)
    scored = run_json("score", data.root, "--vectors", offline, "--self-exclusion", exclusion)
    assert summary["scope"] == scope
    assert_same_scores(summary, scored[scope])


@pytest.mark.parametrize("scenario", ["Offline", "SingleStream", "MultiStream", "Server"])
def test_every_scenario_has_the_same_accuracy(
    data: Dataset, tiny: ServiceProcess, offline: Path, tmp_path: Path, scenario: str
) -> None:
    rate = ("--rate", 20) if scenario == "Server" else ()
    summary = run_json(
        "replay", data.root, "--url", tiny.url, "--out", tmp_path / "run", "--scenario", scenario, *rate
    )
    scored = run_json("score", data.root, "--vectors", offline)
    assert_same_scores(summary, scored["merged"])
    assert Run(tmp_path / "run").record(ReplayRecord).scenario.name == scenario
    assert KEY not in (tmp_path / "run" / "run.json").read_text()
    if scenario == "Offline":  # every image was embedded, and the harness searched
        assert_same_scores(summary["separate"], scored["separate"])
        assert {observation.kind for observation in Run(tmp_path / "run").observations()} == {"bulk"}


def test_this_service_as_an_openai_or_post_target(
    data: Dataset, tiny: ServiceProcess, offline: Path, tmp_path: Path
) -> None:
    for kind, path, exclusion in (("post", "/v1/embed", "position"), ("openai", "/v1/embeddings", "id")):
        options = ("--target", kind, "--model", "tiny", "--self-exclusion", exclusion)
        summary = run_json("replay", data.root, *options, "--url", tiny.url + path, "--out", tmp_path / kind)
        assert_same_scores(
            summary,
            run_json("score", data.root, "--vectors", offline, "--self-exclusion", exclusion)["merged"],
        )


def test_val_has_a_separate_gallery(data: Dataset, model: Path, offline: Path, tmp_path: Path) -> None:
    settings = {"model": str(model), "data_dir": str(tmp_path / "index")}
    with running_service(tmp_path / "log", None, **settings) as service:
        assert run_json("index", data.root, "--url", service.url, "--split", "val") == {"uploaded": 12}
        summary = run_json(
            "replay", data.root, "--url", service.url, "--out", tmp_path / "run", "--split", "val"
        )
    assert_same_scores(
        summary, run_json("score", data.root, "--vectors", offline, "--split", "val")["merged"]
    )


def test_a_subset_sends_fewer_queries(data: Dataset, tiny: ServiceProcess, tmp_path: Path) -> None:
    summary = run_json(
        "replay", data.root, "--url", tiny.url, "--out", tmp_path / "run", "--queries-per-domain", 3
    )
    assert [row["queries"] for row in summary["domains"].values()] == [3, 3]
    assert summary["all"]["gallery"] == 30


def test_errors_of_a_replay_are_one_sentence(data: Dataset, tiny: ServiceProcess, tmp_path: Path) -> None:
    usual = ("replay", data.root, "--url", tiny.url, "--out", tmp_path / "run")
    assert CliRunner().invoke(app, [*map(str, usual), "--scenario", "Server"]).exit_code == 2
    with pytest.raises(BenchmarkError, match=r"failed \(401\)"):
        CliRunner().invoke(app, [*map(str, usual)], catch_exceptions=False)
    run_json(*usual, "--queries-per-domain", 2)
    with pytest.raises(BenchmarkError, match="another run: k differ"):
        run_json(*usual, "--queries-per-domain", 2, "--k", 7)
    with pytest.raises(BenchmarkError, match="20 items of animals, not 6"):
        run_json(*usual[:-1], tmp_path / "other", "--split", "val")


def test_a_gallery_that_is_stale_is_refused(data: Dataset, tiny: ServiceProcess, tmp_path: Path) -> None:
    changed = Dataset(shutil.copytree(data.root, tmp_path / "changed"))
    info = changed.root / "data/info_files/plants/train.json"
    info.write_text(
        info.read_text() + "\n"
    )  # the same images, but the fingerprint differs from the indexed one
    with pytest.raises(BenchmarkError, match=r"gallery of animals .* index again"):
        run_json("replay", changed.root, "--url", tiny.url, "--out", tmp_path / "run")


def test_ctrl_c_leaves_a_run_that_resumes_and_repeats_nothing(data: Dataset, tmp_path: Path) -> None:
    sent = Counter[bytes]()

    async def handler(request: web.Request) -> web.Response:
        body = await request.read()
        sent[body] += 1
        return web.json_response({"embedding": [float(len(body)), 1.0]})

    with stub(handler) as url:
        out = tmp_path / "run"
        options = ["--target", "post", "--url", url, "--out", str(out), "--concurrency", "1"]
        command = [sys.executable, "-m", "benchmarks", "replay", str(data.root), *options]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}

        async def slow(request: web.Request) -> web.Response:
            time.sleep(0.1)  # noqa: ASYNC251 (the stub's loop is to be busy)
            return await handler(request)

        with stub(slow) as slow_url:
            first = [word if word != url else slow_url for word in command]
            with heeding_ctrl_c():
                process = subprocess.Popen(
                    first, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
                )
            part = out / "observations-000-00.jsonl"
            while not part.exists() or part.read_text().count("\n") < 3:
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            output = process.stderr.read()
            assert process.wait(60) == 130
            process.stderr.close()
        assert output.splitlines()[-1].startswith("benchmarks: stopped")
        kept = Run(out).observations()
        assert 3 <= len(kept) < 38
        record = Run(out).record(ReplayRecord)  # the slow server has stopped: replace its URL
        write_record(out / "run.json", replace(record, url=url, target=replace(record.target, url=url)))
        sent_before = sum(sent.values())
        assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0
    resent = sum(sent.values()) - sent_before
    remaining = 38 - len(kept)
    assert resent == remaining + min(32, remaining)  # with a warm-up
    everything = [observation.query_id for observation in Run(out).observations()]
    assert len(everything) == len(set(everything)) == 38
    assert (out / PACKED).exists()
