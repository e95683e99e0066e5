"""The guard of unit tests refuses what they must not do; other tests are unaffected."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.isolation import GUARD, imports_torch


@pytest.fixture
def violations() -> Iterator[list[str]]:
    """The guard's record, emptied so that this test does not fail for it."""
    yield GUARD.violations
    GUARD.violations.clear()


@pytest.mark.parametrize("command", ["-m service serve", "-m model_export list"])
def test_a_service_or_torch_is_not_started(violations: list[str], command: str) -> None:
    with pytest.raises(AssertionError, match="starts"):
        subprocess.run([sys.executable, *command.split()], check=True)
    assert len(violations) == 1


def test_a_connection_to_another_machine_is_not_opened(violations: list[str]) -> None:
    with socket.socket() as client, pytest.raises(AssertionError, match="connects"):
        client.connect(("192.0.2.1", 80))
    assert violations == ["connects to 192.0.2.1"]


@pytest.mark.integration
def test_integration_tests_are_not_guarded() -> None:
    assert not GUARD.active


def test_loopback_and_other_processes_are_allowed(violations: list[str]) -> None:
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
    assert not violations


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import torch", True),
        ("from torch import nn", True),
        ("from tests.support.tiny import tiny_trained", True),
        ("# no import torch", False),
    ],
)
def test_imports_of_torch_are_recognised(tmp_path: Path, line: str, expected: bool) -> None:
    file = tmp_path / "test_x.py"
    file.write_text(f"import os\n{line}\n")
    assert imports_torch(file) == expected
