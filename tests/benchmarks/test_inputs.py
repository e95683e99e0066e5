"""Inputs of an operating point, recorded beside its run."""

import json
from pathlib import Path

import pytest

from benchmarks.errors import RunError
from benchmarks.files import write_atomically
from benchmarks.operating_points.inputs import check_inputs, fingerprints_of


def test_an_output_is_reused_only_for_the_same_inputs(tmp_path: Path, zoo_model: Path) -> None:
    file, output = tmp_path / "run" / "point.json", tmp_path / "run" / "run.json"
    check_inputs(file, {"ef": 32}, output)
    check_inputs(file, {"ef": 64}, output)  # there is no output yet
    output.touch()
    check_inputs(file, {"ef": 64}, output)
    with pytest.raises(RunError, match="ef was 64 and is now 32"):
        check_inputs(file, {"ef": 32}, output)
    for damage in ("{", "[1]"):
        file.write_text(damage)
        with pytest.raises(RunError, match="are unknown"):
            check_inputs(file, {"ef": 64}, output)
    fingerprint = json.loads((zoo_model / "manifest.json").read_text())["fingerprint"]
    assert fingerprints_of(f"{zoo_model},default") == f"{fingerprint},default"
    with pytest.raises(RunError, match="cannot be written"):
        write_atomically(output / "page.md", "")
