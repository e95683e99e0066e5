"""The load generator and Debian's wrk on one server: both report the requests that the server counts.

No rate is compared: both clients share the cores with whatever else runs on the machine.
"""

import asyncio
import os
import re
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from rich.console import Console

from benchmarks.datasets.octet.apt import Apt
from benchmarks.load.driver import Client, drive
from benchmarks.load.requests import Load, LoadRequest, QueryImage
from benchmarks.load.scenarios import scenario_row
from benchmarks.runs.latency import latency
from benchmarks.runs.run import Run
from benchmarks.targets.target import Target
from tests.support.paths import ROOT
from tests.support.stub import stub

PACKAGES = {"wrk": "4.1.0-3+b2", "libluajit2-5.1-2": "2.1-20230119-1"}
STREAMS = 16
SECONDS = 2.0
DELAY_S = 0.05
LIMIT_S = 300  # reached only if a test hangs


@pytest.fixture(scope="module")
def wrk() -> Path:
    """The folder of wrk, unpacked; downloaded once to the git-ignored `data/`."""
    folder = ROOT / "data" / "wrk"
    if not (folder / "usr" / "bin" / "wrk").exists():
        for name, version in PACKAGES.items():
            scratch = folder / name
            scratch.mkdir(parents=True)
            package = Apt(scratch / "apt").download(name, version, scratch, lambda _: None)
            subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    return folder


class Server:
    """Counts requests by client, and answers each after a delay; the first ones wait for all connections."""

    def __init__(self) -> None:
        self.arrived = Counter[str]()
        self.in_flight = Counter[str]()
        self.most_in_flight = Counter[str]()
        self._connected = {name: asyncio.Event() for name in ("wrk", "ours")}

    async def answer(self, request: web.Request) -> web.Response:
        await request.read()
        name = request.path.split("/")[1]
        self.arrived[name] += 1
        self.in_flight[name] += 1
        self.most_in_flight[name] = max(self.most_in_flight[name], self.in_flight[name])
        if self.in_flight[name] == STREAMS:
            self._connected[name].set()
        async with asyncio.timeout(LIMIT_S):
            await self._connected[name].wait()
        await asyncio.sleep(DELAY_S)
        self.in_flight[name] -= 1
        return web.json_response({"hits": []})


@dataclass
class Report:
    """A client's report."""

    requests: int
    failed: int
    per_s: float


def wrk_report(folder: Path, url: str) -> Report:
    (libraries,) = {str(file.parent) for file in folder.rglob("libluajit*.so*")}
    options = ["-t1", f"-c{STREAMS}", f"-d{SECONDS:.0f}s", f"--timeout={LIMIT_S}s"]
    command = [str(folder / "usr/bin/wrk"), *options, f"{url}/wrk/v1/search"]
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    (requests,) = re.findall(r"(\d+) requests in", output)
    (per_s,) = re.findall(r"Requests/sec:\s+([\d.]+)", output)
    failed = re.findall(r"Non-2xx or 3xx responses: (\d+)", output)
    return Report(int(requests), int(failed[0]) if failed else 0, float(per_s))


def own_report(url: str, image: Path, out: Path) -> Report:
    out.mkdir()
    requests = [LoadRequest("search", (QueryImage(f"a/{n}", "a", image),)) for n in range(20_000)]
    load = Load(Target("uie", f"{url}/ours"), scenario_row("ClosedLoop", STREAMS, None, 0), requests, SECONDS)
    drive(load, Client(warm_up=0), out, 0, "", Console(quiet=True))
    observations = Run(out).observations()
    failed = sum(observation.status != 200 for observation in observations)
    return Report(len(observations), failed, latency(observations).images_per_s)


def test_both_clients_report_the_requests_that_the_server_counts(wrk: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 1000)
    server = Server()
    with stub(server.answer) as url:
        theirs = wrk_report(wrk, url)
        start = time.monotonic()
        ours = own_report(url, tmp_path / "x", tmp_path / "run")
        duration_s = time.monotonic() - start
    assert theirs.failed == ours.failed == 0
    assert server.most_in_flight == {"wrk": STREAMS, "ours": STREAMS}
    # wrk drops the requests in flight at its end, ours waits for them.
    assert 0 <= server.arrived["wrk"] - theirs.requests <= STREAMS
    assert server.arrived["ours"] == ours.requests >= STREAMS
    # A connection waits for each response; wrk's clock starts after its first requests.
    assert 0 < theirs.per_s <= 1.1 * STREAMS / DELAY_S
    assert ours.requests / duration_s <= ours.per_s <= STREAMS / DELAY_S
