"""The service as a process of its own: started, waited for, stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import TargetError

_START_S = 120
_STOP_S = 30
SERVICE = ("service", "serve")


@dataclass(frozen=True)
class ServiceProcess:
    """A running service."""

    url: str
    pid: int
    log: Path


def running_service(
    log: Path, port: int | None = None, module: Sequence[str] = SERVICE, **settings: str
) -> AbstractContextManager[ServiceProcess]:
    """`python -m MODULE...`, ready, with `settings` as UIE_* variables; stopped at the end.

    Raises TargetError where it does not become ready; the log says why.
    """
    return running_module(log, port, module, _variables(settings))


@contextmanager
def running_module(
    log: Path, port: int | None, module: Sequence[str], variables: Mapping[str, str]
) -> Iterator[ServiceProcess]:
    """The same with any environment variables."""
    port = port or free_port()
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "true", **variables}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", *module, "--port", str(port)],
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, url, log)
        yield ServiceProcess(url, process.pid, log)
    finally:
        _stop(process)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether the service could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
        return True


def _variables(settings: Mapping[str, str]) -> dict[str, str]:
    return {f"UIE_{name.upper()}": value for name, value in settings.items()}


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows our loopback
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with direct.open(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise TargetError(f"the service did not start; the end of {log}:\n{log.read_text()[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its session is its own: nothing else is hit
        process.wait()
