"""Shares of the ceiling for hand-computed rounds, and the servers that are measured beside the service."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from aiohttp import web
from rich.console import Console

from benchmarks.baselines.efficiency import _Round, _share_without_client
from benchmarks.baselines.others import OtherServers, Server, check_embeddings, running_servers
from benchmarks.errors import TargetError
from benchmarks.targets.process import ServiceProcess
from tests.support.images import encode, noise
from tests.support.paths import ROOT
from tests.support.stub import stub
from tests.support.waiting import wait_until

IMAGES = [encode(noise(seed, 64, 48)) for seed in range(3)]
PEERS = OtherServers(peers=True)
# A harness that dies while its servers run, after it has printed the ids of all their processes.
KILLED = """
import os, pathlib, psutil, rich.console, sys
from benchmarks.baselines.others import OtherServers, running_servers
with running_servers(OtherServers(peers=True), pathlib.Path(sys.argv[1]), rich.console.Console()):
    print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
    os.kill(os.getpid(), 9)
"""


def test_the_share_without_the_client_includes_idle_time() -> None:
    """100 images on two cores: 2.0 core seconds served, 0.4 of the client and 0.2 idle; 1.2 in process."""
    result = _Round(
        served=100,
        ceiling=100 / 0.6,
        server_cpu_s=1.4,
        client_cpu_s=0.4,
        ceiling_cpu_s=1.2,
        idle_cpu_s=0.2,
        responses=[],
    )
    assert _share_without_client(result, cores=2, images=100) == pytest.approx(1.2 / 1.6)


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    process = ServiceProcess("", 0, Path())
    server = Server("other", process, cpu_ms=[10, 20, 12], images_per_s=[90, 40, 80])
    assert server.summary([9, 10, 12]) == {
        "name": "other",
        "images_per_s": 80,
        "cpu_ms": 12,
        "cpu_ratio": 0.9,
    }


@pytest.mark.integration
def test_the_peers_return_the_services_embeddings_and_end(service: ServiceProcess, tmp_path: Path) -> None:
    with running_servers(PEERS, tmp_path, Console()) as servers:
        check_embeddings(service.url, servers, IMAGES)
        assert [server.name for server in servers] == ["plain FastAPI", "mosec"]
        processes = [psutil.Process(server.process.pid) for server in servers]
        processes += [child for process in processes for child in process.children(recursive=True)]
        assert len(processes) > len(servers)  # mosec's
    wait_until(lambda: not any(process.is_running() for process in processes))


@pytest.mark.integration
def test_the_peers_end_if_the_harness_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    pids = [int(pid) for pid in killed.stdout.split()]
    assert pids, killed.stderr
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


@pytest.mark.integration
def test_other_embeddings_are_refused(service: ServiceProcess) -> None:
    async def zeros(_: web.Request) -> web.Response:
        return web.json_response({"embedding": [0.0] * 64})

    with stub(zeros) as url:
        server = Server("zeros", ServiceProcess(url, 0, Path()))
        with pytest.raises(TargetError, match="zeros"):
            check_embeddings(service.url, [server], IMAGES)
