"""`export FOLDER --jpeg draft`: the same network with another decoding of JPEGs and a new fingerprint."""

from pathlib import Path

import onnx
import pytest
from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from model_export.errors import SourceError
from model_export.export.sources import export_source
from model_export.inspection.verify import verify
from service.manifest import load_manifest

QUIET = Console(quiet=True)


def test_only_the_decoding_changes(tiny_models: Path, tiny_set: Dataset, tmp_path: Path) -> None:
    base = tiny_models / "conv"
    before = load_manifest(base)
    after = export_source(str(base), "fp32", tiny_set, tmp_path / "draft", QUIET, jpeg="draft")
    assert after == load_manifest(tmp_path / "draft")
    assert (after.name, after.jpeg, after.variant_of) == ("draft", "draft", before.fingerprint)
    assert after.fingerprint != before.fingerprint
    graphs = [onnx.load(folder / "model.onnx").graph for folder in (base, tmp_path / "draft")]
    assert graphs[0] == graphs[1]
    checks = {check.name: check.status for check in verify(tmp_path / "draft", tiny_set, 0.5)}
    assert checks.pop("cpu: photos against torch") == "not done"
    assert set(checks.values()) == {"passed"}


def test_with_lower_precision(tiny_models: Path, tiny_set: Dataset, tmp_path: Path) -> None:
    base = tiny_models / "conv"
    manifest = export_source(str(base), "fp16", tiny_set, tmp_path / "both", QUIET, jpeg="draft")
    assert (manifest.precision, manifest.jpeg) == ("fp16", "draft")
    with pytest.raises(SourceError, match="is fp16"):
        export_source(str(tmp_path / "both"), "fp32", tiny_set, tmp_path / "again", QUIET, jpeg="whole")
    with pytest.raises(SourceError, match="separate folder"):
        export_source(str(base), "fp32", tiny_set, base, QUIET, jpeg="draft")
