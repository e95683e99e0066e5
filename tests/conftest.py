"""Fixtures of all tests, and the rule that separates unit tests from integration tests."""

import os
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from benchmarks.datasets.octet import build_octet
from benchmarks.targets.process import ServiceProcess, running_service
from service.manifest import Manifest, load_manifest
from service.settings import load_settings
from tests.support.isolation import GUARD, hide_torch, imports_torch
from tests.support.paths import ROOT
from tests.support.remote import FakeNetwork, served
from tests.support.waiting import LIMIT_S

# A test is an integration test if it is in one of these areas, uses one of these fixtures, is in a file that
# imports torch, or is marked as one, some only because they are slow. All others are unit tests: the guard
# fails one that breaks the rule.
INTEGRATION_AREAS = {"live", "model_export"}
INTEGRATION_FIXTURES = {"service", "bounded", "octet", "live", "wrk"}

# Tests set their own settings; those of the shell do not count.
for _name in [name for name in os.environ if name.startswith("UIE_")]:
    del os.environ[_name]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--unit`."""
    parser.addoption(
        "--unit", action="store_true", help="only tests without service process, torch and network"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Hides torch from unit tests."""
    if config.getoption("--unit"):
        hide_torch()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `--unit`, skips files that import torch, and integration areas: their conftest may import it."""
    if not config.getoption("--unit"):
        return None
    is_area = collection_path.parent == ROOT / "tests" and collection_path.name in INTEGRATION_AREAS
    is_test = collection_path.name.startswith("test_")
    return is_area or (is_test and imports_torch(collection_path)) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the integration tests; with `--unit`, deselects them."""
    for item in items:
        area = item.path.relative_to(ROOT / "tests").parts[0]
        fixtures = set(getattr(item, "fixturenames", ()))
        if area in INTEGRATION_AREAS or fixtures & INTEGRATION_FIXTURES or imports_torch(item.path):
            item.add_marker("integration")
    if config.getoption("--unit"):
        config.hook.pytest_deselected(items=[item for item in items if _is_integration(item)])
        items[:] = [item for item in items if not _is_integration(item)]


def _is_integration(item: pytest.Item) -> bool:
    return item.get_closest_marker("integration") is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Activates the guard for a unit test, its fixtures included."""
    GUARD.active = not _is_integration(item)
    GUARD.violations.clear()
    try:
        return (yield)
    finally:
        GUARD.active = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    """Fails a unit test whose code caught the guard's refusal."""
    yield
    assert not GUARD.violations, f"not a unit test: {GUARD.violations}"


@pytest.fixture(scope="session")
def octet() -> Dataset:
    """Octet, built once under the git-ignored `data/`; the demo uses the same folder."""
    folder = ROOT / "data" / "octet"
    summary = build_octet(folder, console=Console())
    assert not summary.left_out, f"Octet is incomplete: {summary.left_out}"
    return Dataset(folder)


@pytest.fixture(scope="session")
def zoo_model() -> Path:
    """The folder of the model that ships with the repository."""
    return load_settings().model_folders[0]


@pytest.fixture(scope="session")
def manifest(zoo_model: Path) -> Manifest:
    """The manifest of that model."""
    return load_manifest(zoo_model)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A running service with default settings and an embedded index.

    All tests share it. Each one uses its own domain and ids, and deletes the items it adds.
    """
    folder = tmp_path_factory.mktemp("service")
    with running_service(folder / "service.log", data_dir=str(folder / "index")) as process:
        yield process


@pytest.fixture(scope="session")
def bounded(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A running service with low limits, a cache and JSON logs; it may fetch URLs of `service` only."""
    folder = tmp_path_factory.mktemp("bounded")
    with running_service(
        folder / "service.log",
        data_dir=str(folder / "index"),
        body_timeout_s="2",
        max_bytes_in_flight="200000",
        cache_items="10",
        url_hosts=f"{service.url},{service.url.replace('127.0.0.1', 'localhost')}",
        log_format="json",
        access_log="true",
    ) as process:
        yield process


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of a valid run that a busy machine does not exceed; test_saturate.py tests the limits."""
    monkeypatch.setenv("BENCHMARKS_MAX_SEND_LAG_MS", "1e9")
    monkeypatch.setenv("BENCHMARKS_MAX_CORE_SHARE", "1e9")


@pytest.fixture
def http(service: ServiceProcess) -> Iterator[httpx.Client]:
    """A client of the running service."""
    with httpx.Client(base_url=service.url, timeout=LIMIT_S) as client:
        yield client


@pytest.fixture
async def network() -> AsyncIterator[FakeNetwork]:
    """The names, addresses and web server behind a fetcher."""
    async with served() as network:
        yield network
