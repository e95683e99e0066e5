"""Loads of forty searches, and their observations."""

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.load.driver import Client, drive
from benchmarks.load.requests import Load, LoadRequest, QueryImage
from benchmarks.runs.run import Observation, Run

QUIET = Console(quiet=True)
NO_WARM_UP = Client(warm_up=0)


@pytest.fixture
def searches(tmp_path: Path) -> list[LoadRequest]:
    """Forty searches with the same bytes."""
    (tmp_path / "x.png").write_bytes(b"\x89PNG content")
    return [LoadRequest("search", (QueryImage(f"a/{n:02d}", "a", tmp_path / "x.png"),)) for n in range(40)]


def observed(load: Load, folder: Path, client: Client = NO_WARM_UP) -> list[Observation]:
    """Send the load and return its observations."""
    folder.mkdir(exist_ok=True)
    drive(load, client, folder, 0, "", QUIET)
    return Run(folder).observations()
