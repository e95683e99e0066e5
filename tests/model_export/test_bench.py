"""Every model is measured at every batch, and the first model's ratio is 1."""

import json
from pathlib import Path

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
