"""Runs command-line tools; progress is the size of the files that they write."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from benchmarks.errors import SourceUnavailable

OnBytes = Callable[[int], None]

_LIMIT_S = 900.0  # the largest package at 200 kB/s
_POLL_S = 0.2


def run_command(command: list[str], folder: Path, on_bytes: OnBytes | None = None) -> None:
    """Run a command in `folder`, and report the size of all files there. Raises SourceUnavailable."""
    if shutil.which(command[0]) is None:
        raise SourceUnavailable(f"{command[0]} is not installed")
    deadline_s = time.monotonic() + _LIMIT_S
    status: int | None = None
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            while status is None and time.monotonic() < deadline_s:
                if on_bytes:
                    on_bytes(_size_bytes(folder))
                with suppress(subprocess.TimeoutExpired):
                    status = process.wait(timeout=_POLL_S)
        finally:
            process.kill()  # after Ctrl-C or the time limit; no effect on a process that has ended
        if status is None:
            raise SourceUnavailable(f"{command[0]} did not finish within {_LIMIT_S:.0f} s")
        if status:
            log.seek(0)
            raise SourceUnavailable(f"{command[0]} failed ({status}): {_sentence(log.read())}")


def only_file(folder: Path, pattern: str) -> Path:
    """Return the only file that matches the pattern. Raises SourceUnavailable."""
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise SourceUnavailable(f"the tool wrote {len(files)} files {pattern}, expected one")
    return files[0]


def _size_bytes(folder: Path) -> int:
    size_bytes = 0
    for parent, _, names in os.walk(folder):  # rglob fails if a folder vanishes meanwhile
        for name in names:
            with suppress(FileNotFoundError):
                size_bytes += Path(parent, name).stat().st_size
    return size_bytes


def _sentence(log: bytes) -> str:
    """First line of the log that is an error message of apt-get or npm, or else its last line."""
    lines = [line.strip() for line in log.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"E: |npm (error|ERR!)", line)]
    return (errors or lines[-1:] or ["no message"])[0]
