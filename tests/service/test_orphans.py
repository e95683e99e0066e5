"""No process outlives the command that started it, and keeps the index open, if that is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.targets.process import free_port
from service.index import Item
from service.index.edge import EdgeIndex
from tests.support.paths import ROOT
from tests.support.waiting import LIMIT_S, wait_until

DIM = 64
ITEMS = 8000
CHILD = """
import ctypes, sys
from service.process import end_with_parent
end_with_parent(int(sys.argv[1]))
print("ready", flush=True)
ctypes.PyDLL(None).pause()  # holds Python's lock, as the engine does
"""
PARENT = "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], str(os.getpid())])"


@contextmanager
def started(*command: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start Python with these arguments; in the end, kill whatever is left of it."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "BENTOML_DO_NOT_TRACK": "true", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def killed(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Kill a process, and return those of its children that do not end."""
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.wait(LIMIT_S)
    return psutil.wait_procs(children, timeout=30)[1]


def test_a_process_ends_with_its_parent_even_if_python_hangs() -> None:
    with started("-c", PARENT, CHILD) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        assert killed(process) == []


def test_a_process_whose_parent_died_before_ends() -> None:
    completed = subprocess.run([sys.executable, "-c", CHILD, "1"], cwd=ROOT, check=False, timeout=LIMIT_S)
    assert completed.returncode == -signal.SIGKILL


@pytest.mark.integration
def test_killing_optimise_frees_the_index(tmp_path: Path) -> None:
    folder = tmp_path / "items"
    index = EdgeIndex(folder, DIM, "m")
    rows = np.random.default_rng(0).standard_normal((ITEMS, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index.upsert([Item(str(number), "d", "l", row) for number, row in enumerate(rows)])
    index.close()
    variables = {"UIE_DATA_DIR": str(tmp_path), "UIE_INDEX_QUANTIZATION": "scalar-int8"}
    with started("-m", "service", "optimise", "--from-items", "1", **variables) as process:

        def builds() -> bool:
            assert process.poll() is None
            return bool(json.loads((folder / "index.json").read_text())["quantization"] != "none")

        wait_until(builds)
        assert killed(process) == []  # neither the process that builds, nor multiprocessing's tracker
    index = EdgeIndex(folder, DIM, "m", "scalar-int8")
    assert index.count() == ITEMS
    index.close()


@pytest.mark.integration
def test_the_check_ends_with_the_start_that_is_killed() -> None:
    """It waits for a Qdrant server that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LIMIT_S)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with started("-m", "service", "serve", "--port", str(free_port()), UIE_QDRANT_URL=url) as process:
            connection, _ = server.accept()
            with connection:
                assert killed(process) == []
                assert process.stdout
                assert "service:" not in process.stdout.read()  # the reason why a check failed
