"""Tables: every model is measured at every batch, compared with the first; the list of models."""

import io
import json
from pathlib import Path

from rich.console import Console

from model_export.errors import ExportError
from model_export.inspection.tables import print_models
from service.manifest import Manifest
from tests.support.commands import RunCommand


def test_models_are_measured_alternately(tiny_models: Path, tmp_path: Path, run_command: RunCommand) -> None:
    folders = [str(tiny_models / kind) for kind in ("conv", "vit")]
    completed = run_command("bench", *folders, "--rounds", "2", "--json")
    assert completed.returncode == 0
    speeds = json.loads(completed.stdout.splitlines()[-1])["models"]
    assert [speed["model"] for speed in speeds] == folders
    assert speeds[0]["ratio"] == {"1": 1, "8": 1, "16": 1}
    for speed in speeds:
        assert set(speed["images_per_s"]) == {"1", "8", "16"}
        assert all(value > 0 for table in (speed["images_per_s"], speed["ratio"]) for value in table.values())
    completed = run_command("bench", tmp_path / "nowhere")
    assert completed.returncode == 1
    assert "no model here" in completed.stderr


def test_the_list_of_models_fits_a_narrow_terminal(zoo_model: Path, manifest: Manifest) -> None:
    output = io.StringIO()
    console = Console(width=80, file=output)
    print_models({manifest.name: zoo_model, "tiny:1": ExportError("no file")}, console)
    header, _, shipped, *_ = output.getvalue().splitlines()
    assert header.split() == ["name", "fingerprint", "dim", "precision", "R@1", "licence"]
    assert shipped.split() == [manifest.name, manifest.fingerprint, "64", "fp32", "-", "Apache-2.0"]
