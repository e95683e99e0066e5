"""`export FOLDER --jpeg draft`: the same network, JPEGs decoded otherwise, and a fingerprint of its own."""

from pathlib import Path

import onnx
import pytest
from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from model_export.errors import SourceError
from model_export.export.fp32 import export_model
from model_export.export.sources import export_source
from model_export.inspection.verify import verify
from service.manifest import load_manifest
from tests.support.tiny import tiny_data, tiny_trained

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "conv"
    export_model(tiny_trained("conv"), data, folder)
    return folder


def test_a_folder_decodes_otherwise(base: Path, data: Dataset, tmp_path: Path) -> None:
    before = load_manifest(base)
    after = export_source(str(base), "fp32", data, tmp_path / "draft", QUIET, jpeg="draft")
    assert after == load_manifest(tmp_path / "draft")
    assert (after.name, after.jpeg, after.variant_of) == ("draft", "draft", before.fingerprint)
    assert after.fingerprint != before.fingerprint
    one, other = (onnx.load(folder / "model.onnx").graph for folder in (base, tmp_path / "draft"))
    assert one == other
    checks = {check.name: check.status for check in verify(tmp_path / "draft", data, 0.5)}
    assert checks.pop("cpu: photos against torch") == "not done"
    assert set(checks.values()) == {"passed"}


def test_and_in_lower_precision(base: Path, data: Dataset, tmp_path: Path) -> None:
    made = export_source(str(base), "fp16", data, tmp_path / "both", QUIET, jpeg="draft")
    assert (made.precision, made.jpeg) == ("fp16", "draft")
    with pytest.raises(SourceError, match="is fp16 itself"):
        export_source(str(tmp_path / "both"), "fp32", data, tmp_path / "again", QUIET, jpeg="whole")
    with pytest.raises(SourceError, match="needs a folder of its own"):
        export_source(str(base), "fp32", data, base, QUIET, jpeg="draft")
