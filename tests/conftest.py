"""The real things that tests share: one live service, and the Octet test bed."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from benchmarks.datasets.octet import build_octet
from benchmarks.targets.process import ServiceProcess, running_service
from service.manifest import Manifest, load_manifest
from service.settings import load_settings
from tests.support.remote import World, served

ROOT = Path(__file__).parent.parent

# Tests say their settings; what the shell exports is somebody else's.
for _name in [name for name in os.environ if name.startswith("UIE_")]:
    del os.environ[_name]


@pytest.fixture(scope="session")
def octet() -> Dataset:
    """Built once, under the git-ignored `data/`, and shared with the demo."""
    folder = ROOT / "data" / "octet"
    summary = build_octet(folder, console=Console())
    assert not summary.left_out, f"Octet is not whole here: {summary.left_out}"
    return Dataset(folder)


@pytest.fixture(scope="session")
def zoo_model() -> Path:
    """The model folder that ships."""
    return load_settings().model_folders[0]


@pytest.fixture(scope="session")
def manifest(zoo_model: Path) -> Manifest:
    """What it says of itself."""
    return load_manifest(zoo_model)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """`bentoml serve` with the shipped model and an empty embedded index."""
    folder = tmp_path_factory.mktemp("service")
    with running_service(folder / "service.log", data_dir=str(folder / "index")) as process:
        yield process


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of a valid run that a busy machine does not exceed; test_saturate.py tests the limits."""
    monkeypatch.setenv("BENCHMARKS_MAX_SEND_LAG_MS", "1e9")
    monkeypatch.setenv("BENCHMARKS_MAX_CORE_SHARE", "1e9")


@pytest.fixture
def http(service: ServiceProcess) -> Iterator[httpx.Client]:
    """A client of the live service."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield client


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """The names, addresses and web server that a fetcher is given."""
    async with served() as made:
        yield made
