"""Fixtures of the model tests: tiny models, exported once, and the command line."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from model_export.export.fp32 import export_model
from model_export.export.variants import export_variant
from tests.support.commands import RunCommand, command_runner
from tests.support.shapes import shapes_data
from tests.support.tiny import tiny_data, tiny_trained


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two domains of small images."""
    return tiny_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_models(tiny_set: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fp32 models `conv` and `vit`, and `int8`, a variant of `conv`."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("conv", "vit"):
        export_model(tiny_trained(kind), tiny_set, folder / kind)
    export_variant(folder / "conv", "int8", tiny_set, folder / "int8", Console(quiet=True))
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three domains of shapes."""
    return shapes_data(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A descriptor cache shared by all tests that train."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run_command(capfd: pytest.CaptureFixture[str]) -> RunCommand:
    """Runs model_export in this process. BentoML's store needs a separate process."""
    return command_runner(capfd)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes writes to text files of a given name fail as on a full disk."""
    write_text = Path.write_text

    def fail_at(name: str) -> None:
        def write(file: Path, *arguments: Any) -> int:
            if file.name == name:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write_text(file, *arguments)

        monkeypatch.setattr(Path, "write_text", write)

    return fail_at
