"""Speeds of models in turn: every one at every batch, the first one's ratio is 1. No word on how fast."""

import json
from pathlib import Path

import pytest

from model_export import __main__ as command
from model_export.export.fp32 import export_model
from tests.support.tiny import tiny_trained


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["model_export", *arguments])
    with pytest.raises(SystemExit) as left:
        command.main()
    return int(str(left.value.code))


def test_models_are_measured_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [str(tmp_path / kind) for kind in ("conv", "vit")]
    for folder in folders:
        export_model(tiny_trained(Path(folder).name), None, Path(folder))
    assert run(monkeypatch, "bench", *folders, "--rounds", "2", "--json") == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])["models"]
    assert [one["model"] for one in said] == folders
    assert said[0]["ratio"] == {"1": 1, "8": 1, "16": 1}
    for one in said:
        assert set(one["images_per_s"]) == {"1", "8", "16"}
        assert all(value > 0 for of in (one["images_per_s"], one["ratio"]) for value in of.values())
    assert run(monkeypatch, "bench", str(tmp_path / "nowhere")) == 1
    assert "no model here" in capsys.readouterr().err
