"""The service as a separate process: start, wait until ready, stop."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.errors import TargetError

_READY_TIMEOUT_S = 300  # an upper bound for a busy machine; a start takes seconds
_STOP_TIMEOUT_S = 120
# BentoML reserves free ports for its control sockets, and closes them before it binds them again:
# another process may take one meanwhile.
_STARTS = 5
_IN_USE = os.strerror(errno.EADDRINUSE)
# Replaced by the service; the kernel sends SIGTERM once this process has died, even by SIGKILL. A function
# that runs after the fork would do it too, but libraries of this process may not survive a fork.
_STOP_WITH_PARENT = (
    *(sys.executable, "-I", "-S", "-c"),
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM); "  # PR_SET_PDEATHSIG
    "os.execv(sys.argv[1], sys.argv[1:])",
)


@dataclass(frozen=True)
class ServiceProcess:
    """A running service."""

    url: str
    pid: int
    log: Path


def variables(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings as UIE_* variables."""
    return {f"UIE_{name.upper()}": value for name, value in settings.items()}


def running_service(
    log: Path, port: int | None = None, **settings: str
) -> AbstractContextManager[ServiceProcess]:
    """Run the service with these settings, as `running_module` does."""
    return running_module(log, port, ("service", "serve"), variables(settings))


@contextmanager
def running_module(
    log: Path,
    port: int | None,
    module: Sequence[str],
    variables: Mapping[str, str],
    folder: Path | None = None,
    ready: str = "/readyz",
) -> Iterator[ServiceProcess]:
    """Run `python -m MODULE...` with environment variables; it is ready on entry, stopped on exit.

    It runs in `folder` (None: the working folder), and is ready once it answers `ready` with success. A
    start that fails because an address is in use is repeated, on another port if `port` is None. Raises
    TargetError with the end of the log if it does not become ready.
    """
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "true", **variables}
    log.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, _STARTS + 1):
        number = port or free_port()
        url = f"http://127.0.0.1:{number}"
        command = [*_STOP_WITH_PARENT, sys.executable, "-m", *module, "--port", str(number)]
        with log.open("w") as stream:
            # In a new session Ctrl-C reaches this process only, which then stops the service.
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            if _becomes_ready(process, f"{url}{ready}"):
                yield ServiceProcess(url, process.pid, log)
                return
        finally:
            _stop(process)
        text = log.read_text()
        if _IN_USE not in text or attempt == _STARTS or (port and not port_is_free(port)):
            raise TargetError(f"the service did not start; the end of {log}:\n{text[-2000:]}")


def python_m(*command: str, **settings: str) -> None:
    """Run `python -m COMMAND` with these settings. Raises TargetError with its output."""
    environment = {**os.environ, **variables(settings)}
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        output = (done.stderr or done.stdout).strip()[-500:]
        raise TargetError(f"`python -m {' '.join(command)}` failed: {output}")


def free_port() -> int:
    """Return a port that no process listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Return True if the service could listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
        return True


def _becomes_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(url, trust_env=False, timeout=5).is_success:  # no proxy for loopback
                return True
        time.sleep(0.1)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the group holds this service only
        process.wait()
