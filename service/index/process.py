"""Starts, watches and stops the index process."""

import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

from service.errors import StartupError
from service.manifest import Manifest
from service.settings import Quantization, Settings

_SOCKET = "_UIE_INDEX_SOCKET"  # set by the supervisor for its workers; not a setting
_RESTART_S = (0.1, 10.0)  # the first pause before a restart, and the longest one
_LASTED_S = 60  # a process that lived as long is restarted without a pause again
_STOP_S = 60  # to flush the index
_ROOT = Path(__file__).resolve().parents[2]
_log = logging.getLogger(__name__)


class IndexProcess:
    """The process that owns the embedded index. It is started again whenever it ends."""

    def __init__(self, folder: Path, dim: int, fingerprint: str, quantization: Quantization) -> None:
        """Open the index, or create it with these properties. Raises StartupError."""
        self._arguments = [str(folder), str(dim), fingerprint, quantization]
        self._folder = tempfile.TemporaryDirectory(prefix="uie-index-")
        self.socket = str(Path(self._folder.name) / "socket")  # a socket's path has at most 107 characters
        self._stopping = threading.Event()
        try:
            self._process = self._start()
        except StartupError:
            self._folder.cleanup()
            raise
        # The kernel's signal comes when the thread that started the process ends: the main thread, above,
        # and below this one, which lives as long.
        self._watcher = threading.Thread(target=self._watch, name="index-process", daemon=True)
        self._watcher.start()

    @classmethod
    def of(cls, settings: Settings, manifest: Manifest) -> Self:
        """Start the process for the embedded index of the settings. Raises StartupError."""
        return cls(settings.index_folder, manifest.dim, manifest.fingerprint, settings.index_quantization)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def stop(self) -> None:
        """Let the process flush the index and end."""
        self._stopping.set()
        self._process.terminate()
        self._watcher.join(_STOP_S)
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def announce(self) -> None:
        """Let the processes that this one starts use this index."""
        os.environ[_SOCKET] = self.socket

    def _start(self) -> "subprocess.Popen[str]":
        """Start the process, and wait until it serves."""
        search_path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [sys.executable, "-m", "service.index.daemon", str(os.getpid()), self.socket, *self._arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": search_path},
            start_new_session=True,  # Ctrl-C is for the service, which stops this process last
        )
        assert process.stdout
        with process.stdout as output:
            line = output.readline().strip()
        if line != "ready":
            process.kill()
            process.wait()
            raise StartupError(line or "the index process ended before it served")
        return process

    def _watch(self) -> None:
        pause_s, longest_s = _RESTART_S
        while True:
            started = time.monotonic()
            status = self._process.wait()
            if self._stopping.is_set():
                return
            if time.monotonic() - started > _LASTED_S:
                pause_s = _RESTART_S[0]
            _log.error("the index process ended with status %d; starting it again", status)
            while not self._stopping.wait(pause_s):
                pause_s = min(2 * pause_s, longest_s)
                try:
                    self._process = self._start()
                    if self._stopping.is_set():  # meanwhile
                        self._process.terminate()
                    break
                except StartupError as error:
                    _log.error("the index process does not start: %s", error)
            else:
                return


def announced_socket() -> str | None:
    """Return the socket of the supervisor's index process, or None if there is none."""
    return os.environ.get(_SOCKET)
