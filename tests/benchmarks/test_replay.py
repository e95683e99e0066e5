"""Replays through a live service of a tiny model: every way of asking gives the numbers that it should."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import BenchmarkError
from benchmarks.runs.run import PACKED, Run
from benchmarks.targets.process import ServiceProcess, running_service
from model_export.export.fp32 import export_model
from tests.conftest import ROOT
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
    with running_service(folder / "log", None, ("service", "serve"), **settings) as service:
        asked("index", data.root, "--url", service.url)
        yield service


def asked(*arguments: object) -> dict[str, Any]:
    """The JSON line of a command that must go well."""
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


def same(summary: dict[str, Any], scored: dict[str, Any]) -> None:
    for name in ("R@1", "mMP@5"):
        assert summary["mean"][name] == pytest.approx(scored["mean"][name], abs=1e-9)
        for domain, row in summary["domains"].items():
            assert row[name] == pytest.approx(scored[domain][name], abs=1e-9)


@pytest.mark.parametrize("exclusion", ["id", "position"])
@pytest.mark.parametrize("scope", ["merged", "separate"])
def test_through_the_service_as_offline(
    data: Dataset, tiny: ServiceProcess, offline: Path, tmp_path: Path, exclusion: str, scope: str
) -> None:
    options = ("--scope", scope, "--self-exclusion", exclusion, "--concurrency", 4)
    found = asked("replay", data.root, "--url", tiny.url, "--out", tmp_path / "run", *options)
    scored = asked("score", data.root, "--vectors", offline, "--self-exclusion", exclusion)
    assert found["scope"] == scope
    same(found, scored[scope])


@pytest.mark.parametrize("scenario", ["Offline", "SingleStream", "MultiStream", "Server"])
def test_every_scenario_has_the_same_accuracy(
    data: Dataset, tiny: ServiceProcess, offline: Path, tmp_path: Path, scenario: str
) -> None:
    rate = ("--rate", 20) if scenario == "Server" else ()
    found = asked(
        "replay", data.root, "--url", tiny.url, "--out", tmp_path / "run", "--scenario", scenario, *rate
    )
    scored = asked("score", data.root, "--vectors", offline)
    same(found, scored["merged"])
    said = Run(tmp_path / "run").said()
    assert said["scenario"]["name"] == scenario
    assert KEY not in (tmp_path / "run" / "run.json").read_text()
    if scenario == "Offline":  # every picture was embedded, and the harness searched
        same(found["separate"], scored["separate"])
        assert {one.kind for one in Run(tmp_path / "run").observations()} == {"bulk"}


def test_our_own_service_as_a_foreign_one(
    data: Dataset, tiny: ServiceProcess, offline: Path, tmp_path: Path
) -> None:
    for kind, path, exclusion in (("post", "/v1/embed", "position"), ("openai", "/v1/embeddings", "id")):
        options = ("--target", kind, "--model", "tiny", "--self-exclusion", exclusion)
        found = asked("replay", data.root, *options, "--url", tiny.url + path, "--out", tmp_path / kind)
        same(found, asked("score", data.root, "--vectors", offline, "--self-exclusion", exclusion)["merged"])


def test_val_has_a_gallery_of_its_own(data: Dataset, model: Path, offline: Path, tmp_path: Path) -> None:
    settings = {"model": str(model), "data_dir": str(tmp_path / "index")}
    with running_service(tmp_path / "log", None, ("service", "serve"), **settings) as service:
        assert asked("index", data.root, "--url", service.url, "--split", "val") == {"uploaded": 12}
        found = asked("replay", data.root, "--url", service.url, "--out", tmp_path / "run", "--split", "val")
    same(found, asked("score", data.root, "--vectors", offline, "--split", "val")["merged"])


def test_a_subset_asks_fewer(data: Dataset, tiny: ServiceProcess, tmp_path: Path) -> None:
    found = asked(
        "replay", data.root, "--url", tiny.url, "--out", tmp_path / "run", "--queries-per-domain", 3
    )
    assert [row["queries"] for row in found["domains"].values()] == [3, 3]
    assert found["all"]["gallery"] == 30


def test_what_is_wrong_with_a_replay_is_one_sentence(
    data: Dataset, tiny: ServiceProcess, tmp_path: Path
) -> None:
    usual = ("replay", data.root, "--url", tiny.url, "--out", tmp_path / "run")
    assert CliRunner().invoke(app, [*map(str, usual), "--scenario", "Server"]).exit_code == 2
    with pytest.raises(BenchmarkError, match=r"failed \(401\)"):
        CliRunner().invoke(app, [*map(str, usual)], catch_exceptions=False)
    asked(*usual, "--queries-per-domain", 2)
    with pytest.raises(BenchmarkError, match="another run: k differ"):
        asked(*usual, "--queries-per-domain", 2, "--k", 7)
    with pytest.raises(BenchmarkError, match="not this data set's: 20 items of animals, not 6"):
        asked(*usual[:-1], tmp_path / "other", "--split", "val")


def test_a_gallery_that_is_stale_is_refused(data: Dataset, tiny: ServiceProcess, tmp_path: Path) -> None:
    changed = Dataset(shutil.copytree(data.root, tmp_path / "changed"))
    info = changed.root / "data/info_files/plants/train.json"
    info.write_text(info.read_text() + "\n")  # as many pictures, and the same ones: yet not as it was indexed
    with pytest.raises(BenchmarkError, match="gallery of animals is of another data set: index again"):
        asked("replay", changed.root, "--url", tiny.url, "--out", tmp_path / "run")


def test_ctrl_c_leaves_a_run_that_goes_on_and_repeats_nothing(data: Dataset, tmp_path: Path) -> None:
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
            said = process.stderr.read()
            assert process.wait(60) == 130
            process.stderr.close()
        assert said.splitlines()[-1].startswith("benchmarks: stopped; what was observed is kept")
        kept = Run(out).observations()
        assert 3 <= len(kept) < 38
        run = json.loads((out / "run.json").read_text())
        run["url"] = run["target"]["url"] = url  # the slow one is gone
        (out / "run.json").write_text(json.dumps(run))
        sent_before = sum(sent.values())
        assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0
    asked_again = sum(sent.values()) - sent_before
    assert asked_again == 38 - len(kept) + min(32, 38 - len(kept))  # the rest, and a warm-up of the rest
    everything = [one.query_id for one in Run(out).observations()]
    assert len(everything) == len(set(everything)) == 38
    assert (out / PACKED).exists()
