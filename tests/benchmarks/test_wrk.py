"""The load generator beside Debian's wrk, on one and the same endpoint."""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.datasets.octet.apt import Apt
from benchmarks.load.driver import Client, Load, drive
from benchmarks.load.null_server import null_server
from benchmarks.load.requests import Ask, Picture
from benchmarks.load.scenarios import scenario_row
from benchmarks.runs.latency import latency
from benchmarks.runs.run import Run
from benchmarks.targets.target import Target
from tests.conftest import ROOT

PACKAGES = {"wrk": "4.1.0-3+b2", "libluajit2-5.1-2": "2.1-20230119-1"}
STREAMS = 16
SECONDS = 8.0
DELAY_MS = 190  # the server's, so long that neither client's own time counts for much beside it


@pytest.fixture(scope="module")
def wrk() -> Path:
    """Its folder, unpacked; fetched once, under the git-ignored `data/`."""
    folder = ROOT / "data" / "wrk"
    if not (folder / "usr" / "bin" / "wrk").exists():
        for name, version in PACKAGES.items():
            scratch = folder / name
            scratch.mkdir(parents=True)
            package = Apt(scratch / "apt").download(name, version, scratch, lambda _: None)
            subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    return folder


def of_wrk(folder: Path, url: str) -> float:
    (libraries,) = {str(file.parent) for file in folder.rglob("libluajit*.so*")}
    command = [str(folder / "usr/bin/wrk"), "-t1", f"-c{STREAMS}", f"-d{SECONDS:.0f}s", f"{url}/v1/search"]
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r"Requests/sec:\s+([\d.]+)", said)
    return float(found)


def of_ours(url: str, picture: Path, out: Path) -> float:
    out.mkdir()
    asks = [Ask("search", (Picture(f"a/{n}", "a", picture),)) for n in range(20_000)]
    load = Load(Target("uie", url), scenario_row("ClosedLoop", STREAMS, None, 0), asks, SECONDS)
    drive(load, Client(), out, 0, "", Console(quiet=True))
    return latency(Run(out).observations()).images_per_s


def test_throughput_is_what_wrk_measures(wrk: Path, tmp_path: Path) -> None:
    """Both at once, so that a busy machine is busy for both; each should see 16 / 190 ms."""
    (tmp_path / "x").write_bytes(b"x" * 1000)
    with null_server(DELAY_MS) as url, ThreadPoolExecutor(1) as aside:
        theirs = aside.submit(of_wrk, wrk, url)
        ours = of_ours(url, tmp_path / "x", tmp_path / "run")
        assert ours == pytest.approx(theirs.result(), rel=0.1)
