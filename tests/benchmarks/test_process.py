"""Starts of the service: repeated only if an address is in use."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.errors import TargetError
from benchmarks.targets.process import free_port, running_module
from tests.support.paths import ROOT
from tests.support.waiting import LIMIT_S

# A module instead of the service: `failures` starts fail with `reason`, later ones answer `/readyz`.
MODULE = """
import http.server, os, pathlib, sys

starts = pathlib.Path(os.environ["STARTS"])
ports = starts.read_text().split() if starts.exists() else []
starts.write_text(" ".join([*ports, sys.argv[-1]]))
if len(ports) < int(os.environ["FAILURES"]):
    sys.exit(os.environ["REASON"])


class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()


http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Ready).serve_forever()
"""
IN_USE = "zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:41235')"


HARNESS = """
import sys
from pathlib import Path
from benchmarks.targets.process import running_module

with running_module(Path(sys.argv[1]), None, ("fake_service",), {}) as service:
    print(service.pid, flush=True)
    sys.stdin.read()
"""


def ports_of(folder: Path, failures: int, reason: str, port: int | None = None) -> list[int]:
    """Start the module, and return the ports of all its starts."""
    folder.mkdir()
    (folder / "fake_service.py").write_text(MODULE)
    starts = folder / "starts"
    variables = {
        "PYTHONPATH": str(folder),
        "STARTS": str(starts),
        "FAILURES": str(failures),
        "REASON": reason,
    }
    with running_module(folder / "log", port, ("fake_service",), variables) as service:
        ports = [int(number) for number in starts.read_text().split()]
        assert service.url == f"http://127.0.0.1:{ports[-1]}"
    return ports


def test_a_start_with_an_address_in_use_is_repeated_on_another_port(tmp_path: Path) -> None:
    ports = ports_of(tmp_path / "run", 2, IN_USE)
    assert len(ports) == len(set(ports)) == 3


def test_a_given_port_is_kept(tmp_path: Path) -> None:
    port = free_port()
    assert ports_of(tmp_path / "run", 1, IN_USE, port) == [port, port]


@pytest.mark.parametrize(("reason", "starts"), [(IN_USE, 5), ("the model is missing", 1)])
def test_starts_are_bounded_and_other_failures_are_final(tmp_path: Path, reason: str, starts: int) -> None:
    with pytest.raises(TargetError, match=reason.split(" (")[0]):
        ports_of(tmp_path / "run", sys.maxsize, reason)
    assert len((tmp_path / "run" / "starts").read_text().split()) == starts


def test_a_given_port_that_is_in_use_is_tried_once(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(TargetError, match="Address already in use"):
            ports_of(tmp_path / "run", sys.maxsize, IN_USE, other.getsockname()[1])
    assert len((tmp_path / "run" / "starts").read_text().split()) == 1


def test_a_killed_harness_does_not_leave_its_service_behind(tmp_path: Path) -> None:
    (tmp_path / "fake_service.py").write_text(MODULE)
    variables = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "STARTS": str(tmp_path / "starts"), "FAILURES": "0"}
    command = [sys.executable, "-c", HARNESS, str(tmp_path / "log")]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **variables}
    ) as harness:
        assert harness.stdout
        service = psutil.Process(int(harness.stdout.readline()))
        harness.kill()
    service.wait(LIMIT_S)
